"""The report's figures as SVG: intervals on a shared axis, and best-of-n curves.

Marks are placed in per cent of the width, so a figure fills a desktop or a phone without scaling its strokes or
shrinking its text; text is left to the page, which puts labels at the positions given here. Colours are the page's
CSS classes, so they follow light and dark. Only numbers reach the SVG, never a text from the store.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bench.best_of_n import kl_upper_bound
from bench.intervals import Estimate

MINUS = "\N{MINUS SIGN}"  # as wide as a digit, so that columns line up
ROW_HEIGHT = 34  # px, of one interval row
CURVE_HEIGHT = 340  # px
LABEL_GAP = 17  # px between two labels at the end of curves


@dataclass(frozen=True)
class Tick:
    """A label at a position: per cent of the width, or px from the top for vertical axes."""

    position: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high` with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Iterable[float], *, steps: int = 5) -> "Axis":
        """The axis that shows all finite values, with ticks at round numbers and a little room at both ends."""
        known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(known), max(known)
        room = 0.04 * (high - low) or 0.05 * abs(high) or 0.05
        low, high = low - room, high + room
        step = _round_step((high - low) / steps)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return cls(low, high, tuple(round(k * step, 12) for k in range(first, last + 1)))

    def share(self, value: float) -> float:
        """Where a value lies, 0 at `low` and 1 at `high`."""
        return (value - self.low) / (self.high - self.low)

    def percent(self, value: float) -> float:
        """Where a value lies in per cent of the width."""
        return round(100 * self.share(value), 3)

    def text(self, value: float) -> str:
        """A tick's label, with as many decimals as the ticks need."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else self.high - self.low
        return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", MINUS)


def interval_row(
    axis: Axis,
    estimate: Estimate,
    *,
    seeds: Sequence[float] = (),
    references: Sequence[tuple[str, float]] = (),
    shuffled: float = math.nan,
) -> Markup:
    """One row of an interval plot: reference lines, the interval, seeds as dots, the mean, shuffled labels as a cross.

    A mean below the axis is an arrow at its left end.

    Args:
        axis: shared by all rows.
        estimate: the mean and its interval.
        seeds: each seed's value.
        references: (CSS class, value) of vertical lines through all rows.
        shuffled: value of the shuffled-label control, NaN for none.
    """
    middle = ROW_HEIGHT / 2
    marks = [_vertical(axis, tick, "grid") for tick in axis.ticks]
    marks += [_vertical(axis, value, css) for css, value in references if math.isfinite(value)]
    if math.isfinite(estimate.low) and math.isfinite(estimate.high) and estimate.high > axis.low:
        low, high = axis.percent(max(estimate.low, axis.low)), axis.percent(estimate.high)
        marks.append(f'<line class="interval" x1="{low}%" x2="{high}%" y1="{middle}" y2="{middle}"/>')
    if len(seeds) > 1:
        marks += [f'<circle class="seed" cx="{axis.percent(value)}%" cy="{middle + 9}" r="1.8"/>' for value in seeds]
    if math.isfinite(shuffled):
        marks.append(_cross(axis.percent(shuffled), middle))
    if estimate.value < axis.low:
        marks.append(f'<path class="mean" d="M0 {middle}l9-5v10z"/>')
    else:
        marks.append(f'<circle class="mean" cx="{axis.percent(estimate.value)}%" cy="{middle}" r="4.5"/>')
    return _svg(marks, ROW_HEIGHT)


def axis_labels(axis: Axis, *, scale: float = 1.0) -> list[Tick]:
    """The ticks' labels for values shown times `scale`."""
    scaled = Axis(axis.low * scale, axis.high * scale, tuple(tick * scale for tick in axis.ticks))
    return [Tick(axis.percent(tick), scaled.text(tick * scale)) for tick in axis.ticks]


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        css: its class.
        label: its name, at its right end; "" for none.
        at: the n, ascending.
        gold: the estimate at each of them.
        banded: whether its interval is drawn.
    """

    css: str
    label: str
    at: Sequence[int]
    gold: Sequence[Estimate]
    banded: bool


@dataclass(frozen=True)
class EndLabel:
    """A curve's name at its right end: px from the top, moved so that labels do not overlap."""

    top: float
    css: str
    text: str
    value: float


@dataclass(frozen=True)
class CurveChart:
    """The parts of a curve figure; the page puts the labels around the SVG."""

    svg: Markup
    gold_ticks: tuple[Tick, ...]
    n_ticks: tuple[Tick, ...]
    kl_ticks: tuple[Tick, ...]
    labels: tuple[EndLabel, ...]


def curve_chart(lines: Sequence[Line]) -> CurveChart:
    """Gold against n on a logarithmic axis: bands, lines and end labels; the first line is drawn on top."""
    largest = max(line.at[-1] for line in lines)
    shown = [e.value for line in lines for e in line.gold]
    shown += [end for line in lines if line.banded for e in line.gold for end in (e.low, e.high)]
    axis = Axis.over(shown)
    marks = [
        f'<line class="grid" x1="0" x2="100" y1="{_top(axis, tick):.1f}" y2="{_top(axis, tick):.1f}"/>'
        for tick in axis.ticks
    ]
    for line in reversed(lines):
        if line.banded:
            marks.append(f'<path class="band {line.css}" d="{_band(axis, line, largest)}"/>')
    for line in reversed(lines):
        marks.append(f'<path class="curve {line.css}" d="{_path(axis, line, largest)}"/>')
    ns = _round_ns(largest)
    return CurveChart(
        svg=_svg(marks, CURVE_HEIGHT, stretched=True),
        gold_ticks=tuple(Tick(_top(axis, tick), axis.text(tick)) for tick in axis.ticks),
        n_ticks=tuple(Tick(_across(n, largest), str(n)) for n in ns),
        kl_ticks=tuple(Tick(_across(n, largest), f"{kl_upper_bound(n):.2f}") for n in ns),
        labels=_spread([_end_label(axis, line) for line in lines if line.label]),
    )


def _vertical(axis: Axis, value: float, css: str) -> str:
    x = axis.percent(value)
    return f'<line class="{css}" x1="{x}%" x2="{x}%" y1="0" y2="{ROW_HEIGHT}"/>'


def _cross(x: float, y: float) -> str:
    """A cross of fixed size at a position in per cent: a nested SVG, because a path takes no per cents."""
    return f'<svg class="shuffled" x="{x}%" y="{y}" overflow="visible"><path d="M-4-4L4 4M-4 4L4-4"/></svg>'


def _svg(marks: Sequence[str], height: float, *, stretched: bool = False) -> Markup:
    view = f' viewBox="0 0 100 {height}" preserveAspectRatio="none"' if stretched else ""
    # Only formatted numbers and this module's own class names are in `marks`.
    return Markup(f'<svg width="100%" height="{height}"{view} aria-hidden="true">{"".join(marks)}</svg>')


def _across(n: int, largest: int) -> float:
    return round(100 * math.log(n) / math.log(largest), 2) if largest > 1 else 50.0


def _top(axis: Axis, value: float) -> float:
    return round(CURVE_HEIGHT * (1 - axis.share(value)), 2)


def _points(axis: Axis, at: Sequence[int], values: Sequence[float], largest: int) -> list[str]:
    return [
        f"{_across(n, largest)} {_top(axis, value)}"
        for n, value in zip(at, values, strict=True)
        if math.isfinite(value)
    ]


def _path(axis: Axis, line: Line, largest: int) -> str:
    return "M" + "L".join(_points(axis, line.at, [estimate.value for estimate in line.gold], largest))


def _band(axis: Axis, line: Line, largest: int) -> str:
    lower = _points(axis, line.at, [estimate.low for estimate in line.gold], largest)
    upper = _points(axis, line.at, [estimate.high for estimate in line.gold], largest)
    return f"M{'L'.join(lower + upper[::-1])}Z" if lower else ""


def _end_label(axis: Axis, line: Line) -> EndLabel:
    return EndLabel(_top(axis, line.gold[-1].value), line.css, line.label, line.gold[-1].value)


def _spread(labels: Sequence[EndLabel]) -> tuple[EndLabel, ...]:
    """The labels from top to bottom, pushed apart to LABEL_GAP and kept inside the figure."""
    ordered = sorted(labels, key=lambda label: label.top)
    tops: list[float] = []
    for label in ordered:
        tops.append(max(label.top, tops[-1] + LABEL_GAP) if tops else label.top)
    limit = float(CURVE_HEIGHT)
    for position in reversed(range(len(tops))):
        tops[position] = min(tops[position], limit)
        limit = tops[position] - LABEL_GAP
    return tuple(EndLabel(top, label.css, label.text, label.value) for top, label in zip(tops, ordered, strict=True))


def _round_ns(largest: int) -> list[int]:
    """1, 2, 4, ... and the largest n, without a power of two that would touch it."""
    powers = [2**k for k in range(largest.bit_length()) if 2**k <= largest / 1.4]
    return [*powers, largest] if largest > 1 else [1]


def _round_step(rough: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next(k * magnitude for k in (1, 2, 5, 10) if k * magnitude >= rough * 0.999)
