"""What agreeing with an imperfect annotator says about agreeing with the truth.

A reward model is order consistent on a pair if it ranks it as gold does (arXiv:2411.04991, Definition 8); what one can
see is only whether it ranks it as the annotator does, who is right with probability xi = s(beta |dr| / scale). If the
model agrees with the annotator and the annotator is right, so is the model, so for any model and any annotator

    P(model right) >= P(model as annotated) + E xi - 1.

The paper's Proposition 9 is about the same thing: for a disagreement eps < 3/20 it has (1 - eps) xi^2 + eps (1 - xi)^2.
That form is from memory and could not be checked against the paper's text, but it holds whoever states it: it is
xi - eps, the bound above for one pair, less (1 - xi)(xi - 2 eps), which is not negative because xi >= 1/2.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.annotate import Annotator
from bench.comparison import pair_credits
from bench.intervals import RESAMPLES, Estimate, Floats, finite, percentile_interval, prompt_numbers, resampled_sums

LARGEST_EPS = 3 / 20  # the disagreement up to which Proposition 9 speaks


@dataclass(frozen=True)
class Consistency:
    """A score against an annotator on pairs of a prompt's responses with different gold; n counts pairs.

    Attributes:
        beta: of the annotator.
        truth: share ranked as gold does, ties as one half.
        annotation: expected share ranked as the annotator does, whose errors the score has not seen.
        quality: E xi, the share that the annotator ranks rightly.
        bound: annotation + quality - 1.
        proposition: mean of xi^2 - eps (2 xi - 1) with eps = 1 - annotation; NaN from eps = 3/20 on.
    """

    beta: float
    truth: Estimate
    annotation: Estimate
    quality: Estimate
    bound: Estimate
    proposition: Estimate


def consistency(
    scores: Floats,
    gold: NDArray[np.floating],
    prompts: NDArray[np.generic],
    *,
    annotator: Annotator,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Consistency:
    """Order consistency with the truth and with an annotator, and what the second says about the first.

    Nothing is drawn for the annotator: expectations over his errors are exact.

    Args:
        scores: one column for each seed of a head, whose shares are averaged; shape (n, seeds), finite.
        gold: shape (n,), finite.
        prompts: prompt of each row; shape (n,).
        annotator: whose preferences the score is held against.
        resamples: bootstrap draws of prompts.
        seed: of the draws.

    Raises: ValueError if no prompt has two responses with different gold.
    """
    number, values = prompt_numbers(prompts), finite("gold scores", gold)
    order = np.argsort(number, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(number))[:-1])
    sums = np.stack([_sums(scores[rows], values[rows], annotator) for rows in groups])
    if not sums[:, 0].any():
        raise ValueError("no prompt has two responses with different gold; take another pool")
    point, draws = _shares(sums.sum(axis=0)[None]), _shares(resampled_sums(sums, resamples=resamples, seed=seed))
    low, high = percentile_interval(draws, prompts=len(sums))
    pairs = int(sums[:, 0].sum())
    return Consistency(
        annotator.beta, *(Estimate(float(point[0, j]), pairs, float(low[j]), float(high[j])) for j in range(5))
    )


def _sums(scores: Floats, gold: Floats, annotator: Annotator) -> Floats:
    """Over a prompt's pairs: how many, right, xi, (2 xi - 1) x right, xi^2."""
    one, other = np.triu_indices(len(gold), k=1)
    difference = gold[one] - gold[other]
    told = difference != 0
    one, other, difference = one[told], other[told], difference[told]
    right = pair_credits((scores[one] - scores[other]) * np.sign(difference)[:, None]).mean(axis=1)
    xi = annotator.quality(difference)
    return np.array([len(xi), right.sum(), xi.sum(), ((2 * xi - 1) * right).sum(), np.square(xi).sum()])


def _shares(sums: Floats) -> Floats:
    """truth, annotation, quality, bound and proposition: (r, 5) -> (r, 5)."""
    truth, xi, more, squared = np.divide(
        sums[:, 1:], sums[:, :1], where=sums[:, :1] > 0, out=np.full((len(sums), 4), np.nan)
    ).T
    annotation = 1 - xi + more  # a right score agrees with probability xi, a wrong one with 1 - xi
    eps = 1 - annotation
    proposition = np.where(eps < LARGEST_EPS, squared - eps * (2 * xi - 1), np.nan)
    return np.stack([truth, annotation, xi, annotation + xi - 1, proposition], axis=1)
