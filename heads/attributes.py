"""Attribute scores on one scale, so that a mean over attributes is a mean of comparable things, and back again."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.views import TrainingView


@dataclass(frozen=True)
class AttributeScale:
    """Standardises each attribute on the training rows that annotate it.

    Attributes:
        names: the k attributes.
        mean: of their scores; shape (k,), float32.
        scale: their standard deviations, 1 where constant; shape (k,), float32.
    """

    names: tuple[str, ...]
    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, view: TrainingView) -> Self:
        """Measure a view in which every attribute has a score."""
        scores = view.attributes.astype(np.float64)
        mean, deviation = np.nanmean(scores, axis=0), np.nanstd(scores, axis=0)
        scale = np.where(deviation > 1e-6 * np.abs(mean), deviation, 1.0)
        return cls(view.attribute_names, torch.from_numpy(mean).float(), torch.from_numpy(scale).float())

    def standardise(self, view: TrainingView) -> NDArray[np.float32]:
        """A view's scores in standardised units, NaN where not annotated: (n, k); all NaN if it has no attributes.

        Raises: ValueError if the view's attributes are others.
        """
        if not view.attribute_names:
            return np.full((len(view.features), len(self.names)), np.nan, dtype=np.float32)
        if view.attribute_names != self.names:
            raise ValueError(f"validation attributes are {view.attribute_names}, but training has {self.names}")
        standardised: NDArray[np.float32] = (view.attributes - self.mean.numpy()) / self.scale.numpy()
        return standardised

    def in_own_units(self, predicted: Tensor) -> dict[str, NDArray[np.float32]]:
        """Standardised predictions (n, k) as the attributes' own scores, by name, each (n,)."""
        own = predicted * self.scale + self.mean
        return {name: own[:, column].numpy() for column, name in enumerate(self.names)}

    def tensors(self) -> dict[str, Tensor]:
        """What a head saves beside the names."""
        return {"attributes.mean": self.mean, "attributes.scale": self.scale}

    @classmethod
    def take(cls, tensors: dict[str, Tensor], names: list[str]) -> Self:
        """Take a saved head's attribute scale out of its tensors."""
        return cls(tuple(names), tensors.pop("attributes.mean"), tensors.pop("attributes.scale"))
