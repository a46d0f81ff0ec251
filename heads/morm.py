"""`morm`: an MLP that regresses the attributes, without pairs; the reward is their mean."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cache.rows import Features
from cache.views import TrainingView
from heads.attributes import AttributeScale
from heads.mlp import MLPHead
from heads.networks import MLP
from heads.objectives import Reduction, attribute_loss, pinball_loss
from heads.options import Bounds
from heads.requirements import require_attributes, require_fitted
from heads.saving import SavedHead
from heads.scaling import Scaler
from heads.training import StandardisedView, compute_dtype, score_rows


@dataclass
class MORM(MLPHead):
    """Attributes MLP(z) with k outputs, z the standardised features; the reward L is their mean in standardised units.

    Minimises the mean squared error over annotated scores in standardised units: the multi-objective baseline of
    arXiv:2507.07375 (the second term of eq. 5) with a network of its own, as `ridge` is without one.

    Attributes:
        quantile: None predicts the attributes' means; q in (0, 1) their q-quantiles, by the pinball loss.
    """

    name: ClassVar[str] = "morm"
    needs: ClassVar[frozenset[str]] = frozenset({"attributes"})

    quantile: Annotated[float, Bounds(0, 1, open_low=True, open_high=True)] | None = None
    _attributes: AttributeScale | None = field(default=None, init=False, repr=False, compare=False)

    def score(self, features: Features) -> NDArray[np.float32]:
        """The mean of the standardised attribute predictions: (n, d) -> (n,)."""
        return self._predict(features).mean(1).numpy()

    def scores(self, features: Features) -> dict[str, NDArray[np.float32]]:
        """{"L": the mean of the standardised attribute predictions}."""
        return {"L": self.score(features)}

    def predict_attributes(self, features: Features) -> dict[str, NDArray[np.float32]]:
        """Attribute predictions in the attributes' own units, by name, each (n,)."""
        return require_fitted(self._attributes, self.name).in_own_units(self._predict(features))

    def _prepare(self, train: TrainingView) -> None:
        require_attributes(train, self.name)
        self._attributes = AttributeScale.fit(train)

    def _used_rows(self, train: TrainingView) -> NDArray[np.int64]:
        return np.flatnonzero(np.isfinite(train.attributes).any(axis=1))

    def _standardised(self, view: TrainingView, scaler: Scaler) -> StandardisedView:
        targets = require_fitted(self._attributes, self.name).standardise(view)
        return StandardisedView.of(view, scaler, pairs=False, targets=targets, dtype=compute_dtype(self.precision))

    def _loss(self, network: MLP, data: StandardisedView, index: Tensor) -> Tensor:
        return self._losses(network, data, index, "mean")

    def _valid_loss(self, network: MLP, held: StandardisedView, index: Tensor) -> Tensor:
        return self._losses(network, held, index, "none")

    def _losses(self, network: MLP, data: StandardisedView, index: Tensor, reduction: Reduction) -> Tensor:
        predicted = score_rows(network, data, data.annotated[index])
        if self.quantile is None:
            return attribute_loss(predicted, data.targets[index], reduction=reduction)
        return pinball_loss(predicted, data.targets[index], quantile=self.quantile, reduction=reduction)

    def _loss_rows(self, pairs: int, annotated: int) -> int:
        return annotated

    def _outputs(self) -> int:
        return len(require_fitted(self._attributes, self.name).names)

    def _fitted(self) -> dict[str, list[str]]:
        return {"attribute_names": list(require_fitted(self._attributes, self.name).names)}

    def _tensors(self) -> dict[str, Tensor]:
        return require_fitted(self._attributes, self.name).tensors()

    def _take(self, saved: SavedHead) -> None:
        self._attributes = AttributeScale.take(saved.tensors, saved.fitted["attribute_names"])
