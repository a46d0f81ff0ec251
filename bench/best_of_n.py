"""Exact expected gold score of best-of-n, for every n at once and without drawing anything.

Of N responses of a prompt, n are drawn without replacement and the one with the highest proxy score is kept. With the
responses in ascending order of proxy, the i-th is kept with probability C(i-1, n-1) / C(N, n), so

    E[gold of best of n] = sum_i C(i-1, n-1) / C(N, n) gold_(i).

Responses with the same proxy score share their block's mean gold: which of them is kept is a coin toss. (Sorting a
pool that is stored in gold order would otherwise let the sort's tie-breaking bias the curve.)
"""

import math

import numpy as np
from numpy.typing import NDArray

from bench.intervals import RESAMPLES, Estimate, Floats, bootstrap_columns, finite, prompt_numbers


def best_of_n(
    proxy: NDArray[np.floating],
    gold: NDArray[np.floating],
    prompts: NDArray[np.generic],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Estimate]:
    """Mean over prompts of the expected gold of best-of-n; entry n - 1 is best of n.

    A prompt with N responses has a part in n = 1..N only, so where prompts differ in N the right end of the curve
    rests on fewer prompts: each estimate's n says how many. Compare curves at the same n, never along n, there.

    Args:
        proxy: the score that chooses; shape (rows,), finite.
        gold: the score that judges; shape (rows,), finite.
        prompts: prompt of each row; shape (rows,).
        resamples: bootstrap resamples over prompts.
        seed: of the resampling.
    """
    return bootstrap_columns(prompt_curves(proxy, gold, prompts), resamples=resamples, seed=seed)


def prompt_curves(proxy: NDArray[np.floating], gold: NDArray[np.floating], prompts: NDArray[np.generic]) -> Floats:
    """Each prompt's own curve: (prompts, largest N), NaN beyond a prompt's N; arguments as for `best_of_n`."""
    if not len(proxy) == len(gold) == len(prompts):
        raise ValueError(
            f"proxy, gold and prompts have {len(proxy)}, {len(gold)} and {len(prompts)} rows; "
            "give one of each for every response"
        )
    number, chooser, judge = prompt_numbers(prompts), finite("proxy scores", proxy), finite("gold scores", gold)
    grouped = np.argsort(number, kind="stable")
    size = np.bincount(number)
    start = np.cumsum(size) - size
    curves = np.full((len(size), int(size.max(initial=0))), np.nan)
    for n in np.unique(size):
        group = np.flatnonzero(size == n)
        rows = grouped[start[group, None] + np.arange(n)]
        rows = np.take_along_axis(rows, np.argsort(chooser[rows], axis=1), axis=1)
        curves[group, :n] = shared_among_ties(chooser[rows], judge[rows]) @ keep_probabilities(int(n))
    return curves


def random_curves(gold: NDArray[np.floating], prompts: NDArray[np.generic]) -> Floats:
    """What a score that knows nothing gets: the prompt's mean gold at every n up to its N; (prompts, largest N)."""
    return prompt_curves(np.zeros(len(gold)), gold, prompts)


def keep_probabilities(responses: int) -> Floats:
    """C(i-1, n-1) / C(N, n) for i (rows) and n (columns) from 1 to N = `responses`; columns sum to one.

    From i = N, where it is n / N, down by (i - n) / (i - 1): no factorial is ever formed.
    """
    n = np.arange(1, responses + 1)
    i = np.arange(responses, 1, -1)[:, None]
    steps = np.maximum(i - n, 0) / (i - 1)
    falling = np.cumprod(np.concatenate([(n / responses)[None, :], steps]), axis=0)
    return np.ascontiguousarray(falling[::-1])


def kl_upper_bound(n: int) -> float:
    """Log n - (n - 1) / n in nats: an upper bound on KL(best-of-n policy || policy), not its value.

    Beirami et al. 2024 (arXiv:2401.01879) show that the KL is smaller where a policy repeats responses.
    """
    return math.log(n) - (n - 1) / n


def shared_among_ties(proxy: Floats, gold: Floats) -> Floats:
    """`gold` with each block of equal proxy scores in a row replaced by its mean; (prompts, N), ascending in proxy."""
    new = np.ones(proxy.shape, dtype=np.bool_)
    new[:, 1:] = proxy[:, 1:] != proxy[:, :-1]
    block = np.cumsum(new.reshape(-1)) - 1
    means: Floats = (np.bincount(block, weights=gold.reshape(-1)) / np.bincount(block))[block]
    return means.reshape(gold.shape)
