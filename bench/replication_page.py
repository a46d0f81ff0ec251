"""docs/replication.md and its figures, made from a study's results: no number is written by hand."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.contrasts import Contrast, Row, estimates
from bench.figures import Panel, Series, interval_figure, line_figure
from bench.intervals import Estimate, Floats
from bench.replication import IN_PROMPT, Finding, difference, findings, gains, gap_points, load_results, matched
from bench.results import connect, run_query
from bench.tables import as_markdown
from cache.files import write_atomically

HEADS = ("linear", "bt", "clf", "lgbm-fast", "lgbm")
GAIN = "gain, standard deviations"


def write_replication(store: Path, study: str, page: Path) -> list[Finding]:
    """Write the page, and the figures beside it in `replication/`.

    Raises: ValueError if the store has no results of the study.
    """
    rows = load_results(store, study)
    random = [row for row in rows if row["choice"] == "random"]
    found = findings(rows)
    drawn = {name: svg for name, svg in figures(random, rows).items() if svg}
    for name, svg in drawn.items():
        _write(page.parent / "replication" / f"{name}.svg", svg)
    _write(page, "\n".join(_page(store, study, found, list(drawn))) + "\n")
    return found


FIGURES = {
    "figure1": "Heads as published and as here, by pool: gain of best-of-N over the mean response, over same- and "
    "cross-prompt annotations of all qualities.",
    "figure2": "Annotation quality: gain against the realised error rate, same-prompt pairs.",
    "figure3": "Annotation quantity: gain against annotated pairs, same-prompt pairs.",
    "figure4": "Cross-prompt against same-prompt annotation: difference in gain by head and pool.",
    "figure5": "The same for similar and diversified responses.",
    "figure6": "What cross-prompt annotation adds to the gain, against what it adds to mean |dr|: a point for each "
    "pool, head, set of features and kind of pairs.",
    "figure7": "Choosing which pairs to annotate: gain against annotated pairs.",
    "figure8": "Gold of best-of-n by SMORM's F and M and by its single-task twin's F, less the mean.",
}


def figures(rows: Sequence[Row], every: Sequence[Row]) -> dict[str, str]:
    """SVG by name; empty where the study has nothing to show."""
    pools = sorted({row["pool"] for row in rows})
    same = [row for row in rows if row["pairing"] == "same"]
    alike = matched(rows)
    chosen = {row["pool"] for row in every if row["choice"] != "random"}
    return {
        "figure1": _bars(rows, pools),
        "figure2": _curves(
            _at_smallest(same), pools, HEADS, "head", lambda row: round(100 * row["level"], 1), x="error rate, %"
        ),
        "figure3": _curves(
            _of_all_qualities(same), pools, HEADS, "head", lambda row: row["pairs"],
            x="annotated pairs", logarithmic=True,
        ),
        "figure4": _differences(rows, ("same",), pools),
        "figure5": _differences(alike, ("same", "similar", "diversified"), pools),
        "figure6": _gaps(alike),
        "figure7": _curves(
            _like_chosen(every), sorted(chosen), ("random", "uncertainty", "d-optimal"), "choice",
            lambda row: row["pairs"], x="annotated pairs", logarithmic=True,
        ),
        "figure8": _best_of_n(rows),
    }  # fmt: skip


def _bars(rows: Sequence[Row], pools: Sequence[str]) -> str:
    heads = ("linear", "bt-published", "clf-published", "bt", "clf", "lgbm", "lgbm-fast")
    shown = [
        (f"{head}, {pool}", pool, _mean(r for r in rows if (r["head"], r["pool"]) == (head, pool)))
        for pool in pools
        for head in heads
    ]
    shown = [row for row in shown if row[2].n]
    return interval_figure(shown, x=GAIN) if shown else ""


def _curves(
    rows: Sequence[Row],
    pools: Sequence[str],
    levels: Sequence[str],
    column: str,
    at: Callable[[Row], float],
    *,
    x: str,
    logarithmic: bool = False,
) -> str:
    panels = []
    for pool in pools:
        series = []
        for level in levels:
            by_place: dict[float, list[Row]] = defaultdict(list)
            for row in rows:
                if (row["pool"], row[column]) == (pool, level):
                    by_place[at(row)].append(row)
            places = sorted(by_place)
            if len(places) > 1:
                series.append(Series(level, places, [_mean(by_place[place]) for place in places]))
        if series:
            panels.append(Panel(pool, series))
    return line_figure(panels, x=x, y=GAIN, logarithmic=logarithmic) if panels else ""


def _differences(rows: Sequence[Row], kinds: Sequence[str], pools: Sequence[str]) -> str:
    shown = []
    for kind in kinds:
        for head in HEADS[:4]:
            some = [row for row in rows if row["head"] == head]
            effects = estimates(difference(some, "pairing", IN_PROMPT[kind], kind))
            shown += [(f"{head}, {pool}: {IN_PROMPT[kind]} - {kind}", kind if len(kinds) > 1 else pool, effects[pool])
                      for pool in pools if pool in effects]  # fmt: skip
    return interval_figure(shown, x=f"difference in {GAIN}") if shown else ""


def _gaps(rows: Sequence[Row]) -> str:
    by_kind: dict[str, list[tuple[float, Estimate]]] = defaultdict(list)
    for point in gap_points([row for row in rows if row["head"] in HEADS[:4]]):
        by_kind[point.pairing].append((point.gap, estimates(Contrast({"": point.differences}, 1))[""]))
    series = [
        Series(kind, *zip(*sorted(some, key=lambda each: each[0]), strict=True)) for kind, some in by_kind.items()
    ]
    panel = [Panel("all pools", series)]
    x = "added mean |dr|, standard deviations"
    return line_figure(panel, x=x, y=f"difference in {GAIN}", points=True) if series else ""


def _best_of_n(rows: Sequence[Row]) -> str:
    panels = []
    joint = [row for row in rows if row["head"] in ("smorm", "baseline-sm") and row["scorer"] in ("F", "M")]
    for pool in sorted({row["pool"] for row in joint}):
        series = []
        for head, scorer in (("smorm", "F"), ("smorm", "M"), ("baseline-sm", "F")):
            some = [r for r in joint if (r["pool"], r["head"], r["scorer"]) == (pool, head, scorer)]
            curves = [np.array(row["best_of_n"]) / row["scale"] for row in some]
            if curves:
                by_n = np.array(curves).T
                series.append(Series(f"{head} {scorer}", range(1, len(by_n) + 1), [_over_fits(fits) for fits in by_n]))
        panels.append(Panel(pool, series))
    return line_figure(panels, x="n", y=GAIN) if panels else ""


def _over_fits(values: Floats) -> Estimate:
    """Mean and two standard errors over fits."""
    error = 2 * float(values.std()) / max(len(values), 1) ** 0.5
    return Estimate(float(values.mean()), len(values), float(values.mean()) - error, float(values.mean()) + error)


def _mean(rows: Iterable[Row]) -> Estimate:
    """Mean gain over conditions, its interval over seeds and held-out prompts; rows are of one pool."""
    by_seed: dict[int, list[Floats]] = defaultdict(list)
    for row in rows:
        by_seed[row["seed"]].append(gains(row))
    if not by_seed:
        return Estimate(float("nan"), 0, float("nan"), float("nan"))
    table = np.stack([np.mean(values, axis=0) for values in by_seed.values()])
    return estimates(Contrast({"": table}, len(table)))[""]


def _at_smallest(rows: Sequence[Row]) -> list[Row]:
    """Of each pool the rows of the quantity at which most qualities were fitted."""
    levels: dict[tuple[str, int], set[float]] = defaultdict(set)
    for row in rows:
        levels[row["pool"], row["pairs"]].add(row["beta"])
    best = {pool: max((p for q, p in levels if q == pool), key=lambda p: len(levels[pool, p])) for pool, _ in levels}
    return [row for row in rows if row["pairs"] == best[row["pool"]]]


def _of_all_qualities(rows: Sequence[Row]) -> list[Row]:
    """Of each pool and head the rows of the qualities at its largest quantity, and of quantities that have all of them.

    Quantities that were fitted at other qualities could not be compared.
    """
    levels: dict[tuple[str, str], dict[int, set[float]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        levels[row["pool"], row["head"]][row["pairs"]].add(row["beta"])
    kept = {kind: by_pairs[max(by_pairs)] for kind, by_pairs in levels.items()}
    return [
        row
        for row in rows
        for wanted in [kept[row["pool"], row["head"]]]
        if row["beta"] in wanted and wanted <= levels[row["pool"], row["head"]][row["pairs"]]
    ]


def _like_chosen(rows: Sequence[Row]) -> list[Row]:
    """The rows where every choice was made."""
    columns = ("pool", "features", "head", "pairing", "beta", "pairs")
    chosen = {tuple(row[name] for name in columns) for row in rows if row["choice"] != "random"}
    return [row for row in rows if tuple(row[name] for name in columns) in chosen]


def _page(store: Path, study: str, found: Sequence[Finding], drawn: Sequence[str]) -> list[str]:
    lines = [
        "# Replication",
        "",
        f"Made by `make replicate` from the results of the study `{study}`; nothing here is written by hand.",
        "",
        "## What was run",
        "",
        _markdown(store, _RUN, study),
        "Annotations of each pool, mean |dr| in standard deviations of gold within a prompt:",
        "",
        _markdown(store, _POOLS, study),
        "How much there is to find: `linear` on the most same-prompt pairs, and on these the best annotations. Where",
        "its accuracy is near one half, features say nothing of gold, and no comparison on them says anything.",
        "",
        _markdown(store, _SIGNAL, study),
        "## Verdicts",
        "",
        "Effects are differences of gains: gold of best-of-N less the mean response's on held-out prompts, in standard",
        "deviations of gold within a prompt. Pools weigh alike. Intervals are 95 % percentile intervals over prompts",
        "and seeds; they are not adjusted for there being many of them. Beside them stands the same comparison by the",
        "share of a held-out prompt's pairs that are ranked as gold ranks them. Verdicts go by the gains.",
        "",
        "| claim | published | here | effect | low | high | in accuracy | fits compared | verdict | why |",
        "|---|---|---|---:|---:|---:|---:|---:|---|---|",
        *(_verdict(one) for one in found),
        "",
        "### By pool",
        "",
        *_by_pool(found),
        "",
        "## Figures",
        "",
    ]
    for name in drawn:
        lines += [f"![{name}](replication/{name}.svg)", "", FIGURES[name], ""]
    return lines


def _verdict(one: Finding) -> str:
    effect = one.effects.get("all")
    numbers = [f"{value:+.3f}" for value in (effect.value, effect.low, effect.high)] if effect else ["", "", ""]
    compared = [_interval(one.accuracy), f"{one.conditions:,}"]
    cells = [one.claim, one.published, one.setup, *numbers, *compared, f"**{one.verdict}**", one.why]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _by_pool(found: Sequence[Finding]) -> list[str]:
    pools = sorted({pool for one in found for pool in one.effects if pool != "all"})
    lines = [f"| claim | here | {' | '.join(pools)} |", f"|---|---|{'---|' * len(pools)}"]
    for one in found:
        if set(one.effects) - {"all"}:
            cells = [_interval(one.effects.get(pool)) for pool in pools]
            lines.append(f"| {one.claim} | {one.setup} | {' | '.join(cells)} |".replace("|dr|", "\\|dr\\|"))
    return lines


def _interval(effect: Estimate | None) -> str:
    return f"{effect.value:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]" if effect else ""


def _markdown(store: Path, sql: str, study: str) -> str:
    return as_markdown(run_query(connect(store), sql, [study]))


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: _put(temporary, text))


def _put(path: Path, text: str) -> Any:  # noqa: ANN401 - what write_text gives is not looked at
    return path.write_text(text, encoding="utf-8")


_RUN = """
WITH fits AS (SELECT DISTINCT cell, head, features, error, epochs, fit_seconds, seconds FROM studies WHERE study = ?)
SELECT head, features, count(*) AS fits, count(error) AS failed, avg(epochs) AS epochs,
       avg(fit_seconds) AS fit_seconds, avg(seconds) AS seconds, sum(seconds) / 3600 AS hours
FROM fits GROUP BY ALL ORDER BY ALL"""
_SIGNAL = """
WITH levels AS (
    SELECT pool, features, pairs, beta, avg(accuracy) AS accuracy, avg(gain / scale) AS gain,
           avg(oracle / scale) AS oracle
    FROM studies
    WHERE study = ? AND judged_on = pool AND head = 'linear' AND pairing = 'same' AND choice = 'random'
    GROUP BY pool, features, pairs, beta
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY pool, features ORDER BY pairs DESC, beta DESC) AS place FROM levels
)
SELECT * EXCLUDE (place) FROM ranked WHERE place = 1 ORDER BY pool, features"""
_POOLS = """
SELECT pool, pairing, list_sort(list(DISTINCT pairs)) AS pairs, count(DISTINCT beta) AS qualities,
       min(error_rate) AS least_errors, max(error_rate) AS most_errors, avg(mean_gap) AS mean_gap,
       max(n) AS held_out_prompts, avg(oracle / scale) AS oracle
FROM studies WHERE study = ? AND judged_on = pool GROUP BY ALL ORDER BY ALL"""
