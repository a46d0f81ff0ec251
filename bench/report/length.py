"""Length: how far each score follows it within a prompt, and its accuracy where both responses are as long."""

import math
from dataclasses import dataclass

from markupsafe import Markup

from bench.intervals import Estimate
from bench.report.charts import Axis, Tick, axis_labels, interval_row
from bench.report.leaderboard import CHANCE, SHOWN_ROWS
from bench.report.names import Name, Origin
from bench.report.source import NONE, Answer, Score, Source, keyed, means, shown_and_folded

METRICS = ("length_spearman_within", "pair_accuracy", "pair_accuracy_length_matched")


@dataclass(frozen=True)
class LengthRow:
    """One head: correlation with length, accuracy on all pairs and on pairs of about one length, and their plots."""

    name: Name
    correlation: Estimate
    accuracy: Estimate
    matched: Estimate
    correlation_plot: Markup
    accuracy_plot: Markup


@dataclass(frozen=True)
class LengthBias:
    """Length on one dataset; the first `shown` rows are shown, the others fold away.

    Attributes:
        length: what choosing the longer response gets, NaN where not judged.
    """

    dataset: str
    rows: tuple[LengthRow, ...]
    shown: int
    correlation_ticks: list[Tick]
    accuracy_ticks: list[Tick]
    length: Estimate
    origin: Origin
    answer: Answer


def length_biases(source: Source) -> list[LengthBias]:
    """One table for each dataset on which length was looked at."""
    found = [_length_bias(source, dataset) for dataset in source.datasets_with(METRICS[0])]
    return [one for one in found if one.rows]


def _length_bias(source: Source, dataset: str) -> LengthBias:
    answer = source.ask(means(dataset, METRICS, where="m.subset IS NULL"))
    found = {score: keyed(rows, "metric") for score, rows in answer.by_score().items()}
    length = found.get(Score("", "length"), {}).get("pair_accuracy", NONE)
    judged = [score for score in found if score.group and METRICS[0] in found[score]]
    shown, folded = shown_and_folded(source, source.ranked(dataset, judged), SHOWN_ROWS)
    values = [(score, [found[score].get(metric, NONE) for metric in METRICS]) for score in [*shown, *folded]]
    correlations = Axis.over([0.0, *(end for _, line in values for end in _ends(line[0]))])
    accuracies = Axis.over(
        [CHANCE, length.value, *(end for _, line in values for one in line[1:] for end in _ends(one))]
    )
    rows = [
        LengthRow(
            name=source.name(score),
            correlation=correlation,
            accuracy=accuracy,
            matched=matched,
            correlation_plot=interval_row(correlations, correlation, references=[("chance", 0.0)]),
            accuracy_plot=interval_row(
                accuracies,
                accuracy,
                references=[("chance", CHANCE), ("length", length.value)],
                other=matched if math.isfinite(matched.value) else None,
            ),
        )
        for score, (correlation, accuracy, matched) in values
    ]
    origin = Origin.of((row.name for row in rows), dataset)
    ticks = axis_labels(correlations), axis_labels(accuracies, scale=100)
    return LengthBias(dataset, tuple(rows), len(shown), *ticks, length, origin, answer)


def _ends(one: Estimate) -> tuple[float, float, float]:
    return one.low, one.value, one.high
