"""The layers that the trained heads are made of: seeded weights, activations, dropout from a head's own generator.

torch's own nn.Linear and dropout draw from the global generator, so a fit would depend on what ran before it.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "gelu", "silu", "tanh", "identity"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


class SeededModule(nn.Module):
    """A module whose dropout draws from a generator that it is given; without dropout once it is finished."""

    def __init__(
        self, *, activation: Activation, dropout: float, input_dropout: float, generator: torch.Generator
    ) -> None:
        """Keep the generator for the dropout masks."""
        super().__init__()
        self.activation = activation
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.generator: torch.Generator | None = generator

    def activated(self, h: Tensor) -> Tensor:
        """The hidden units' activation, some dropped in training."""
        return self.dropped(ACTIVATIONS[self.activation](h), self.dropout)

    def dropped(self, h: Tensor, share: float) -> Tensor:
        """In training, `share` of the entries set to 0 and the others scaled so that the mean stays; else h."""
        if not (self.training and share):
            return h
        kept = torch.rand(h.shape, generator=self.generator) >= share
        return h * kept.to(h.dtype).mul_(1 / (1 - share))

    def finished(self) -> Self:
        """The module as it scores: no dropout, and no generator, which cannot be pickled."""
        self.generator = None
        return self.eval()


class MLP(SeededModule):
    """d -> hidden ... -> one reward or k outputs, with dropout on the input and on every hidden layer."""

    def __init__(
        self,
        dim: int,
        hidden: tuple[int, ...],
        *,
        activation: Activation,
        dropout: float,
        input_dropout: float,
        generator: torch.Generator,
        outputs: int | None = None,
    ) -> None:
        """Draw the weights; biases start at 0. `outputs` None means one reward per row, not a column of them."""
        super().__init__(activation=activation, dropout=dropout, input_dropout=input_dropout, generator=generator)
        self.outputs = outputs
        sizes = (dim, *hidden, outputs or 1)
        self.weights = nn.ParameterList(uniform_weight(out, d, generator) for d, out in pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(out)) for out in sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Rewards of standardised rows: (n, d) -> (n,), or (n, outputs)."""
        h = self.dropped(x, self.input_dropout)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = linear(self.activated(h) if layer else h, weight) + bias
        return h.squeeze(1) if self.outputs is None else h


class SharedTrunk(SeededModule):
    """z -> h -> one reward and k attributes, with private linear heads from z to each if asked for."""

    def __init__(
        self,
        dim: int,
        k: int,
        *,
        width: int | None,
        activation: Activation,
        dropout: float,
        input_dropout: float,
        private: bool,
        generator: torch.Generator,
    ) -> None:
        """Draw the weights on and below the trunk; heads on z (all of them when width is None) start at 0."""
        super().__init__(activation=activation, dropout=dropout, input_dropout=input_dropout, generator=generator)
        self.trunk = uniform_weight(width, dim, generator) if width else None
        self.trunk_bias = nn.Parameter(torch.zeros(width)) if width else None
        self.heads = uniform_weight(1 + k, width, generator) if width else nn.Parameter(torch.zeros(1 + k, dim))
        self.bias = nn.Parameter(torch.zeros(1 + k))
        self.private = nn.Parameter(torch.zeros(1 + k, dim)) if private else None

    def forward(self, z: Tensor) -> Tensor:
        """Rewards in column 0, standardised attributes in the others: (n, d) -> (n, 1 + k)."""
        z = self.dropped(z, self.input_dropout)
        h = z
        if self.trunk is not None and self.trunk_bias is not None:
            h = self.activated(linear(z, self.trunk) + self.trunk_bias)
        out = linear(h, self.heads) + self.bias
        return out if self.private is None else out + linear(z, self.private)

    def reward_weight(self) -> Tensor:
        """The weight (d,) on z that the reward is up to a constant. Raises ValueError unless the trunk is linear."""
        weight = self.heads[0].detach()
        if self.trunk is not None:
            if self.activation != "identity":
                raise ValueError(f"a trunk with activation {self.activation!r} is not linear in the features")
            weight = weight @ self.trunk.detach()
        return weight if self.private is None else weight + self.private[0].detach()


class Gate(nn.Module):
    """Rewards as a weighted mean of k attributes; an MLP on the prompt's features says the weights, by a softmax."""

    def __init__(self, mlp: MLP, dim: int, *, dtype: torch.dtype) -> None:
        """Take an MLP from `dim` prompt features to k outputs, which computes in `dtype` until it is finished."""
        super().__init__()
        self.mlp = mlp
        self.dim = dim
        self.dtype = dtype
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Rewards of rows that hold `dim` prompt features and then k attributes: (n, dim + k) -> (n,)."""
        return self.log_scale.exp() * (self.weights(x) * x[:, self.dim :]).sum(1)

    def weights(self, x: Tensor) -> Tensor:
        """The weight of each attribute, for the same rows: (n, dim + k) -> (n, k). Positive; every row sums to 1."""
        return torch.softmax(self.mlp(x[:, : self.dim].to(self.dtype)), dim=1)

    def finished(self) -> Self:
        """The module as it scores: no dropout, no generator, float32."""
        self.mlp.finished()
        self.dtype = torch.float32
        return self.eval()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Rows times weight.T in the rows' dtype, as float32: a bfloat16 GEMM keeps float32 master weights."""
    return F.linear(x, weight.to(x.dtype)).float()


def uniform_weight(out: int, d: int, generator: torch.Generator) -> nn.Parameter:
    """A weight (out, d), uniform within 1/sqrt(d): what nn.Linear draws."""
    return nn.Parameter((torch.rand((out, d), generator=generator) * 2 - 1) / d**0.5)
