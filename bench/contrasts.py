"""Differences between fits of a study that are alike in all else, with intervals over held-out prompts and seeds.

A contrast holds two levels against each other (two heads, two pairings) in every condition in which both were fitted.
The pools stay as they are: they are few, and no sample of anything. Within each, prompts and seeds are drawn again.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.intervals import Estimate, Floats, percentile_interval, ratio

Row = Mapping[str, Any]
RESAMPLES = 2000
PLACE = ("pool", "features", "head", "pairing", "choice", "beta", "pairs", "seed", "scorer")


@dataclass(frozen=True)
class Contrast:
    """Left less right, by pool.

    Attributes:
        pools: by name, the mean difference of each seed and held-out prompt over conditions; (seeds, prompts), NaN for
            prompts without a value.
        conditions: how many pairs of fits were compared.
    """

    pools: Mapping[str, Floats]
    conditions: int


def contrast(
    rows: Sequence[Row],
    left: Mapping[str, object],
    right: Mapping[str, object],
    *,
    value: Callable[[Row], Floats],
) -> Contrast:
    """Compare fits that agree in every column of PLACE but those that `left` and `right` name.

    Args:
        rows: of a study's results.
        left: levels by column; a fit is on the left if it has all of them.
        right: likewise, of the same columns.
        value: each held-out prompt's number of a row; (prompts,).
    """
    columns = [name for name in PLACE if name not in left]
    sides = [{_key(row, columns): row for row in rows if _has(row, levels)} for levels in (left, right)]
    by_pool: dict[str, dict[int, list[Floats]]] = defaultdict(lambda: defaultdict(list))
    count = 0
    for key, row in sides[0].items():
        if key in sides[1]:
            by_pool[row["pool"]][row["seed"]].append(value(row) - value(sides[1][key]))
            count += 1
    pools = {
        pool: np.stack([np.mean(differences, axis=0) for differences in seeds.values()])
        for pool, seeds in sorted(by_pool.items())
    }
    return Contrast(pools, count)


def minus(one: Contrast, other: Contrast) -> Contrast:
    """The difference of two contrasts, over the pools and the seeds that both have."""
    pools = {
        name: one.pools[name][: len(other.pools[name])] - other.pools[name][: len(one.pools[name])]
        for name in one.pools
        if name in other.pools
    }
    return Contrast(pools, min(one.conditions, other.conditions))


def estimates(found: Contrast, *, seed: int = 0) -> dict[str, Estimate]:
    """Each pool's mean difference, and that of all pools weighted alike as "all"; n counts held-out prompts.

    Intervals are percentile intervals over resamples of prompts and, independently, of seeds. With s seeds their part
    in it is too narrow by about sqrt((s - 1) / s).
    """
    generator = np.random.default_rng(seed)
    values, replicates, sizes = {}, {}, {}
    for pool, differences in found.pools.items():
        known = differences[:, np.isfinite(differences).all(axis=0)]
        values[pool], sizes[pool] = float(known.mean()) if known.size else float("nan"), known.shape[1]
        replicates[pool] = _resampled(known, generator)
    result = {pool: _estimate(values[pool], sizes[pool], replicates[pool]) for pool in values}
    if values:
        mean = np.mean(list(replicates.values()), axis=0)
        result["all"] = _estimate(float(np.mean(list(values.values()))), sum(sizes.values()), mean)
    return result


def rank_correlation(x: Sequence[float], differences: Sequence[Floats], *, seed: int = 0) -> Estimate:
    """Spearman correlation of x with the mean differences of conditions, each (seeds, prompts), over resamples."""
    generator = np.random.default_rng(seed)
    known = [values[:, np.isfinite(values).all(axis=0)] for values in differences]
    drawn = np.stack([_resampled(values, generator) for values in known], axis=1)
    correlations = np.array([[_spearman(np.asarray(x), row)] for row in drawn])
    low, high = percentile_interval(correlations, prompts=len(x))
    return Estimate(
        _spearman(np.asarray(x), np.array([v.mean() for v in known])), len(x), float(low[0]), float(high[0])
    )


def _resampled(values: Floats, generator: np.random.Generator) -> Floats:
    """Means of (seeds, prompts) over drawn seeds and drawn prompts: (RESAMPLES,)."""
    weights = [generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n if n else None for n in values.shape]
    if weights[0] is None or weights[1] is None:
        return np.full(RESAMPLES, np.nan)
    means: Floats = np.einsum("rs,sp,rp->r", weights[0], values, weights[1], optimize=True)
    return means


def _estimate(value: float, n: int, replicates: Floats) -> Estimate:
    low, high = percentile_interval(replicates[:, None], prompts=n)
    return Estimate(value, n, float(low[0]), float(high[0]))


def _spearman(x: Floats, y: Floats) -> float:
    a, b = (np.argsort(np.argsort(values)).astype(np.float64) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    return float(ratio(a @ b, np.sqrt((a @ a) * (b @ b))))


def _key(row: Row, columns: Sequence[str]) -> tuple[object, ...]:
    return tuple(row[name] for name in columns)


def _has(row: Row, levels: Mapping[str, object]) -> bool:
    return all(row[name] == level for name, level in levels.items())
