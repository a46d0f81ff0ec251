"""How far apart the golds of two responses are, and how often an annotator who sees that far is right.

An annotator ranks a pair with gold difference dr rightly with probability s(beta |dr| / scale) (arXiv:2411.04991,
section 4), so what pairs are worth depends on E|dr| and the annotation quality Q = E s(beta |dr| / scale). Both are
taken here over all pairs of a pool, two responses of one prompt or of two prompts, and set against what the paper's
Gaussian gold, N(mu_x, sigma_x^2) within prompt x, would give. Prompts weigh alike, and so do pairs of prompts; pairs
with the same gold count too, unlike in `bench.annotate`, which never draws them: the formulas are about all pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.annotate import Annotator, moments
from bench.annotation_quality import deviation_bias, gaussian_mean_gap, normal_nodes
from bench.intervals import (
    RESAMPLES,
    Estimate,
    Floats,
    finite,
    percentile_interval,
    prompt_counts,
    prompt_numbers,
    ratio,
)

PROMPTS = 2000  # taken at most: pairs of prompts are held in a matrix
_CELLS = 1 << 21  # pairs held at a time


@dataclass(frozen=True)
class Difference:
    """One function of |dr| over pairs of a pool.

    Attributes:
        beta: of the annotation quality; None for |dr| itself.
        same: mean over two responses of one prompt; n counts pairs of responses.
        same_gaussian: what the formula gives; n counts prompts.
        cross: mean over responses of two prompts; n counts pairs of responses.
        cross_gaussian: what the formula gives; n counts pairs of prompts.
        gain: cross - same; n counts prompts.
    """

    beta: float | None
    same: Estimate
    same_gaussian: Estimate
    cross: Estimate
    cross_gaussian: Estimate
    gain: Estimate


def gaussian_quality(m: Floats, s: Floats, annotator: Annotator) -> Floats:
    """E s(beta |dr| / scale) for dr ~ N(m, s^2), right to three digits."""
    nodes = normal_nodes()
    total = np.zeros(np.broadcast_shapes(np.shape(m), np.shape(s)))
    for node in nodes:
        total += annotator.quality(m + s * node)
    return total / len(nodes)


def differences(
    gold: NDArray[np.floating],
    prompts: NDArray[np.generic],
    annotators: Sequence[Annotator],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """E|dr|, then the quality of each annotator, over a pool's pairs with intervals by bootstrap over prompts.

    Every pair of responses is looked at, of PROMPTS prompts drawn at random where there are more. The formulas' sigma
    and mu are each prompt's own: for one prompt the deviation of n responses over its expectation for Gaussian gold,
    c4(n), which makes the formula unbiased for few responses; for two prompts the deviation with n in the denominator,
    because the difference of their means has noise of its own.

    Args:
        gold: shape (n,), finite.
        prompts: prompt of each row; shape (n,).
        annotators: whose quality is asked for.
        resamples: bootstrap draws of prompts.
        seed: of the draws.

    Raises: ValueError if fewer than two prompts have two responses.
    """
    pool = _Pool.of(finite("gold scores", gold), prompt_numbers(prompts), seed=seed)
    own = pool.sd / deviation_bias(pool.size)
    variance = np.square(pool.sd) * (pool.size - 1) / pool.size
    m, s = pool.mean[:, None] - pool.mean, np.sqrt(variance[:, None] + variance)
    same_s, none = np.sqrt(2) * own, np.zeros(len(own))
    found = [pool.compare(None, np.abs, gaussian_mean_gap(none, same_s), gaussian_mean_gap(m, s), resamples, seed)]
    for one in annotators:
        ours, theirs = gaussian_quality(none, same_s, one), gaussian_quality(m, s, one)
        found.append(pool.compare(one.beta, one.quality, ours, theirs, resamples, seed))
    return found


@dataclass(frozen=True)
class _Pool:
    """Golds with a prompt's next to each other; all but `gold` have one number for each prompt."""

    gold: Floats
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    mean: Floats
    sd: Floats

    @classmethod
    def of(cls, gold: Floats, prompts: NDArray[np.int64], *, seed: int) -> "_Pool":
        count = np.bincount(prompts)
        usable = np.flatnonzero(count > 1)
        if len(usable) < 2:
            raise ValueError(
                f"{len(usable)} prompts have two responses with gold, and comparing prompts takes two; take a pool "
                "with several responses to a prompt"
            )
        kept = np.isin(prompts, np.random.default_rng(seed).permutation(usable)[:PROMPTS])
        number = prompt_numbers(prompts[kept])
        order = np.argsort(number, kind="stable")
        mean, sd, size = moments(gold[kept], number)
        return cls(gold[kept][order], np.cumsum(size) - size, size, mean, sd)

    def compare(
        self,
        beta: float | None,
        function: Callable[[Floats], Floats],
        same_gaussian: Floats,
        cross_gaussian: Floats,
        resamples: int,
        seed: int,
    ) -> Difference:
        """Means of a function of dr and of its formulas (prompts,) and (prompts, prompts), in the same draws."""
        sums = self.sums(function)
        nothing = float(function(np.zeros(1))[0])  # a response with itself stands on the diagonal
        same = (np.diag(sums) / self.size - nothing) / (self.size - 1)
        cross = sums / np.outer(self.size, self.size)
        point = _means(same, cross, same_gaussian, cross_gaussian, counts=np.ones((1, len(same))))[0]
        drawn = prompt_counts(len(same), resamples=resamples, seed=seed)
        draws = [_means(same, cross, same_gaussian, cross_gaussian, counts=counts) for counts in drawn]
        low, high = percentile_interval(np.concatenate(draws), prompts=len(same))
        estimates = zip(point.tolist(), self.counts(), low.tolist(), high.tolist(), strict=True)
        return Difference(beta, *(Estimate(*one) for one in estimates))

    def counts(self) -> tuple[int, int, int, int, int]:
        """What the estimates of a `Difference` rest on, in its order."""
        prompts, rows, own = len(self.size), len(self.gold), int(np.square(self.size).sum())
        return (own - rows) // 2, prompts, (rows * rows - own) // 2, prompts * (prompts - 1) // 2, prompts

    def sums(self, function: Callable[[Floats], Floats]) -> Floats:
        """Sum over the pairs of responses of each two prompts, both orders: (prompts, prompts)."""
        total = np.empty((len(self.size), len(self.size)))
        step = max(1, _CELLS // (len(self.gold) * int(self.size.max())))
        for first in range(0, len(self.size), step):
            of_block = slice(first, first + step)
            rows = slice(self.start[first], self.start[of_block][-1] + self.size[of_block][-1])
            values = function(self.gold[rows, None] - self.gold)
            by_prompt = np.add.reduceat(values, self.start, axis=1)
            total[of_block] = np.add.reduceat(by_prompt, self.start[of_block] - self.start[first], axis=0)
        return total


def _means(same: Floats, cross: Floats, same_gaussian: Floats, cross_gaussian: Floats, *, counts: Floats) -> Floats:
    """The five means of a `Difference` for prompts counted as often as drawn: (r, prompts) -> (r, 5).

    What is of one prompt is (prompts,); what is of two is (prompts, prompts), of which the diagonal does not count:
    a draw of one prompt alone has no pair of two, and NaN.
    """
    drawn = counts.sum(axis=1)
    pairs = np.square(drawn) - np.square(counts).sum(axis=1)
    ours, formula = (counts @ values / drawn for values in (same, same_gaussian))
    theirs, cross_formula = (
        ratio(((counts @ (values - np.diag(np.diag(values)))) * counts).sum(axis=1), pairs)
        for values in (cross, cross_gaussian)
    )
    return np.stack([ours, formula, theirs, cross_formula, theirs - ours], axis=1)
