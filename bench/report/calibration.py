"""Calibration: reliability curves of the best of each head, and the numbers of all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bench.calibration import BINS
from bench.intervals import Estimate
from bench.report.charts import Axis, Tick
from bench.report.curves import PANEL_HEIGHT, CurveChart, Line, curve_chart
from bench.report.leaderboard import SHOWN_ROWS
from bench.report.names import Name, Origin
from bench.report.source import NONE, Answer, Score, Source, keyed, means, shown_and_folded

NAMED = 6  # panels
CURVES = ("reliability", "reliability_confidence", "reliability_calibrated", "reliability_confidence_calibrated")
NUMBERS = ("calibration_error", "calibration_error_calibrated", "log_loss", "log_loss_calibrated", "temperature")
LEAST_PAIRS = 5  # of a bin that is drawn: fewer say nothing, and would stretch the axis
DIAGONAL = [Estimate(x, 0, math.nan, math.nan) for x in (0.5, 1.0)]


@dataclass(frozen=True)
class Reliability:
    """One head's reliability curve, as its scores are and with a temperature, and how far each is off."""

    name: Name
    chart: CurveChart
    error: Estimate
    error_calibrated: Estimate
    temperature: float


@dataclass(frozen=True)
class Calibration:
    """Calibration on one dataset; the first `shown` rows of the table are shown, the others fold away."""

    dataset: str
    panels: tuple[Reliability, ...]
    across: list[Tick]
    table: tuple[tuple[Name, tuple[Estimate, ...]], ...]
    shown: int
    origin: Origin
    answer: Answer


def calibrations(source: Source) -> list[Calibration]:
    """One figure for each dataset on which s(margin) was judged."""
    return [_calibration(source, dataset) for dataset in source.datasets_with("calibration_error")]


def _calibration(source: Source, dataset: str) -> Calibration:
    answer = source.ask(means(dataset, [*CURVES, *NUMBERS], where="m.subset IS NULL"))
    found = {score: keyed(rows, "metric", "at") for score, rows in answer.by_score().items()}
    ranked = source.ranked(dataset, found)
    shown, folded = shown_and_folded(source, ranked, SHOWN_ROWS)
    ordered = [*shown, *folded]
    return Calibration(
        dataset,
        _panels(source, found, source.faces(ranked)[:NAMED]),
        [Tick(100 * (x - 0.5) / 0.5, f"{100 * x:.0f}") for x in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)],
        tuple((source.name(score), _numbers(found[score])) for score in ordered),
        len(shown),
        Origin.of(map(source.name, ordered), dataset),
        answer,
    )


def _panels(
    source: Source, found: Mapping[Score, Mapping[tuple[str, float | None], Estimate]], faces: list[Score]
) -> tuple[Reliability, ...]:
    """The curves of the faces, on one vertical axis."""
    lines = {
        score: [_bins(found[score], "_calibrated", "calibrated"), _bins(found[score], "", "raw")] for score in faces
    }
    lows = [end for of_score in lines.values() for line in of_score for one in line.y for end in (one.low, one.value)]
    axis = Axis.over([0.5, 1.0, *lows], steps=6)
    panels = []
    for score, of_score in lines.items():
        both = [*of_score, Line("diagonal", "", [0.5, 1.0], DIAGONAL)]
        chart = curve_chart(both, left=0.5, right=1.0, height=PANEL_HEIGHT, axis=axis, scale=100)
        error, calibrated, *_, temperature = _numbers(found[score])
        panels.append(Reliability(source.name(score), chart, error, calibrated, temperature.value))
    return tuple(panels)


def _bins(found: Mapping[tuple[str, float | None], Estimate], suffix: str, css: str) -> Line:
    edges = [0.5 + k / (2 * BINS) for k in range(BINS)]
    confidence = [_near(found, f"reliability_confidence{suffix}", edge) for edge in edges]
    accuracy = [_near(found, f"reliability{suffix}", edge) for edge in edges]
    accuracy = [one if one.n >= LEAST_PAIRS else NONE for one in accuracy]
    return Line(css, "", [one.value for one in confidence], accuracy, dotted=True)


def _near(found: Mapping[tuple[str, float | None], Estimate], metric: str, edge: float) -> Estimate:
    """The bin of an edge: edges are sums of tenths, so equal ones may differ in their last digit."""
    return next((v for (name, at), v in found.items() if name == metric and abs((at or 0) - edge) < 1e-6), NONE)


def _numbers(found: Mapping[tuple[str, float | None], Estimate]) -> tuple[Estimate, ...]:
    return tuple(found.get((metric, None), NONE) for metric in NUMBERS)
