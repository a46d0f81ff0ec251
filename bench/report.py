"""The report: one HTML file that needs no network, made of what `findings` gathers and `charts` draws.

Every text from the store passes through jinja2's autoescape.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.charts import MINUS, Axis, CurveChart, Line, Tick, axis_labels, curve_chart, interval_row
from bench.findings import CONTROL, AttributeRow, Board, Curve, CurveSet, Findings, Name, gather
from bench.intervals import Estimate
from cache.files import write_atomically

NAMED_CURVES = 6  # as many colours as can be told apart; further heads are thin and grey
SHOWN_ROWS = 24  # of a leaderboard before the rest folds away
TABLE_ROWS = 12  # of the tables by n and by subset
CHANCE = 0.5
DASH = "\N{EN DASH}"  # of a number that is not there
LEAST_R2 = -0.5  # of the attribute figure: below it every value says the same, and would squeeze the others


@dataclass(frozen=True)
class Origin:
    """What a table's heads were fitted on, and whether each row must say it.

    Attributes:
        note: a sentence for above the table; "" when all were fitted on the very dataset they are judged on.
        told: whether rows say it, because the same head stands there fitted on different data.
    """

    note: str
    told: bool

    @classmethod
    def of(cls, names: Iterable[Name], dataset: str) -> "Origin":
        """Over the names of one table."""
        different = set(names)
        origins = sorted({name.fitted_on for name in different})
        if origins == [dataset]:
            return cls(note="", told=False)
        if len(origins) == 1:
            return cls(note=f"Fitted on {origins[0]}.", told=False)
        told = len({(name.head, name.detail) for name in different}) < len(different)
        return cls(note="" if told else "Fitted on different data: see Runs.", told=told)

    def called(self, name: Name) -> str:
        """The name in one line of text."""
        details = [name.detail, f"fitted on {name.fitted_on}" if self.told else ""]
        return f"{name.head} ({', '.join(filter(None, details))})" if any(details) else name.head


@dataclass(frozen=True)
class BoardView:
    """A leaderboard as the page shows it: rows with their plots, the shared axis, and what is to be said first."""

    board: Board
    plots: tuple[Markup, ...]
    ticks: list[Tick]
    remarks: tuple[str, ...]
    origin: Origin

    @property
    def seeded(self) -> bool:
        """Whether seeds are shown as dots: some head has several."""
        return any(len(row.seeds) > 1 for row in self.board.rows)

    @property
    def length(self) -> bool:
        """Whether the length control was judged beside some head."""
        return any(row.length == row.length for row in self.board.rows)

    @property
    def shuffled(self) -> bool:
        """Whether some head has a run on shuffled labels."""
        return any(math.isfinite(row.shuffled) for row in self.board.rows)


@dataclass(frozen=True)
class CurvesView:
    """A best-of-n figure as the page shows it."""

    curves: CurveSet
    chart: CurveChart
    unnamed: int
    prompts: tuple[int, int]  # at n = 1 and at the largest n
    at: tuple[int, ...]  # the n of the table
    table: tuple[tuple[Name, tuple[Estimate, ...]], ...]
    origin: Origin


@dataclass(frozen=True)
class AttributesView:
    """An attribute table as the page shows it."""

    dataset: str
    rows: tuple[tuple[AttributeRow, Markup], ...]
    ticks: list[Tick]
    origin: Origin


def write_report(store: Path, output: Path) -> None:
    """Write the report on a store to `output`, replacing it.

    Raises: ValueError if there is no such store.
    """
    page = render(gather(store))
    write_atomically(output, lambda temporary: _write(temporary, page))


def render(findings: Findings) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "count": count, "seconds": seconds}
    return environment.get_template("report.html.jinja").render(
        findings=findings,
        boards=[board_view(board) for board in findings.boards],
        curves=[curves_view(curves) for curves in findings.curves if _longest(curves) > 1],
        attributes=[attributes_view(dataset, rows) for dataset, rows in findings.attributes.items()],
        totals=_totals(findings),
        shown_rows=SHOWN_ROWS,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def board_view(board: Board) -> BoardView:
    """Plots for a leaderboard's rows on one axis that holds chance and the controls."""
    shown = [end for row in board.rows for end in (row.accuracy.value, row.accuracy.low, row.accuracy.high, *row.seeds)]
    axis = Axis.over([CHANCE, *shown, *(control for row in board.rows for control in (row.length, row.shuffled))])
    plots = [
        interval_row(
            axis,
            row.accuracy,
            seeds=row.seeds,
            references=[("chance", CHANCE), ("length", row.length)],
            shuffled=row.shuffled,
        )
        for row in board.rows
    ]
    origin = Origin.of((row.name for row in board.rows), board.dataset)
    said = tuple(remarks(board, origin))
    return BoardView(board, tuple(plots), axis_labels(axis, scale=100), said, origin)


def remarks(board: Board, origin: Origin) -> list[str]:
    """What a careful reader would say first: who leads, who cannot be told from it, from chance, or from length."""
    best, rows = board.rows[0], board.rows
    accuracy = best.accuracy
    leads = " is highest" if len(rows) > 1 else ""
    said = [f"{origin.called(best.name)}{leads}: {_with_interval(accuracy)} of {count(accuracy.n)} pairs."]
    within = sum(row.accuracy.high >= accuracy.value for row in rows[1:])
    if len(rows) > 1:
        said.append(f"The intervals of {within} of the other {len(rows) - 1} reach that value.")
    at_chance = sum(row.accuracy.low <= CHANCE for row in rows)
    if at_chance:
        said.append(f"{at_chance} of {len(rows)} cannot be told from chance: the interval includes 50 %.")
    fewest, most = min(row.accuracy.n for row in rows), max(row.accuracy.n for row in rows)
    if most > 1.05 * fewest:  # ties alone make small differences
        said.append(
            f"Rows rest on {count(fewest)} to {count(most)} pairs: each leaves out the prompts it was fitted on."
        )
    if best.length >= accuracy.value:
        said.append(f"Response length alone does at least as well ({percent(best.length)} %).")
    return said


def curves_view(curves: CurveSet) -> CurvesView:
    """The figure: controls, up to NAMED_CURVES heads in colour, the others in grey."""
    origin = Origin.of((curve.name for curve in curves.heads), curves.dataset)
    named = [
        Line(f"s{position}", origin.called(curve.name), curve.at, curve.gold, banded=position == 1)
        for position, curve in enumerate(curves.heads[:NAMED_CURVES], start=1)
    ]
    others = [Line("rest", "", curve.at, curve.gold, banded=False) for curve in curves.heads[NAMED_CURVES:]]
    controls = [
        Line(f"control {name}", _CONTROLS[name], curve.at, curve.gold, banded=False)
        for name, curve in curves.controls.items()
    ]
    everything = [*curves.heads[:TABLE_ROWS], *curves.controls.values()]
    chart = curve_chart([*named, *controls, *others])
    ns = tuple(int(tick.text) for tick in chart.n_ticks)
    first = everything[0].gold
    return CurvesView(
        curves=curves,
        chart=chart,
        unnamed=len(others),
        prompts=(first[0].n, first[-1].n),
        at=ns,
        table=tuple((_control_name(curve), tuple(_at(curve, n) for n in ns)) for curve in everything),
        origin=origin,
    )


def attributes_view(dataset: str, rows: Sequence[AttributeRow]) -> AttributesView:
    """An attribute table with R2 plotted on one axis, which worthless predictions may leave to the left."""
    ends = [end for row in rows for end in (row.r2.low, row.r2.value, row.r2.high) if math.isfinite(end)]
    axis = Axis.over([0.0, *(max(end, LEAST_R2) for end in ends)])
    plotted = [row for row in rows if math.isfinite(row.r2.value)]
    plots = {id(row): interval_row(axis, row.r2, references=[("chance", 0.0)]) for row in plotted}
    origin = Origin.of((row.name for row in rows), dataset)
    return AttributesView(
        dataset, tuple((row, plots.get(id(row), Markup(""))) for row in rows), axis_labels(axis), origin
    )


def percent(value: float) -> str:
    """A share as per cent with one decimal, a dash when undefined."""
    return f"{100 * value:.1f}" if math.isfinite(value) else DASH


def number(value: float) -> str:
    """Three decimals with a true minus sign, a dash when undefined."""
    return f"{value:.3f}".replace("-", MINUS) if math.isfinite(value) else DASH


def count(value: int) -> str:
    """Thousands set off by commas."""
    return f"{value:,}"


def seconds(values: Sequence[float]) -> str:
    """The mean fitting time in seconds, a dash when none was recorded."""
    mean = sum(values) / len(values) if values else math.nan
    return DASH if math.isnan(mean) else f"{mean:.2f}" if mean < 10 else f"{mean:,.0f}"


_CONTROLS = {"oracle": "best possible", "random": "random", "length": "length"}


def _totals(findings: Findings) -> list[tuple[str, str]]:
    """What the store holds, as (count, noun)."""
    tables = [info["counts"] for _, info in findings.datasets]
    kinds = {"responses": "responses", "pairs": "pairs", "attributes": "attribute scores", "gold": "gold scores"}
    held = [(len(findings.datasets), "datasets")]
    held += [(sum(table.get(kind, 0) for table in tables), noun) for kind, noun in kinds.items()]
    held += [(len(findings.specs), "embeddings"), (sum(group["seeds"] for group in findings.groups), "runs")]
    return [(count(many), noun.removesuffix("s") if many == 1 else noun) for many, noun in held if many]


def _control_name(curve: Curve) -> Name:
    return Name(_CONTROLS[curve.name.head], "", "") if curve.name.detail == CONTROL else curve.name


def _with_interval(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{percent(estimate.value)} %"
    return f"{percent(estimate.value)} % [{percent(estimate.low)}, {percent(estimate.high)}]"


def _at(curve: Curve, n: int) -> Estimate:
    return curve.gold[curve.at.index(n)] if n in curve.at else Estimate(math.nan, 0, math.nan, math.nan)


def _longest(curves: CurveSet) -> int:
    return max(curve.at[-1] for curve in [*curves.heads, *curves.controls.values()])


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
