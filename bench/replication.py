"""The claims of the two papers, each held against the results of the replication study (bench/studies).

Effects are differences of gains: the gold of best-of-N by a head, less the mean response's, in units of gold's standard
deviation within a prompt. Levels are called as in `bench/studies/replication.yaml`.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.contrasts import Contrast, Row, contrast, estimates, minus, rank_correlation
from bench.intervals import NOTHING, Estimate, Floats
from bench.results import connect, run_query

MARGIN = 0.05  # standard deviations of gold: less is no difference that anyone would notice
MAIN = ("linear", "bt", "clf", "lgbm-fast")  # heads whose pairings are compared
IN_PROMPT = {"same": "cross", "similar": "cross-similar", "diversified": "cross-diversified"}
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told here"
Value = Callable[[Row], Floats]


@dataclass(frozen=True)
class Finding:
    """One claim and what became of it.

    Attributes:
        claim: in words.
        published: the effect that the paper gives.
        setup: what was compared here.
        effects: by pool, and "all": the difference, above 0 where it speaks for the claim.
        verdict: HOLDS, FAILS or OPEN.
        why: the reason for the verdict.
        conditions: pairs of fits compared.
        accuracy: the effect over all pools on pair accuracy within held-out prompts; None where it has no such.
    """

    claim: str
    published: str
    setup: str
    effects: Mapping[str, Estimate] = field(default_factory=dict)
    verdict: str = OPEN
    why: str = ""
    conditions: int = 0
    accuracy: Estimate | None = None


def load_results(store: Path, study: str) -> list[dict[str, Any]]:
    """The study's results on held-out prompts of the pools that were fitted on.

    Each row gets its condition's `level`: the mean error rate of its annotations over seeds.

    Raises: ValueError if there are none.
    """
    sql = (
        "SELECT * EXCLUDE (study, error), "
        "avg(error_rate) OVER (PARTITION BY pool, pairing, choice, beta, pairs) AS level "
        "FROM studies WHERE study = ? AND error IS NULL AND gain IS NOT NULL AND judged_on = pool"
    )
    rows: list[dict[str, Any]] = run_query(connect(store), sql, [study]).to_pylist()
    if not rows:
        raise ValueError(f"{store} has no results of a study {study!r}; run `pipeline study` on its file first")
    for row in rows:
        row["gains"] = np.array(row["gains"], dtype=np.float64) / row["scale"]
        row["accuracies"] = np.array(row["accuracies"], dtype=np.float64)
    return rows


def gains(row: Row) -> Floats:
    """Each held-out prompt's gain, in standard deviations of gold."""
    values: Floats = row["gains"]
    return values


def accuracies(row: Row) -> Floats:
    """Each held-out prompt's pair accuracy; NaN where no gold differs."""
    values: Floats = row["accuracies"]
    return values


def findings(rows: Sequence[Row]) -> list[Finding]:
    """Every claim in the order of the papers."""
    random = [row for row in rows if row["choice"] == "random"]
    return [*_heads(random), *_pairings(random), *_smorm(random), *untestable(), *_controls(random), *_choices(rows)]


def difference(
    rows: Iterable[Row],
    column: str,
    left: str,
    right: str,
    *,
    where: Callable[[Row], bool] = lambda row: True,
    value: Value = gains,
) -> Contrast:
    """Left less right level of a column, among the rows where something holds."""
    kept = [row for row in rows if row[column] in (left, right) and where(row)]
    return contrast(kept, {column: left}, {column: right}, value=value)


def judged(finding: Finding, compare: Callable[..., Contrast], *, no_worse: bool = False) -> Finding:
    """The finding with its effects, by gains and by accuracies, and the verdict that the gains give.

    A claim that one is better holds if the interval lies above 0, and does not if it lies below; that it is no worse
    holds if the interval lies above -MARGIN.

    Args:
        finding: without effects.
        compare: gives the contrast of a `value`.
        no_worse: whether the claim is that one is no worse.
    """
    found = verdict_of(finding, compare(value=gains), no_worse=no_worse)
    return replace(found, accuracy=estimates(compare(value=accuracies)).get("all"))


def verdict_of(finding: Finding, found: Contrast, *, no_worse: bool = False) -> Finding:
    """The finding with effects and verdict, as `judged`, of one contrast."""
    effects = estimates(found)
    if "all" not in effects:
        return _with(finding, {}, OPEN, "the study has no fits of this kind", 0)
    effect = effects["all"]
    if effect.low > 0:
        return _with(finding, effects, HOLDS, "the interval lies above 0", found.conditions)
    if no_worse and effect.low > -MARGIN:
        return _with(finding, effects, HOLDS, f"the interval lies above -{MARGIN}", found.conditions)
    if effect.high < 0:
        return _with(finding, effects, FAILS, "the interval lies below 0", found.conditions)
    reason = f"the interval holds 0: effects below {(effect.high - effect.low) / 2:.2f} cannot be seen"
    return _with(finding, effects, OPEN, reason, found.conditions)


def _with(finding: Finding, effects: Mapping[str, Estimate], verdict: str, why: str, conditions: int) -> Finding:
    return replace(finding, effects=effects, verdict=verdict, why=why, conditions=conditions)


def _heads(rows: Sequence[Row]) -> list[Finding]:
    noisy, near = (lambda row: 0.05 <= row["level"] <= 0.38), (lambda row: 0.02 <= row["level"] <= 0.08)
    plenty: Callable[[Row], bool] = lambda row: row["pairs"] >= 4000  # noqa: E731 - the three stand side by side
    found = [
        judged(
            Finding(
                "CLF is no worse than BT at annotation error rates of 5-38 %", "shape, 5 seeds", f"{clf} less {bt}"
            ),
            partial(difference, rows, "head", clf, bt, where=noisy),
            no_worse=True,
        )
        for clf, bt in (("clf", "bt"), ("clf-published", "bt-published"), ("lgbm", "bt"))
    ]
    at_few = Finding("BT sometimes wins near 5 % errors", "shape", "bt less clf at realised error rates of 2-8 %")
    found.append(_sometimes(judged(at_few, partial(difference, rows, "head", "bt", "clf", where=near))))
    for clf, bt in (("clf", "bt"), ("clf-published", "bt-published")):
        claim = Finding("CLF beats BT at 5,000-40,000 annotations", "shape", f"{clf} less {bt}, 4,000 pairs or more")
        found.append(judged(claim, partial(difference, rows, "head", clf, bt, where=plenty)))
    return found


def _sometimes(finding: Finding) -> Finding:
    """A claim of "sometimes" holds if the interval of one pool lies above 0."""
    pools = {name: effect for name, effect in finding.effects.items() if name != "all"}
    if won := [name for name, effect in pools.items() if effect.low > 0]:
        return _with(finding, finding.effects, HOLDS, f"so on {', '.join(won)}", finding.conditions)
    if pools and all(effect.high < 0 for effect in pools.values()):
        return _with(finding, finding.effects, FAILS, "below 0 on every pool", finding.conditions)
    return _with(finding, finding.effects, OPEN, finding.why or "no pool's interval lies above 0", finding.conditions)


def _pairings(rows: Sequence[Row]) -> list[Finding]:
    main = [row for row in rows if row["head"] in MAIN]
    heads = ", ".join(MAIN)
    found = [
        judged(
            Finding("cross-prompt beats same-prompt annotation", "shape", f"cross less same pairs; {heads}"),
            partial(difference, main, "pairing", "cross", "same"),
        )
    ]
    alike = matched(main)
    by_kind = {kind: partial(difference, alike, "pairing", cross, kind) for kind, cross in IN_PROMPT.items()}
    for kind in ("similar", "diversified"):
        claim = Finding(
            f"cross-prompt beats same-prompt annotation of {kind} responses", "shape",
            f"cross-{kind} less {kind} pairs; {heads}",
        )  # fmt: skip
        found.append(judged(claim, by_kind[kind]))
    largest = Finding("the gain of cross-prompt is largest for similar pairs", "shape", "(similar) less (same)")
    smallest = Finding("the gain of cross-prompt is small for diversified pairs", "shape", "(same) less (diversified)")
    found.append(judged(largest, partial(_less, by_kind["similar"], by_kind["same"])))
    found.append(judged(smallest, partial(_less, by_kind["same"], by_kind["diversified"])))
    return [*found, _grows_with_gap(alike)]


def _less(one: Callable[..., Contrast], other: Callable[..., Contrast], *, value: Value) -> Contrast:
    return minus(one(value=value), other(value=value))


def matched(rows: Sequence[Row]) -> list[Row]:
    """The rows of conditions in which all six pairings were fitted, so that kinds can be compared with each other."""
    columns = ("pool", "features", "head", "beta", "pairs", "seed", "scorer")
    pairings: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for row in rows:
        pairings[tuple(row[name] for name in columns)].add(row["pairing"])
    whole = {*IN_PROMPT, *IN_PROMPT.values()}
    return [row for row in rows if pairings[tuple(row[name] for name in columns)] >= whole]


@dataclass(frozen=True)
class GapPoint:
    """What cross-prompt annotation adds in one condition: to mean |dr| in standard deviations, and to the gains."""

    pool: str
    pairing: str
    gap: float
    differences: Floats


def gap_points(rows: Sequence[Row]) -> list[GapPoint]:
    """One for each pool, features, head and kind of pairs, over qualities."""
    points = []
    columns = ("pool", "features", "head")
    for pool, features, head in sorted({tuple(row[name] for name in columns) for row in rows}):
        for kind, cross in IN_PROMPT.items():
            some = [r for r in rows if (r["pool"], r["features"], r["head"]) == (pool, features, head)]
            found = difference(some, "pairing", cross, kind)
            gap = {name: np.mean([r["mean_gap"] for r in some if r["pairing"] == name]) for name in (cross, kind)}
            if pool in found.pools:
                points.append(GapPoint(pool, kind, float(gap[cross] - gap[kind]), found.pools[pool]))
    return points


def _grows_with_gap(rows: Sequence[Row]) -> Finding:
    finding = Finding(
        "the gain of cross-prompt grows with mean |dr|", "strong correlation",
        "Spearman correlation over conditions of what cross adds to mean |dr| with what it adds to the gain",
    )  # fmt: skip
    points = gap_points(rows)
    if len(points) < 3:
        return _with(finding, {}, OPEN, "the study has no fits of this kind", 0)
    effect = rank_correlation([point.gap for point in points], [point.differences for point in points])
    if effect.low > 0:
        return _with(finding, {"all": effect}, HOLDS, "the interval lies above 0", len(points))
    verdict = FAILS if effect.high < 0 else OPEN
    return _with(finding, {"all": effect}, verdict, f"the interval {'lies below' if verdict == FAILS else 'holds'} 0",
                 len(points))  # fmt: skip


def _smorm(rows: Sequence[Row]) -> list[Finding]:
    def scored(head: str, scorer: str, other: str, as_: str) -> Callable[..., Contrast]:
        kept = [row for row in rows if (row["head"], row["scorer"]) in ((head, scorer), (other, as_))]
        return partial(contrast, kept, {"head": head, "scorer": scorer}, {"head": other, "scorer": as_})

    published = "RewardBench +4.6 (400K), +6.8 (40K) with gemma-2b"
    found = [
        judged(Finding("SMORM-F beats single-objective BT", published, "F of smorm less that of baseline-sm's own BT"),
               scored("smorm", "F", "baseline-sm", "F")),
        judged(Finding("SMORM-L beats multi-objective regression", "RewardBench +9.6 to +13.9",
                       "L of smorm less that of baseline-sm's own regression"),
               scored("smorm", "L", "baseline-sm", "L")),
    ]  # fmt: skip
    for weight, head in (("0.1", "smorm-0.1"), ("1", "smorm")):
        for scorer, what in (("F", "BT"), ("L", "regression")):
            claim = Finding(f"weight ratio {weight} beats the {what} baseline", "fig. 6", f"{scorer} of {head}")
            found.append(judged(claim, scored(head, scorer, "baseline-sm", scorer)))
    alike = Finding("SMORM's F is about as good as M", "figs. 2-5", "F less M of smorm")
    found.append(_about_equal(judged(alike, scored("smorm", "F", "smorm", "M"))))
    return [*found, *(_rising(rows, head, scorer) for head, scorer in (("smorm", "F"), ("baseline-sm", "F")))]


def _about_equal(finding: Finding) -> Finding:
    effect = finding.effects.get("all", NOTHING)
    if effect.low > -MARGIN and effect.high < MARGIN:
        return _with(finding, finding.effects, HOLDS, f"the interval lies within {MARGIN}", finding.conditions)
    if effect.low > MARGIN or effect.high < -MARGIN:
        return _with(finding, finding.effects, FAILS, f"the interval lies outside {MARGIN}", finding.conditions)
    return _with(finding, finding.effects, OPEN, f"the interval reaches beyond {MARGIN}", finding.conditions)


def _rising(rows: Sequence[Row], head: str, scorer: str) -> Finding:
    """Whether the gold of best-of-n still rises at the end of its curve: from half of N to N."""
    falls = head != "smorm"
    finding = Finding(
        f"gold best-of-n {'falls for the baseline' if falls else 'rises for SMORM'}", "figs. 2-5",
        f"{scorer} of {head}: gold at n = N less n = N/2{', sign turned' if falls else ''}",
    )  # fmt: skip
    ends: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if (row["head"], row["scorer"]) == (head, scorer):
            curve = row["best_of_n"]
            step = (curve[-1] - curve[len(curve) // 2 - 1]) / row["scale"]
            ends[row["pool"]][row["seed"]].append(-step if falls else step)
    # One row: what is drawn again are seeds, in the place of prompts.
    pools = {pool: np.array([[np.mean(steps) for steps in seeds.values()]]) for pool, seeds in ends.items()}
    found = verdict_of(finding, Contrast(pools, sum(len(s) for seeds in ends.values() for s in seeds.values())))
    return _with(found, found.effects, found.verdict, f"{found.why} (over seeds alone)", found.conditions)


def _controls(rows: Sequence[Row]) -> list[Finding]:
    """Is what CLF gains over BT the objective's, or the optimiser's and the scaling's?"""
    named = {
        "as published (60 steps or so, a large network)": ("clf-published", "bt-published"),
        "small network, early stopping": ("clf", "bt"),
        "the same, three times the epochs and the patience": ("clf-long", "bt-long"),
        "linear in the features, the same optimiser": ("clf-identity", "bt-identity"),
        "linear BT solved to its optimum": ("clf", "linear"),
    }
    found = [
        judged(
            Finding(f"control: CLF beats BT, {how}", "", f"{clf} less {bt}"), partial(difference, rows, "head", clf, bt)
        )
        for how, (clf, bt) in named.items()
    ]
    gap = Finding("control: CLF's advantage is the optimiser's", "", "(as published) less (three times the epochs)")
    for head in ("bt", "clf"):
        claim = Finding(f"control: prompt-centred features help {head}", "", f"{head}: gemma-centred less gemma")
        some = [row for row in rows if row["head"] == head]
        found.append(judged(claim, partial(difference, some, "features", "gemma-centred", "gemma")))
    both = (partial(difference, rows, "head", *named[how]) for how in list(named)[:3:2])
    return [*found, judged(gap, partial(_less, *both))]


def _choices(rows: Sequence[Row]) -> list[Finding]:
    return [
        judged(Finding(f"choosing pairs by {choice} beats random pairs", "arXiv:2502.04354", f"{choice} less random"),
               partial(difference, rows, "choice", choice, "random"))
        for choice in ("uncertainty", "d-optimal")
    ]  # fmt: skip


def untestable() -> list[Finding]:
    """Claims that the data at hand cannot speak of."""
    return [
        Finding(
            "the variance of verbosity and complexity shrinks on RM-Bench normal", "1.29 -> 0.11, 0.55 -> 0.08",
            "tables 12 and 13 of arXiv:2507.07375",
            why="no dataset here annotates verbosity or complexity, and RM-Bench is a sample of 160 rows",
        )
    ]  # fmt: skip


def mean_gain(rows: Iterable[Row]) -> float:
    """The mean over rows and held-out prompts of the gain; NaN without rows."""
    means = [float(np.nanmean(gains(row))) for row in rows]
    return float(np.mean(means)) if means else math.nan
