"""The heads of exported reward models: rewards and attributes from a saved head's tensors and a row of features.

Written by `pipeline export` of rewardheads beside modeling_reward_head.py; needs torch and nothing else.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rewards = dict[str, Tensor]  # by name, each (n,); the head's own first
Attributes = dict[str, Tensor]  # in their own units, by name, each (n,)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}
TINY = torch.finfo(torch.float32).tiny
LENGTH = "tokens of the response"  # a gated head's attribute that is a length, and no prediction to be told


class SavedHead(nn.Module):
    """A head as it was saved: name, options, what fitting found, its tensors, and the heads that it is made of."""

    def __init__(self, saved: Mapping[str, Any]) -> None:
        super().__init__()
        self.name, self.options, self.fitted = str(saved["name"]), dict(saved["options"]), dict(saved["fitted"])
        self.values = nn.ParameterDict(
            {
                tensor_key(name): nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=False)
                for name, shape in saved["shapes"].items()
            }
        )
        self.members = nn.ModuleDict({name: SavedHead(member) for name, member in saved["members"].items()})

    def __getitem__(self, name: str) -> Tensor:
        value: Tensor = self.values[tensor_key(name)]
        return value

    def __contains__(self, name: str) -> bool:
        return tensor_key(name) in self.values

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SavedHead":
        """Move with the model, and stay in float32 where `half()` or `to(dtype)` make the model shorter."""

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype or found.is_meta else tensor.to(found.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def member(self, name: str) -> "SavedHead":
        """One of the heads that this one is made of."""
        found = self.members[name]
        assert isinstance(found, SavedHead)
        return found

    def forward(self, x: Tensor) -> tuple[Rewards, Attributes]:
        """Rewards and attributes of rows of features (n, d)."""
        return HEADS[self.name](self, x)


def tensor_key(name: str) -> str:
    """A tensor's name as a parameter may have it: without dots, and not that of a dictionary's method."""
    return "t_" + name.replace(".", "_")


def _scaled(head: SavedHead, x: Tensor) -> Tensor:
    """Rows on the scale that the head was fitted on: (n, d) -> (n, d or less)."""
    if head.options["scaling"] == "rms":
        x = x / x.abs().amax(1, keepdim=True).clamp(min=TINY)  # so that no square overflows
        x = x / x.square().mean(1, keepdim=True).sqrt().clamp(min=TINY)
    z = (x - head["scaler.mean"]) / head["scaler.scale"]
    return z @ head["scaler.whitening"] if "scaler.whitening" in head else z


def _mlp(head: SavedHead, z: Tensor, prefix: str = "") -> Tensor:
    """The head's network: (n, d) -> (n, outputs)."""
    layer = 0
    while f"{prefix}weights.{layer}" in head:
        h = ACTIVATIONS[head.options["activation"]](z) if layer else z
        z = F.linear(h, head[f"{prefix}weights.{layer}"], head[f"{prefix}biases.{layer}"])
        layer += 1
    return z


def _own_units(head: SavedHead, predicted: Tensor) -> Attributes:
    own = predicted * head["attributes.scale"] + head["attributes.mean"]
    return dict(zip(head.fitted["attribute_names"], own.T, strict=True))


def _named(head: SavedHead, both: Tensor) -> Rewards:
    """F, L and M from F and L (n, 2); what the head's option names first."""
    mean = ((both - head["spread"][0]) / head["spread"][1]).mean(1)
    return _first(head.options["variant"], {"F": both[:, 0], "L": both[:, 1], "M": mean})


def _first(name: str, rewards: Rewards) -> Rewards:
    return {name: rewards[name], **rewards}


def _linear(head: SavedHead, x: Tensor) -> tuple[Rewards, Attributes]:
    return {"reward": _scaled(head, x) @ head["weight"]}, {}


def _bayes(head: SavedHead, x: Tensor) -> tuple[Rewards, Attributes]:
    linear = head.member("linear")
    reward, z = linear(x)[0]["reward"], _scaled(linear, x)
    inside, l2 = z @ head["vectors"], linear.fitted["l2"]
    outside = z - inside @ head["vectors"].T
    variance = outside.square().sum(1) / l2 + (inside.square() / (head["values"] + l2)).sum(1)
    sd = (variance / head.fitted["pairs"]).sqrt()
    lower = reward - head.options["kappa"] * sd
    return _first(head.options["variant"], {"reward": reward, "lower": lower, "sd": sd}), {}


def _network(head: SavedHead, x: Tensor) -> tuple[Rewards, Attributes]:
    return {"reward": _mlp(head, _scaled(head, x))[:, 0]}, {}


def _odin(head: SavedHead, x: Tensor) -> tuple[Rewards, Attributes]:
    out = _mlp(head, _scaled(head, x))
    return {"quality": out[:, 0], "both": out.sum(1)}, {}


def _standardised_ridge(head: SavedHead, x: Tensor) -> Tensor:
    return F.linear(_scaled(head, x), head["weight"], head["bias"])


def _ridge(head: SavedHead, x: Tensor) -> tuple[Rewards, Attributes]:
    predicted = _standardised_ridge(head, x)
    return {"L": predicted.mean(1)}, _own_units(head, predicted)


def _morm(head: SavedHead, x: Tensor) -> tuple[Rewards, Attributes]:
    predicted = _mlp(head, _scaled(head, x))
    return {"L": predicted.mean(1)}, _own_units(head, predicted)


def _trunk(head: SavedHead, z: Tensor, reward: str) -> Tensor:
    """The reward and the standardised attributes by the weights that are best for F, or for L: (n, 1 + k)."""
    h = z
    if f"{reward}.trunk" in head:
        h = ACTIVATIONS[head.options["activation"]](F.linear(z, head[f"{reward}.trunk"], head[f"{reward}.trunk_bias"]))
    out = F.linear(h, head[f"{reward}.heads"], head[f"{reward}.bias"])
    return out + F.linear(z, head[f"{reward}.private"]) if f"{reward}.private" in head else out


def _smorm(head: SavedHead, x: Tensor) -> tuple[Rewards, Attributes]:
    z = _scaled(head, x)
    predicted = _trunk(head, z, "L")[:, 1:]
    both = torch.stack([_trunk(head, z, "F")[:, 0], predicted.mean(1)], dim=1)
    return _named(head, both), _own_units(head, predicted)


def _baseline_sm(head: SavedHead, x: Tensor) -> tuple[Rewards, Attributes]:
    regressed, attributes = head.member("morm")(x)
    return _named(head, torch.stack([head.member("sorm")(x)[0]["reward"], regressed["L"]], dim=1)), attributes


def _gated(head: SavedHead, x: Tensor) -> tuple[Rewards, Attributes]:
    ridge, names = head.member("ridge"), head.member("ridge").fitted["attribute_names"]
    from_prompt = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    from_prompt[head.fitted["prompt_columns"]] = True
    predicted = _standardised_ridge(ridge, x[:, ~from_prompt])
    mixed, verbosity = predicted, head.options["verbosity"]
    if verbosity is not None:
        column = names.index(verbosity if verbosity in names else LENGTH)
        corrected = predicted - predicted[:, [column]] * head["verbosity.slope"]
        mixed = corrected[:, [number for number in range(len(names)) if number != column]]
    weights = torch.softmax(_mlp(head, _scaled(head, x[:, from_prompt]), "mlp."), dim=1)
    rewards = {"reward": head["log_scale"].exp() * (weights * mixed).sum(1), "uniform": mixed.mean(1)}
    return rewards, {name: own for name, own in _own_units(ridge, predicted).items() if name != LENGTH}


def _ensemble(head: SavedHead, x: Tensor) -> tuple[Rewards, Attributes]:
    said = [head.member(f"member-{number}")(x) for number in range(head.options["members"])]
    rewards = torch.stack([next(iter(found.values())) for found, _ in said]) - head["levels"][:, None]
    mean, variance = rewards.mean(0), rewards.var(0, correction=0)
    found = {"mean": mean, "min": rewards.amin(0), "sd": variance.sqrt()}
    found["lcb"] = mean - head.options["penalty"] * variance
    attributes = {name: torch.stack([told[name] for _, told in said]).mean(0) for name in said[0][1]}
    return _first(head.options["aggregate"], found), attributes


HEADS: dict[str, Callable[[SavedHead, Tensor], tuple[Rewards, Attributes]]] = {
    "linear": _linear,
    "bayes": _bayes,
    "bt": _network,
    "clf": _network,
    "odin": _odin,
    "ridge": _ridge,
    "morm": _morm,
    "smorm": _smorm,
    "baseline-sm": _baseline_sm,
    "gated": _gated,
    "ensemble": _ensemble,
}
