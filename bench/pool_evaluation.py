"""One pool, judged again and again: everything that does not depend on the scores is worked out once.

The numbers are those of `best_of_n`, `metrics.spearman_within` and `ordering.order_consistency`, without intervals: a
study has thousands of fits, and takes its intervals over seeds and prompts of all of them at once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.best_of_n import keep_probabilities, shared_among_ties
from bench.intervals import Floats, finite, prompt_numbers, ratio
from bench.ranks import centred_ranks


@dataclass(frozen=True)
class PoolScores:
    """How a score fares on a pool.

    Attributes:
        gains: gold of best-of-N less the mean gold of each prompt's N responses (arXiv:2411.04991, section 4); one for
            each prompt, in sorted order of the prompts; NaN for a prompt with one response.
        curve: expected gold of best of n less the mean; entry n - 1 is best of n. Up to the largest n that nine in ten
            prompts have, and the mean over these: along n it rests on the same prompts.
        proxy: the same of the score itself, in its standard deviations within a prompt; NaN where it never differs.
        curves: each prompt's own curve, NaN from where its responses end; (prompts, largest number of responses).
        spearman: mean rank correlation within a prompt; NaN where it is defined for none.
        accuracy: share of the pairs of a prompt's responses with different gold that it ranks as gold does, ties half.
        accuracies: the same of each prompt's pairs by themselves; NaN where no gold differs.
    """

    gains: Floats
    curve: Floats
    proxy: Floats
    curves: Floats
    spearman: float
    accuracy: float
    accuracies: Floats


@dataclass(frozen=True)
class _Group:
    """The prompts with n responses: their rows (g, n), gold, gold's centred ranks and the signs of its pairs."""

    prompts: NDArray[np.int64]
    rows: NDArray[np.int64]
    gold: Floats
    ranks: Floats
    keep: Floats
    one: NDArray[np.int64]
    other: NDArray[np.int64]
    signs: Floats


@dataclass(frozen=True)
class PoolEvaluator:
    """A pool's gold, arranged by the number of a prompt's responses: so many `prompts` and `responses`.

    `largest` is the most responses that a prompt has, `common` the most that nine in ten have.
    """

    prompts: int
    responses: int
    largest: int
    common: int
    groups: tuple[_Group, ...]

    @classmethod
    def of(cls, gold: NDArray[np.floating], prompts: NDArray[np.generic]) -> "PoolEvaluator":
        """Arrange a pool: gold and prompt of each response, each (n,). Prompts of one response have no part in it.

        Raises: ValueError if no prompt has several responses.
        """
        values, number = finite("gold scores", gold), prompt_numbers(prompts)
        size = np.bincount(number)
        start, grouped = np.cumsum(size) - size, np.argsort(number, kind="stable")
        groups = []
        for n in np.unique(size[size > 1]).tolist():
            members = np.flatnonzero(size == n)
            rows = grouped[start[members, None] + np.arange(n)]
            one, other = np.triu_indices(n, k=1)
            pools = values[rows]
            signs = np.sign(pools[:, one] - pools[:, other])
            groups.append(_Group(members, rows, pools, centred_ranks(pools), keep_probabilities(n), one, other, signs))
        several = np.sort(size[size > 1])
        if not len(several):
            raise ValueError("no prompt has several responses, so there is nothing to choose among; take a pool")
        common = int(several[len(several) // 10])
        return cls(len(size), len(values), int(size.max()), common, tuple(groups))

    def judge(self, scores: NDArray[np.floating]) -> PoolScores:
        """Judge the score of every response: (n,). Raises ValueError if one is not finite."""
        checked = finite("scores", scores)
        if len(checked) != self.responses:
            raise ValueError(f"{len(checked)} scores for a pool of {self.responses} responses; give one for each")
        gains, (curves, proxies) = np.full(self.prompts, np.nan), np.full((2, self.prompts, self.largest), np.nan)
        squares, freedom = 0.0, 0
        right, pairs = np.zeros(self.prompts), np.zeros(self.prompts)
        correlations = []
        for group in self.groups:
            proxy = checked[group.rows]
            curve, climb = _curves(proxy, group.gold, group), _curves(proxy, proxy, group)
            curves[group.prompts, : curve.shape[1]], proxies[group.prompts, : curve.shape[1]] = curve, climb
            gains[group.prompts] = curve[:, -1]
            squares += float(np.square(proxy - proxy.mean(axis=1, keepdims=True)).sum())
            freedom += proxy.size - len(proxy)
            correlations.append(_correlations(proxy, group))
            agreement = np.sign(proxy[:, group.one] - proxy[:, group.other]) * group.signs
            pairs[group.prompts] = np.abs(group.signs).sum(axis=1)
            right[group.prompts] = (pairs[group.prompts] + agreement.sum(axis=1)) / 2  # a tie is half
        defined = np.concatenate([*correlations, np.empty(0)])
        defined = defined[np.isfinite(defined)]
        whole = np.isfinite(curves[:, self.common - 1])
        return PoolScores(
            gains=gains,
            curve=curves[whole, : self.common].mean(axis=0),
            proxy=ratio(proxies[whole, : self.common].mean(axis=0), np.sqrt(np.array(squares / freedom))),
            curves=curves,
            spearman=float(defined.mean()) if len(defined) else float("nan"),
            accuracy=float(ratio(right.sum(), pairs.sum())),
            accuracies=ratio(right, pairs),
        )


def _curves(proxy: Floats, values: Floats, group: _Group) -> Floats:
    """Expected value (gold, or the proxy itself) of best of n by the proxy less the prompt's mean: (g, n)."""
    order = np.argsort(proxy, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    curves = shared_among_ties(np.take_along_axis(proxy, order, axis=1), ordered) @ group.keep
    gains: Floats = curves - values.mean(axis=1, keepdims=True)
    return gains


def _correlations(proxy: Floats, group: _Group) -> Floats:
    """Spearman of each prompt, ties by mid-ranks: (g,); NaN where one side is constant."""
    ranks = centred_ranks(proxy)
    spread = np.sqrt((ranks**2).sum(axis=1) * (group.ranks**2).sum(axis=1))
    return ratio((ranks * group.ranks).sum(axis=1), spread)
