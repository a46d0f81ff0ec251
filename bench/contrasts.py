"""Differences between fits of a study that are alike in all else, with intervals over held-out prompts and seeds.

A contrast holds two levels against each other (two heads, two pairings) in every condition in which both were fitted.
The pools stay as they are: they are few, and no sample of anything. Within each, prompts and seeds are drawn again.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.intervals import LEVEL, Estimate, Floats, percentile_interval, ratio
from bench.ranks import centred_ranks

Row = Mapping[str, Any]
Seeds = Mapping[int, Floats]  # by seed, each held-out prompt's number (prompts,); NaN for prompts without one
Value = Callable[[Row], Floats]
RESAMPLES = 2000
PLACE = ("pool", "features", "head", "pairing", "choice", "beta", "pairs", "seed", "scorer")


@dataclass(frozen=True)
class Contrast:
    """Left less right, by pool.

    Attributes:
        pools: by name, the mean difference of each seed and held-out prompt over conditions.
        conditions: how many pairs of fits were compared.
    """

    pools: Mapping[str, Seeds]
    conditions: int


def contrast(rows: Sequence[Row], left: Mapping[str, object], right: Mapping[str, object], *, value: Value) -> Contrast:
    """Compare fits that agree in every column of PLACE but those that `left` and `right` name.

    Args:
        rows: of a study's results, judged on one thing each pool.
        left: levels by column; a fit is on the left if it has all of them.
        right: likewise, of the same columns.
        value: each held-out prompt's number of a row; (prompts,).
    """
    columns = [name for name in PLACE if name not in left]
    sides = [{_key(row, columns): row for row in rows if _has(row, levels)} for levels in (left, right)]
    return _by_pool((row, value(row) - value(sides[1][key])) for key, row in sides[0].items() if key in sides[1])


def average(rows: Iterable[Row], *, value: Value) -> Contrast:
    """A value of fits by itself, held against nothing."""
    return _by_pool((row, value(row)) for row in rows)


def minus(one: Contrast, other: Contrast) -> Contrast:
    """The difference of two contrasts, over the pools and the seeds that both have."""
    pools = {}
    for name in sorted(one.pools.keys() & other.pools.keys()):
        left, right = one.pools[name], other.pools[name]
        if seeds := sorted(left.keys() & right.keys()):
            pools[name] = {seed: left[seed] - right[seed] for seed in seeds}
    return Contrast(pools, min(one.conditions, other.conditions))


def turned_round(found: Contrast) -> Contrast:
    """Right less left."""
    pools = {name: {seed: -values for seed, values in seeds.items()} for name, seeds in found.pools.items()}
    return Contrast(pools, found.conditions)


def estimates(found: Contrast, *, seed: int = 0, level: float = LEVEL) -> dict[str, Estimate]:
    """Each pool's mean difference, and that of all pools weighted alike as "all"; n counts held-out prompts.

    Intervals are percentile intervals over resamples of prompts and, independently, of seeds. What is drawn of k things
    varies by (k - 1) / k of what it should, so what a draw moves is enlarged by sqrt(k / (k - 1)): with five seeds that
    is 12 % of their part. One seed says nothing of others, and has no part.
    """
    generator = np.random.default_rng(seed)
    values, replicates, sizes = {}, {}, {}
    for pool, seeds in found.pools.items():
        differences = np.stack([seeds[one] for one in sorted(seeds)])
        known = differences[:, np.isfinite(differences).all(axis=0)]
        values[pool], sizes[pool] = float(known.mean()) if known.size else float("nan"), known.shape[1]
        replicates[pool] = _resampled(known[None], generator)[:, 0]
    result = {pool: _estimate(values[pool], sizes[pool], replicates[pool], level) for pool in values}
    if values:
        mean = np.mean(list(replicates.values()), axis=0)
        result["all"] = _estimate(float(np.mean(list(values.values()))), sum(sizes.values()), mean, level)
    return result


def rank_correlation(
    x: Sequence[float], pools: Sequence[str], differences: Sequence[Seeds], *, seed: int = 0
) -> Estimate:
    """Spearman correlation of x with the mean differences of points, over resamples; NaN where all x are equal.

    Points of a pool share its held-out prompts and its seeds, so these are drawn once for all of them: drawn anew for
    each, luck that they have in common would pass for agreement. Equal x are tied (rounding aside).

    Args:
        x: of each point.
        pools: the pool of each.
        differences: of each, by seed; of those that all points of its pool have.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    means, drawn = np.full(len(x), np.nan), np.full((RESAMPLES, len(x)), np.nan)
    for pool in dict.fromkeys(pools):
        places = [place for place, name in enumerate(pools) if name == pool]
        seeds = sorted(set.intersection(*(set(differences[place]) for place in places)))
        table = np.array([[differences[place][one] for one in seeds] for place in places])
        table = table[:, :, np.isfinite(table).all(axis=(0, 1))]
        means[places], drawn[:, places] = table.mean(axis=(1, 2)), _resampled(table, generator)
    ranks = centred_ranks(np.asarray(x, dtype=np.float64).round(9)[None])
    low, high = percentile_interval(_correlations(ranks, drawn)[:, None], prompts=len(x))
    return Estimate(float(_correlations(ranks, means[None])[0]), len(x), float(low[0]), float(high[0]))


def _by_pool(values: Iterable[tuple[Row, Floats]]) -> Contrast:
    """Means over conditions, by pool and seed."""
    found: dict[str, dict[int, list[Floats]]] = defaultdict(lambda: defaultdict(list))
    count = 0
    for row, one in values:
        found[row["pool"]][row["seed"]].append(one)
        count += 1
    means = {pool: {seed: np.mean(seeds[seed], axis=0) for seed in sorted(seeds)} for pool, seeds in found.items()}
    return Contrast(dict(sorted(means.items())), count)


def _resampled(values: Floats, generator: np.random.Generator) -> Floats:
    """Means of (points, seeds, prompts) over drawn seeds and drawn prompts, the same for all: (RESAMPLES, points)."""
    points, *sizes = values.shape
    if not all(sizes):
        return np.full((RESAMPLES, points), np.nan)
    seeds, prompts = (_weights(n, generator) for n in sizes)
    means: Floats = np.einsum("rs,ksp,rp->rk", seeds, values, prompts, optimize=True)
    return means


def _weights(n: int, generator: np.random.Generator) -> Floats:
    """Of n things drawn with replacement, the weight of each in a mean, its distance from 1/n enlarged: (RESAMPLES, n).

    See `estimates`.
    """
    drawn = generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    return np.asarray(1 / n + (drawn - 1 / n) * math.sqrt(n / max(n - 1, 1)), dtype=np.float64)


def _estimate(value: float, n: int, replicates: Floats, level: float) -> Estimate:
    low, high = percentile_interval(replicates[:, None], prompts=n, level=level)
    return Estimate(value, n, float(low[0]), float(high[0]))


def _correlations(ranks: Floats, values: Floats) -> Floats:
    """Of centred ranks (1, points) with each row of values (r, points): (r,); NaN where one side is constant."""
    others = centred_ranks(values)
    spread = np.sqrt((ranks**2).sum(axis=1) * (others**2).sum(axis=1))
    return ratio((ranks * others).sum(axis=1), spread)


def _key(row: Row, columns: Sequence[str]) -> tuple[object, ...]:
    return tuple(row[name] for name in columns)


def _has(row: Row, levels: Mapping[str, object]) -> bool:
    return all(row[name] == level for name, level in levels.items())
