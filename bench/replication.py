"""The claims of the two papers, each held against the results of the replication study (bench/studies).

Effects are differences of gains: the gold of best-of-N by a head, less the mean response's, in units of gold's standard
deviation within a prompt. Levels are called as in `bench/studies/replication.yaml`.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.contrasts import (
    PLACE,
    Contrast,
    Row,
    Seeds,
    Value,
    average,
    contrast,
    minus,
    rank_correlation,
    turned_round,
)
from bench.intervals import Floats
from bench.results import connect, run_query
from bench.verdicts import (
    FAILS,
    HOLDS,
    OPEN,
    Finding,
    about_equal,
    falling,
    gains,
    judged,
    last_step,
    more_gain,
    no_worse,
    rising,
    sometimes,
)

MAIN = ("linear", "bt", "clf", "lgbm-fast")  # heads whose pairings are compared
CENTRED = "gemma-centred"  # features of one control alone
JOINT = ("smorm", "smorm-0.01", "smorm-0.1", "smorm-10", "baseline-sm")  # heads with F, L and M
IN_PROMPT = {"same": "cross", "similar": "cross-similar", "diversified": "cross-diversified"}


def load_results(store: Path, study: str) -> list[dict[str, Any]]:
    """The study's results on held-out prompts of the pools that were fitted on, in the order of their cells.

    Each row gets its condition's `level`: the mean error rate of its annotations over seeds. `gains` and `accuracies`
    are arrays, the gains in standard deviations of gold.

    Raises: ValueError if there are none.
    """
    sql = (
        "SELECT * EXCLUDE (study, error, curves, best_of_n, proxy_best_of_n), "
        "avg(error_rate) OVER (PARTITION BY pool, pairing, choice, beta, pairs) AS level "
        "FROM studies WHERE study = ? AND error IS NULL AND gain IS NOT NULL AND judged_on = pool ORDER BY cell, scorer"
    )
    table = run_query(connect(store), sql, [study])
    if not table.num_rows:
        raise ValueError(f"{store} has no results of a study {study!r}; run `pipeline study` on its file first")
    rows: list[dict[str, Any]] = table.drop_columns(["gains", "accuracies"]).to_pylist()
    for row, gain, accuracy in zip(rows, _arrays(table["gains"]), _arrays(table["accuracies"]), strict=True):
        row |= {"gains": gain / row["scale"], "accuracies": accuracy}
    return rows


def load_curves(store: Path, study: str) -> list[dict[str, Any]]:
    """Results of the joint heads and their baseline on all pools, with best-of-n's curves.

    `curves` is gold less the mean in its standard deviations, (prompts, n), NaN from where a prompt's responses end;
    `common` the n that nine in ten prompts have; `proxy` the score's own mean curve up to there, in its deviations.
    """
    sql = (
        "SELECT * EXCLUDE (study, error, gains, accuracies, best_of_n), len(best_of_n) AS common FROM studies "
        f"WHERE study = ? AND error IS NULL AND gain IS NOT NULL AND head IN ({', '.join('?' * len(JOINT))}) "
        "ORDER BY cell, judged_on, scorer"
    )
    table = run_query(connect(store), sql, [study, *JOINT])
    rows: list[dict[str, Any]] = table.drop_columns(["curves"]).to_pylist()
    for row, curves in zip(rows, _matrices(table["curves"]), strict=True):
        row |= {"curves": curves / row["scale"], "proxy": np.array(row["proxy_best_of_n"], dtype=np.float64)}
    return rows


def findings(rows: Sequence[Row], curves: Sequence[Row]) -> list[Finding]:
    """Every claim in the order of the papers; `rows` of `load_results`, `curves` of `load_curves`."""
    random = [row for row in rows if row["choice"] == "random"]
    plain = [row for row in random if row["features"] != CENTRED]
    return [
        *_heads(plain),
        *_pairings(plain),
        *_smorm(plain),
        *_ends([row for row in curves if row["judged_on"] == row["pool"]]),
        *untestable(),
        *_controls(plain),
        *_centring(random),
        *_choices(rows),
    ]


def difference(
    rows: Iterable[Row],
    column: str,
    left: str,
    right: str,
    *,
    where: Callable[[Row], bool] = lambda row: True,
    value: Value,
) -> Contrast:
    """Left less right level of a column, among the rows where something holds."""
    kept = [row for row in rows if row[column] in (left, right) and where(row)]
    return contrast(kept, {column: left}, {column: right}, value=value)


def in_all(rows: Iterable[Row], column: str, levels: Collection[str]) -> list[Row]:
    """Rows of these levels of a column, in the conditions in which all of them were fitted: what can be compared."""
    others = [name for name in PLACE if name not in (column, "scorer")]
    kept = [row for row in rows if row[column] in levels]
    found: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for row in kept:
        found[tuple(row[name] for name in others)].add(row[column])
    return [row for row in kept if found[tuple(row[name] for name in others)] >= set(levels)]


def matched(rows: Iterable[Row]) -> list[Row]:
    """The rows of conditions in which all six pairings were fitted, so that kinds can be compared with each other."""
    return in_all(rows, "pairing", {*IN_PROMPT, *IN_PROMPT.values()})


def _heads(rows: Sequence[Row]) -> Iterator[Finding]:
    noisy, near = (lambda row: 0.05 <= row["level"] <= 0.38), (lambda row: 0.02 <= row["level"] <= 0.08)
    plenty: Callable[[Row], bool] = lambda row: row["pairs"] >= 5000  # noqa: E731 - the three stand side by side
    for clf, bt in (("clf", "bt"), ("clf-published", "bt-published"), ("lgbm", "bt")):
        claim = "CLF is no worse than BT at annotation error rates of 5-38 %"
        at_most = Finding(claim, "shape, 5 seeds", f"{clf} less {bt}")
        yield judged(at_most, partial(difference, rows, "head", clf, bt, where=noisy), no_worse)
    at_few = Finding("BT sometimes wins near 5 % errors", "shape", "bt less clf at realised error rates of 2-8 %")
    yield judged(at_few, partial(difference, rows, "head", "bt", "clf", where=near), sometimes)
    for clf, bt in (("clf", "bt"), ("clf-published", "bt-published")):
        many = Finding("CLF beats BT at 5,000-40,000 annotations", "shape", f"{clf} less {bt}, 5,000 pairs or more")
        yield judged(many, partial(difference, rows, "head", clf, bt, where=plenty))


def _pairings(rows: Sequence[Row]) -> Iterator[Finding]:
    main = [row for row in rows if row["head"] in MAIN]
    heads = ", ".join(MAIN)
    same = Finding("cross-prompt beats same-prompt annotation", "shape", f"cross less same pairs; {heads}")
    yield judged(same, partial(difference, main, "pairing", "cross", "same"))
    alike = matched(main)
    by_kind = {kind: partial(difference, alike, "pairing", cross, kind) for kind, cross in IN_PROMPT.items()}
    for kind in ("similar", "diversified"):
        claim = f"cross-prompt beats same-prompt annotation of {kind} responses"
        yield judged(Finding(claim, "shape", f"cross-{kind} less {kind} pairs; {heads}"), by_kind[kind])
    largest = Finding("the gain of cross-prompt is largest for similar pairs", "shape", "(similar) less (same)")
    smallest = Finding("the gain of cross-prompt is small for diversified pairs", "shape", "(same) less (diversified)")
    of_similar = partial(more_gain, gain=by_kind["similar"])
    of_same = partial(more_gain, gain=by_kind["same"], small=by_kind["diversified"])
    yield judged(largest, partial(_less, by_kind["similar"], by_kind["same"]), of_similar)
    yield judged(smallest, partial(_less, by_kind["same"], by_kind["diversified"]), of_same)
    yield _grows_with_gap(alike)


def _less(one: Callable[..., Contrast], other: Callable[..., Contrast], *, value: Value) -> Contrast:
    return minus(one(value=value), other(value=value))


@dataclass(frozen=True)
class GapPoint:
    """What cross-prompt annotation adds in one condition: to mean |dr| in standard deviations, and to the gains."""

    pool: str
    pairing: str
    gap: float
    differences: Seeds


def gap_points(rows: Sequence[Row], *, value: Value) -> list[GapPoint]:
    """One for each pool, features, head and kind of pairs, over qualities."""
    points = []
    columns = ("pool", "features", "head")
    for pool, features, head in sorted({tuple(row[name] for name in columns) for row in rows}):
        for kind, cross in IN_PROMPT.items():
            some = [r for r in rows if (r["pool"], r["features"], r["head"]) == (pool, features, head)]
            found = difference(some, "pairing", cross, kind, value=value)
            gap = {name: np.mean([r["mean_gap"] for r in some if r["pairing"] == name]) for name in (cross, kind)}
            if pool in found.pools:
                points.append(GapPoint(pool, kind, float(gap[cross] - gap[kind]), found.pools[pool]))
    return points


def _grows_with_gap(rows: Sequence[Row]) -> Finding:
    finding = Finding(
        "the gain of cross-prompt grows with mean |dr|", "strong correlation",
        "Spearman correlation over conditions of what cross adds to mean |dr| with what it adds to the gain",
    )  # fmt: skip
    points = gap_points(rows, value=gains)
    if len(points) < 3:
        return finding.ruled(OPEN, "the study has no fits of this kind")
    effect = rank_correlation(
        [point.gap for point in points], [point.pool for point in points], [point.differences for point in points]
    )
    found = replace(finding, effects={"all": effect}, conditions=len(points))
    if effect.low > 0:
        return found.ruled(HOLDS, "the interval lies above 0")
    return found.ruled(FAILS, "the interval lies below 0") if effect.high < 0 else found.ruled(OPEN, "it holds 0")


def _smorm(rows: Sequence[Row]) -> Iterator[Finding]:
    def less(head: str, scorer: str, other: str, as_: str) -> Callable[..., Contrast]:
        kept = [row for row in rows if (row["head"], row["scorer"]) in ((head, scorer), (other, as_))]
        return partial(contrast, kept, {"head": head, "scorer": scorer}, {"head": other, "scorer": as_})

    # At weight ratio 1, smorm's default, figure 6's claim is the very same contrast: it is not counted twice.
    at_one = "smorm has weight ratio 1, so this is also figure 6's claim of it"
    single = Finding("SMORM-F beats single-objective BT", "RewardBench +4.6 (400K), +6.8 (40K) with gemma-2b",
                     f"F of smorm less that of baseline-sm's own BT; {at_one}")  # fmt: skip
    yield judged(single, less("smorm", "F", "baseline-sm", "F"))
    multi = Finding("SMORM-L beats multi-objective regression", "RewardBench +9.6 to +13.9",
                    f"L of smorm less that of baseline-sm's own regression; {at_one}")  # fmt: skip
    yield judged(multi, less("smorm", "L", "baseline-sm", "L"))
    for scorer, what in (("F", "BT"), ("L", "regression")):
        claim = Finding(f"weight ratio 0.1 beats the {what} baseline", "fig. 6", f"{scorer} of smorm-0.1 less the same")
        yield judged(claim, less("smorm-0.1", scorer, "baseline-sm", scorer))
    for weight, scorer, what in (("0.01", "L", "attribute"), ("10", "F", "BT")):
        claim = Finding(f"at weight ratio {weight} the {what} head falls below its baseline", "fig. 6",
                        f"{scorer} of baseline-sm less that of smorm-{weight}")  # fmt: skip
        yield judged(claim, less("baseline-sm", scorer, f"smorm-{weight}", scorer))
    alike = Finding("SMORM's F is about as good as M", "figs. 2-5", "F less M of smorm")
    yield judged(alike, less("smorm", "F", "smorm", "M"), about_equal)


def _ends(curves: Sequence[Row]) -> Iterator[Finding]:
    """Whether gold still rises, or falls, at the end of best-of-n's curve."""
    largest = max((row["common"] for row in curves), default=0)
    for head, claim, sign, rule in (("smorm", "rises for SMORM", 1, rising),
                                    ("baseline-sm", "falls for the baseline", -1, falling)):  # fmt: skip
        turned = "" if sign > 0 else ", sign turned"
        finding = Finding(f"gold best-of-n {claim}", "figs. 2-5", f"F of {head}: gold at n = N less n = N/2{turned}")
        kept = [row for row in curves if (row["head"], row["scorer"]) == (head, "F")]
        found = average(kept, value=last_step)
        yield rule(finding, found if sign > 0 else turned_round(found), largest=largest)


PUBLISHED, STANDARDISED, LONG = ((f"clf-{kind}", f"bt-{kind}") for kind in ("published", "standardised", "long"))
CONTROLS = {
    "as published: no scaling, a large network, up to 30 epochs of one step (two beyond 5,120 pairs)": PUBLISHED,
    "the same, features standardised": STANDARDISED,
    "small network, early stopping, no scaling": ("clf-unscaled", "bt-unscaled"),
    "the same, features standardised (clf and bt as they are)": ("clf", "bt"),
    "the same, three times the epochs and the patience": LONG,
    "linear in the features, the same optimiser": ("clf-identity", "bt-identity"),
    "linear BT solved to its optimum": ("clf", "linear"),
}


def _controls(rows: Sequence[Row]) -> Iterator[Finding]:
    """Is what CLF gains over BT the objective's, or the optimiser's and the scaling's?

    All in the conditions in which every one of these heads was fitted: else their differences would be the conditions'.
    """
    heads = {head for pair in CONTROLS.values() for head in pair} & {row["head"] for row in rows}
    shared = in_all(rows, "head", heads)
    for how, (clf, bt) in CONTROLS.items():
        finding = Finding(f"control: CLF beats BT, {how}", "", f"{clf} less {bt}")
        yield judged(finding, partial(difference, shared, "head", clf, bt))
    for what, few, many, setup in (
        ("scaling's", PUBLISHED, STANDARDISED, "(as published) less (the same, standardised)"),
        ("optimiser's", STANDARDISED, LONG, "(large network, up to 30 epochs of a step) less (small, to the end)"),
    ):
        finding = Finding(f"control: CLF's advantage is the {what}", "", setup)
        one, other = (partial(difference, shared, "head", *pair) for pair in (few, many))
        yield judged(finding, partial(_less, one, other), partial(more_gain, gain=one))


def _centring(rows: Sequence[Row]) -> Iterator[Finding]:
    for head in ("bt", "clf"):
        claim = Finding(f"control: prompt-centred features help {head}", "", f"{head}: {CENTRED} less gemma")
        some = [row for row in rows if row["head"] == head]
        yield judged(claim, partial(difference, some, "features", CENTRED, "gemma"))


def _choices(rows: Sequence[Row]) -> Iterator[Finding]:
    for choice in ("uncertainty", "d-optimal"):
        claim = f"choosing pairs by {choice} beats random pairs"
        finding = Finding(claim, "arXiv:2502.04354", f"{choice} less random")
        yield judged(finding, partial(difference, rows, "choice", choice, "random"))


def untestable() -> list[Finding]:
    """Claims that the data at hand cannot speak of."""
    return [
        Finding(
            "the variance of verbosity and complexity shrinks on RM-Bench normal", "1.29 -> 0.11, 0.55 -> 0.08",
            "tables 12 and 13 of arXiv:2507.07375",
            why="no dataset here annotates verbosity or complexity, and RM-Bench is a sample of 160 rows",
        )
    ]  # fmt: skip


def _arrays(column: pa.ChunkedArray) -> list[Floats]:
    """Lists of numbers as arrays, null as NaN; a Python object for each number would take gigabytes."""
    found: list[Floats] = []
    for chunk in column.chunks:
        numbers, offsets = chunk.values.to_numpy(zero_copy_only=False), chunk.offsets.to_numpy()
        found += [np.asarray(one, dtype=np.float64) for one in np.split(numbers[: offsets[-1]], offsets[:-1])[1:]]
    return found


def _matrices(column: pa.ChunkedArray) -> list[Floats]:
    """Lists of lists as matrices, short rows filled up with NaN."""
    found: list[Floats] = []
    for chunk in column.chunks:
        inner = _arrays(pa.chunked_array([chunk.values]))
        for first, last in zip(chunk.offsets.to_numpy()[:-1], chunk.offsets.to_numpy()[1:], strict=True):
            rows = inner[first:last]
            matrix = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
            for place, row in enumerate(rows):
                matrix[place, : len(row)] = row
            found.append(matrix)
    return found
