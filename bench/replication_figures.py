"""The figures of docs/replication.md, in the shape of the papers' own."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from bench.best_of_n import kl_upper_bound
from bench.contrasts import Contrast, Row, Value, average, estimates
from bench.figures import Panel, Series, interval_figure, line_figure
from bench.intervals import NOTHING, Estimate, Floats
from bench.replication import CENTRED, IN_PROMPT, difference, gap_points, in_all, matched
from bench.verdicts import gains

HEADS = ("linear", "bt", "clf", "lgbm-fast", "lgbm")
SHOWN = ("linear", "bt-published", "clf-published", "bt", "clf", "lgbm", "lgbm-fast")
WEIGHTS = {"smorm-0.01": 0.01, "smorm-0.1": 0.1, "smorm": 1.0, "smorm-10": 10.0}  # weight ratio by head
CURVES = (("smorm", "F"), ("smorm", "M"), ("baseline-sm", "F"))
GAIN = "gain, standard deviations"
CAPTIONS = {
    "figure1": "Heads as published and as here, by pool: gain of best-of-N over the mean response, in the conditions "
    "in which all heads shown were fitted (same- and cross-prompt annotations).",
    "figure2": "Annotation quality: gain against the realised error rate, same-prompt pairs.",
    "figure3": "Annotation quantity: gain against annotated pairs, same-prompt pairs.",
    "figure4": "Cross-prompt against same-prompt annotation: difference in gain by head and pool.",
    "figure5": "The same for similar and diversified responses.",
    "figure6": "What cross-prompt annotation adds to the gain, against what it adds to mean |dr|: a point for each "
    "pool, head, set of features and kind of pairs.",
    "figure7": "Choosing which pairs to annotate: gain against annotated pairs.",
    "figure8": "SMORM, figures 2 and 3: gold and proxy of best-of-n less the mean, each in its own standard deviations "
    "within a prompt, against the bound on KL, on held-out prompts of the pool fitted on. Bands (gold alone) are over "
    "prompts and seeds.",
    "figure9": "SMORM, figure 4: the same on pools that the head has seen nothing of (fitted on, to judged on).",
    "figure10": "SMORM, figure 6: gain by the weight of regression beside Bradley-Terry; flat lines are the "
    "single-task baselines, which have no such weight.",
}


def figures(rows: Sequence[Row], curves: Sequence[Row]) -> dict[str, str]:
    """SVG by name, of what the study has something to show of; rows and curves as for `findings`."""
    # Centred features were fitted in some conditions alone: in a mean they would move curves where these begin.
    plain = [row for row in rows if row["features"] != CENTRED]
    random = [row for row in plain if row["choice"] == "random"]
    pools = sorted({row["pool"] for row in random})
    chosen = sorted({row["pool"] for row in plain if row["choice"] != "random"})
    same = [row for row in random if row["pairing"] == "same"]
    alike = matched(random)
    found = {
        "figure1": _bars(random, pools),
        "figure2": _curves(
            _at_smallest(same), pools, HEADS, "head", lambda row: round(100 * row["level"], 1), x="error rate, %"
        ),
        "figure3": _curves(
            _of_all_qualities(same), pools, HEADS, "head", lambda row: row["pairs"],
            x="annotated pairs", logarithmic=True,
        ),
        "figure4": _differences(random, ("same",), pools),
        "figure5": _differences(alike, ("same", "similar", "diversified"), pools),
        "figure6": _gaps(alike),
        "figure7": _curves(
            _like_chosen(plain), chosen, ("random", "uncertainty", "d-optimal"), "choice",
            lambda row: row["pairs"], x="annotated pairs", logarithmic=True,
        ),
        "figure8": _best_of_n([row for row in curves if row["judged_on"] == row["pool"]]),
        "figure9": _best_of_n([row for row in curves if row["judged_on"] != row["pool"]]),
        "figure10": _weights(same),
    }  # fmt: skip
    return {name: svg for name, svg in found.items() if svg}


def _bars(rows: Sequence[Row], pools: Sequence[str]) -> str:
    shown = []
    for pool in pools:
        here = [row for row in rows if row["pool"] == pool]
        heads = [head for head in SHOWN if any(row["head"] == head for row in here)]
        shared = in_all(here, "head", heads)
        bars = [(f"{head}, {pool}", pool, mean_of(r for r in shared if r["head"] == head)) for head in heads]
        shown += [bar for bar in bars if bar[2].n]
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
                series.append(Series(level, places, [mean_of(by_place[place]) for place in places]))
        if series:
            panels.append(Panel(pool, series))
    return line_figure(panels, x=x, y=GAIN, logarithmic=logarithmic) if panels else ""


def _differences(rows: Sequence[Row], kinds: Sequence[str], pools: Sequence[str]) -> str:
    shown = []
    for kind in kinds:
        for head in HEADS[:4]:
            some = [row for row in rows if row["head"] == head]
            effects = estimates(difference(some, "pairing", IN_PROMPT[kind], kind, value=gains))
            shown += [(f"{head}, {pool}: {IN_PROMPT[kind]} - {kind}", kind if len(kinds) > 1 else pool, effects[pool])
                      for pool in pools if pool in effects]  # fmt: skip
    return interval_figure(shown, x=f"difference in {GAIN}") if shown else ""


def _gaps(rows: Sequence[Row]) -> str:
    by_kind: dict[str, list[tuple[float, Estimate]]] = defaultdict(list)
    for point in gap_points([row for row in rows if row["head"] in HEADS[:4]], value=gains):
        effect = estimates(Contrast({point.pool: point.differences}, 1))[point.pool]
        by_kind[point.pairing].append((point.gap, effect))
    series = [
        Series(kind, *zip(*sorted(some, key=lambda each: each[0]), strict=True)) for kind, some in by_kind.items()
    ]
    panel = [Panel("all pools", series)]
    x = "added mean |dr|, standard deviations"
    return line_figure(panel, x=x, y=f"difference in {GAIN}", points=True) if series else ""


def _best_of_n(curves: Sequence[Row]) -> str:
    """A panel for each pool fitted on and pool judged on."""
    places = sorted({(row["pool"], row["judged_on"]) for row in curves})
    panels = []
    for pool, target in places:
        here = [row for row in curves if (row["pool"], row["judged_on"]) == (pool, target)]
        title = pool if pool == target else f"{pool} to {target}"
        panels.append(Panel(title, list(_gold_and_proxy(here))))
    return line_figure(panels, x="bound on KL, nats", y="above the mean, standard deviations") if panels else ""


def _gold_and_proxy(rows: Sequence[Row]) -> Iterator[Series]:
    """Of each head's score, along KL; rows are of one pool, judged on one."""
    for head, scorer in CURVES:
        some = [row for row in rows if (row["head"], row["scorer"]) == (head, scorer)]
        if some:
            ns = range(1, some[0]["common"] + 1)
            kl = [kl_upper_bound(n) for n in ns]
            yield Series(f"{head} {scorer}, gold", kl, [mean_of(some, value=_at(n)) for n in ns])
            if scorer == "F":
                proxy = np.mean([row["proxy"] for row in some], axis=0).tolist()
                yield Series(f"{head} {scorer}, proxy", kl, [Estimate(one, len(some), one, one) for one in proxy])


def _at(n: int) -> Value:
    """Gold of best of n for each prompt that has all the n of the figure: along the curve they are the same."""

    def value(row: Row) -> Floats:
        curves: Floats = row["curves"]
        return np.where(np.isfinite(curves[:, row["common"] - 1]), curves[:, n - 1], np.nan)

    return value


def _weights(rows: Sequence[Row]) -> str:
    """F and L by the weight of regression, in conditions that all weights and the baseline have."""
    shared = in_all(rows, "head", {*WEIGHTS, "baseline-sm"})
    panels = []
    for pool in sorted({row["pool"] for row in shared}):
        series = []
        for scorer in ("F", "L"):
            here = [row for row in shared if (row["pool"], row["scorer"]) == (pool, scorer)]
            by_head = {head: mean_of(r for r in here if r["head"] == head) for head in (*WEIGHTS, "baseline-sm")}
            at = list(WEIGHTS.values())
            series.append(Series(f"smorm {scorer}", at, [by_head[head] for head in WEIGHTS]))
            series.append(Series(f"baseline-sm {scorer}", at, [by_head["baseline-sm"]] * len(at)))
        panels.append(Panel(pool, series))
    return line_figure(panels, x="weight ratio", y=GAIN, logarithmic=True) if panels else ""


def mean_of(rows: Iterable[Row], *, value: Value = gains) -> Estimate:
    """Mean over conditions of rows of one pool, its interval over seeds and held-out prompts."""
    found = estimates(average(rows, value=value))
    assert len(found) <= 2, found
    return found.get("all", NOTHING)


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
