"""Heads from weights that were trained elsewhere, on the features as they are: what `fit` would have left.

`pipeline finetune` trains a reward head together with its backbone. As one of these it is saved, scored and judged like
any head that was fitted on frozen features.
"""

import torch
from torch import Tensor

from heads.attributes import AttributeScale
from heads.bt import BT
from heads.linear import Linear
from heads.networks import MLP
from heads.odin import ODIN
from heads.protocol import Head
from heads.requirements import require_fitted
from heads.scaling import Scaler
from heads.smorm import SMORM


def given_linear(weight: Tensor) -> Linear:
    """The reward weight.x: weight (d,)."""
    head = Linear()
    head._scaler, head._weight = _unscaled(len(weight)), weight.detach().clone()
    return head


def given_bt(weights: tuple[Tensor, Tensor], biases: tuple[Tensor, Tensor]) -> BT:
    """The reward of an MLP with one hidden layer and ReLU: weights (h, d) and (1, h), biases (h,) and (1,)."""
    hidden, dim = weights[0].shape
    head = BT(hidden=hidden)
    head._scaler, head._network = _unscaled(dim), _mlp(dim, (hidden,), weights, biases, outputs=None)
    return head


def given_odin(weight: Tensor) -> ODIN:
    """Quality and length rewards, both linear: weight (2, d)."""
    outputs, dim = weight.shape
    head = ODIN(hidden=())
    head._scaler = _unscaled(dim)
    head._network = _mlp(dim, (), (weight,), (torch.zeros(outputs),), outputs=outputs)
    return head


def given_smorm(weight: Tensor, bias: Tensor, scale: AttributeScale, spread: Tensor, **options: float) -> SMORM:
    """A reward and k attributes, all linear: weight (1 + k, d), bias (1 + k,), the attributes in standardised units.

    Args:
        weight: the reward's row, then the attributes'.
        bias: likewise.
        scale: of the k attributes.
        spread: mean (row 0) and standard deviation (row 1) of F and L over the rows that say what M is; (2, 2).
        options: what the head's own training would have been given, such as regression_weight.
    """
    head = SMORM(trunk="none", **options)  # type: ignore[arg-type] # checked by the head
    head._scaler, head._attributes, head._spread = _unscaled(weight.shape[1]), scale, spread
    networks = [head._new_network(weight.shape[1], len(scale.names), torch.Generator()).finished() for _ in "FL"]
    for network in networks:
        network.load_state_dict({"heads": weight, "bias": bias})
    head._networks = (networks[0], networks[1])
    return head


def reward_row(head: Head) -> Tensor | None:
    """The reward of a head from this module as one row of weights (d,), less its constant; None if it is none."""
    if isinstance(head, Linear):
        return require_fitted(head._weight, head.name)
    if isinstance(head, SMORM):
        return require_fitted(head._networks, head.name)[0].heads[0].detach()
    if isinstance(head, ODIN):
        weight: Tensor = require_fitted(head._network, head.name).weights[0]
        return weight[0].detach()
    return None


def _unscaled(dim: int) -> Scaler:
    return Scaler(torch.zeros(dim), torch.ones(dim), row_rms=False)


def _mlp(
    dim: int, hidden: tuple[int, ...], weights: tuple[Tensor, ...], biases: tuple[Tensor, ...], *, outputs: int | None
) -> MLP:
    network = MLP(
        dim, hidden, activation="relu", dropout=0.0, input_dropout=0.0, generator=torch.Generator(), outputs=outputs
    ).finished()
    kinds = {"weights": weights, "biases": biases}
    network.load_state_dict(
        {f"{kind}.{n}": tensor for kind, tensors in kinds.items() for n, tensor in enumerate(tensors)}
    )
    return network
