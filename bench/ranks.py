"""Mid-ranks, the same for equal values: within groups, and of values that a bootstrap repeats."""

import numpy as np
from numpy.typing import NDArray

from bench.intervals import Floats


def weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """Mid-ranks (less one half) of n values repeated by each row of `weights`: (r, n)."""
    _, block = np.unique(values, return_inverse=True)
    last = np.cumsum(np.bincount(block)) - 1  # position of each block of equal values' last row, in sorted order
    order = np.argsort(block, kind="stable")
    upper = np.cumsum(weights[:, order], axis=1)[:, last]
    lower = np.concatenate([np.zeros((len(weights), 1)), upper[:, :-1]], axis=1)
    ranks: Floats = ((upper + lower) / 2)[:, block]
    return ranks


def ranks_within(values: Floats, prompts: NDArray[np.int64]) -> Floats:
    """Mid-ranks within each prompt, up to a constant per prompt: (n,)."""
    order = np.lexsort((values, prompts))
    new = np.ones(len(values), dtype=np.bool_)
    new[1:] = (np.diff(prompts[order]) != 0) | (np.diff(values[order]) != 0)
    block = np.cumsum(new) - 1
    middle = np.bincount(block, weights=np.arange(len(values))) / np.bincount(block)
    ranks = np.empty(len(values))
    ranks[order] = middle[block]
    return ranks


def centred_ranks(values: Floats) -> Floats:
    """Mid-ranks within each row of (g, n), less their mean (n - 1) / 2."""
    g, n = values.shape
    rows = np.arange(g)
    ranks = ranks_within(values.reshape(-1), np.repeat(rows, n)).reshape(g, n)
    centred: Floats = ranks - n * rows[:, None] - (n - 1) / 2
    return centred
