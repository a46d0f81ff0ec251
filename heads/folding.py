"""Which rewards are one weight on raw features, so that a plain linear layer can give them."""

import numpy as np
from numpy.typing import NDArray

from heads.linear import Linear
from heads.protocol import Head
from heads.ridge import Ridge
from heads.smorm import SMORM

FOLDED = {Linear: "reward", Ridge: "L", SMORM: "F"}  # of each head, the reward that may be a weight


def folded_weight(head: Head, score: str) -> tuple[NDArray[np.float32], float] | None:
    """The weight (d,) and the constant c for which features @ weight + c is this reward of the head; None if none is.

    A weight gives this reward alone: what else the head says, as the L, M and attributes of `smorm`, it leaves out. Of
    heads whose reward comes with a deviation there is none.
    """
    if not isinstance(head, Linear | Ridge | SMORM) or FOLDED[type(head)] != score:
        return None
    try:
        weight = head.folded_weight
    except ValueError:
        return None
    return weight, float(head.scores(np.zeros((1, len(weight)), dtype=np.float32))[score][0])
