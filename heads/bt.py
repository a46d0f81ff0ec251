"""`bt`: a siamese MLP with the Bradley-Terry loss."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from heads.mlp import MLPHead
from heads.networks import MLP
from heads.objectives import bt_loss
from heads.training import StandardisedView, pair_margins


@dataclass
class BT(MLPHead):
    """Reward r(x) = MLP(z) with z the standardised features; minimises the mean of -log s(r(chosen) - r(rejected)).

    arXiv:2411.04991, BT-MLP. Options: see MLPHead.
    """

    name: ClassVar[str] = "bt"

    def _loss(self, network: MLP, data: StandardisedView, index: Tensor) -> Tensor:
        return bt_loss(pair_margins(network, data, index))

    def _loss_rows(self, data: StandardisedView) -> int:
        return len(data.pairs)
