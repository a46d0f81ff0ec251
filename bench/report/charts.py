"""Axes, and rows of intervals on an axis that they share, as SVG.

Marks are placed in per cent of the width, so a figure fills a desktop or a phone without scaling its strokes or
shrinking its text; text is left to the page, which puts labels at the positions given here. Colours are the page's
CSS classes, so they follow light and dark. Only numbers reach the SVG, never a text from the store.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bench.intervals import Estimate
from bench.report.formats import MINUS

ROW_HEIGHT = 34  # px, of one interval row


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
        return round(100 * self.share(value), 2)

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
    other: Estimate | None = None,
) -> Markup:
    """One row of an interval plot: reference lines, the interval, seeds as dots, the mean, shuffled labels as a cross.

    A mean below the axis is an arrow at its left end.

    Args:
        axis: shared by all rows.
        estimate: the mean and its interval.
        seeds: each seed's value.
        references: (CSS class, value) of vertical lines through all rows.
        shuffled: value of the shuffled-label control, NaN for none.
        other: a second estimate to hold beside the first: a ring below it, with its interval.
    """
    middle = ROW_HEIGHT / 2 - (5 if other else 0)
    marks = [vertical(axis, tick, "grid") for tick in axis.ticks]
    marks += [vertical(axis, value, css) for css, value in references if math.isfinite(value)]
    if len(seeds) > 1:
        marks += [f'<circle class="seed" cx="{axis.percent(value)}%" cy="{middle + 9}" r="1.8"/>' for value in seeds]
    if math.isfinite(shuffled):
        marks.append(_cross(axis.percent(shuffled), middle))
    marks += _point(axis, estimate, middle, "mean")
    if other is not None:
        marks += _point(axis, other, middle + 11, "other")
    # Only formatted numbers and this module's own class names are in `marks`.
    return Markup(f'<svg width="100%" height="{ROW_HEIGHT}" aria-hidden="true">{"".join(marks)}</svg>')


def axis_labels(axis: Axis, *, scale: float = 1.0) -> list[Tick]:
    """The ticks' labels for values shown times `scale`."""
    scaled = Axis(axis.low * scale, axis.high * scale, tuple(tick * scale for tick in axis.ticks))
    return [Tick(axis.percent(tick), scaled.text(tick * scale)) for tick in axis.ticks]


def vertical(axis: Axis, value: float, css: str) -> str:
    """A line through the row."""
    x = axis.percent(value)
    return f'<line class="{css}" x1="{x}%" x2="{x}%" y1="0" y2="{ROW_HEIGHT}"/>'


def _point(axis: Axis, estimate: Estimate, y: float, css: str) -> list[str]:
    """An interval and its mean."""
    marks = []
    if not math.isfinite(estimate.value):
        return []
    if math.isfinite(estimate.low) and math.isfinite(estimate.high) and estimate.high > axis.low:
        low, high = axis.percent(max(estimate.low, axis.low)), axis.percent(min(estimate.high, axis.high))
        line = "interval" if css == "mean" else f"interval {css}"
        marks.append(f'<line class="{line}" x1="{low}%" x2="{high}%" y1="{y}" y2="{y}"/>')
    if estimate.value < axis.low:
        return [*marks, f'<path class="{css}" d="M0 {y}l9-5v10z"/>']
    return [*marks, f'<circle class="{css}" cx="{axis.percent(estimate.value)}%" cy="{y}" r="4.5"/>']


def _cross(x: float, y: float) -> str:
    """A cross of fixed size at a position in per cent: a nested SVG, because a path takes no per cents."""
    return f'<svg class="shuffled" x="{x}%" y="{y}" overflow="visible"><path d="M-4-4L4 4M-4 4L4-4"/></svg>'


def _round_step(rough: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next(k * magnitude for k in (1, 2, 5, 10) if k * magnitude >= rough * 0.999)
