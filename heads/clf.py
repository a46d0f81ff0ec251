"""`clf`: an MLP that classifies single responses as chosen or rejected; its logit is the reward."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from heads.mlp import MLPHead
from heads.networks import MLP
from heads.objectives import clf_loss
from heads.training import StandardisedView, score_rows


@dataclass
class CLF(MLPHead):
    """Reward r(x) = MLP(z), the log-odds that a response is a chosen one; each response is judged by itself.

    arXiv:2411.04991, CLF-MLP. A response in several pairs counts once for each. Options: see MLPHead.
    """

    name: ClassVar[str] = "clf"

    def _loss(self, network: MLP, data: StandardisedView, index: Tensor) -> Tensor:
        return clf_loss(*_judged(network, data, index))

    def _valid_loss(self, network: MLP, held: StandardisedView, index: Tensor) -> Tensor:
        return clf_loss(*_judged(network, held, index), reduction="none")

    def _loss_rows(self, pairs: int, annotated: int) -> int:
        return 2 * pairs


def _judged(network: MLP, data: StandardisedView, index: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets of the responses numbered by `index`: even numbers are chosen ones, odd ones rejected."""
    pair, side = index // 2, index % 2
    return score_rows(network, data, data.pairs[pair, side]), (1 - side).to(data.targets.dtype)
