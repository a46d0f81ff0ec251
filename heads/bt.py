"""`bt`: a siamese MLP with the Bradley-Terry loss, or Thurstone's, and the usual additions to it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from torch import Tensor

from cache.views import TrainingView
from heads.mlp import MLPHead, NetworkOptions
from heads.networks import MLP
from heads.objectives import bt_loss, centring_loss, thurstone_loss
from heads.options import Bounds, NonNegative
from heads.spaces import Choice, Space
from heads.training import StandardisedView, pair_margins, pair_rewards

Link = Literal["logistic", "probit"]

LOSSES: dict[Link, Callable[..., Tensor]] = {"logistic": bt_loss, "probit": thurstone_loss}


@dataclass
class BT(MLPHead):
    """Reward r(x) = MLP(z) with z the standardised features; minimises the mean of -log P(r(chosen) - r(rejected)).

    P is the logistic function (arXiv:2411.04991, BT-MLP) or the normal distribution function (Thurstone). Early
    stopping, and the validation loss in the history, see the plain -log P of the validation pairs, without smoothing,
    centring or margins: so it is the same quantity, nats per pair, whatever these options are, and fits with different
    options can be compared by it.

    Attributes:
        link: "logistic" is Bradley-Terry; "probit" is Thurstone.
        smoothing: share of the annotations taken to be wrong (label smoothing); 0.1 in arXiv:2507.07375's baseline.
        centring: weight of the mean of (r(chosen) + r(rejected))^2, which gives rewards a common zero; TRL suggests
            0.01.
        margin_weight: the chosen response must win by this times the pair's annotated margin (none where it has none);
            0 ignores margins.
    """

    name: ClassVar[str] = "bt"
    space: ClassVar[Space] = {**NetworkOptions.space, "smoothing": Choice((0.0, 0.05, 0.1, 0.2))}

    link: Link = "logistic"
    smoothing: Annotated[float, Bounds(0, 0.5, open_high=True)] = 0.0
    centring: NonNegative = 0.0
    margin_weight: NonNegative = 0.0

    def _prepare(self, train: TrainingView) -> None:
        super()._prepare(train)
        if self.margin_weight and np.isnan(train.margins).all():
            raise ValueError("margin_weight is given, but no training pair has a margin; leave it out")

    def _loss(self, network: MLP, data: StandardisedView, index: Tensor) -> Tensor:
        chosen, rejected = pair_rewards(network, data, index)
        required = self.margin_weight * data.margins[index] if self.margin_weight else None
        loss = LOSSES[self.link](chosen - rejected, required=required, smoothing=self.smoothing)
        return loss + self.centring * centring_loss(chosen, rejected) if self.centring else loss

    def _valid_loss(self, network: MLP, held: StandardisedView, index: Tensor) -> Tensor:
        return LOSSES[self.link](pair_margins(network, held, index), reduction="none")

    def _loss_rows(self, pairs: int, annotated: int) -> int:
        return pairs
