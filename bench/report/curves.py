"""Curves with bands on two axes, as SVG: best-of-n, finite pools, reliability.

Paths are in a nested SVG that is stretched to the page's width, with strokes that are not; dots are in per cent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bench.intervals import Estimate
from bench.report.charts import Axis, Tick, axis_labels

HEIGHT = 340  # px, of a figure by itself
PANEL_HEIGHT = 190  # px, of one among several
LABEL_GAP = 17  # px between two labels at the end of curves
MOST_POINTS = 60  # of a curve: more could not be told apart, and would make the page heavy


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        css: its classes.
        label: its name, at its right end; "" for none.
        x: where on the horizontal axis, ascending, in that axis's own numbers (such as log n).
        y: the estimate at each of them.
        banded: whether its interval is drawn.
        dotted: whether its points are drawn, each with its interval, in place of a line.
    """

    css: str
    label: str
    x: Sequence[float]
    y: Sequence[Estimate]
    banded: bool = False
    dotted: bool = False


@dataclass(frozen=True)
class EndLabel:
    """A curve's name at its right end: px from the top, moved so that labels do not overlap."""

    top: float
    css: str
    text: str
    value: float


@dataclass(frozen=True)
class CurveChart:
    """The parts of a curve figure; the page puts the labels around the SVG.

    Attributes:
        svg: the drawing.
        height: of it, in px.
        up: ticks of the vertical axis, in px from the top.
        labels: names at the ends of curves.
    """

    svg: Markup
    height: int
    up: tuple[Tick, ...]
    labels: tuple[EndLabel, ...]


@dataclass(frozen=True)
class Frame:
    """Where values lie in a figure: across from `left` to `right`, up along `axis`."""

    left: float
    right: float
    axis: Axis
    height: int

    def across(self, x: float) -> float:
        """Per cent of the width."""
        return round(100 * (x - self.left) / (self.right - self.left), 2) if self.right > self.left else 50.0

    def top(self, y: float) -> float:
        """Px from the top."""
        return round(self.height * (1 - self.axis.share(y)), 2)


def curve_chart(
    lines: Sequence[Line],
    *,
    left: float,
    right: float,
    height: int = HEIGHT,
    axis: Axis | None = None,
    uprights: Sequence[tuple[str, float]] = (),
    scale: float = 1.0,
) -> CurveChart:
    """Bands, lines and end labels; the first line is drawn on top.

    Args:
        lines: the curves.
        left: the horizontal axis's first number.
        right: its last.
        height: in px.
        axis: the vertical axis; unless given, one that holds all lines and bands.
        uprights: (CSS class, x) of vertical lines.
        scale: what the vertical axis's labels are multiplied by.
    """
    frame = Frame(left, right, axis or _axis(lines), height)
    marks = [_level(frame, tick, "grid") for tick in frame.axis.ticks]
    marks += [_upright(frame, x, css) for css, x in uprights if math.isfinite(x)]
    drawn = [line for line in reversed(lines) if not line.dotted]
    marks += [f'<path class="band {line.css}" d="{_band(frame, line)}"/>' for line in drawn if line.banded]
    marks += [f'<path class="curve {line.css}" d="{_path(frame, line)}"/>' for line in drawn]
    dots = [mark for line in reversed(lines) if line.dotted for mark in _dots(frame, line)]
    ticks = axis_labels(frame.axis, scale=scale)
    inner = f'<svg viewBox="0 0 100 {height}" preserveAspectRatio="none">{"".join(marks)}</svg>'
    return CurveChart(
        # Only formatted numbers and our own class names are in here.
        svg=Markup(f'<svg width="100%" height="{height}" aria-hidden="true">{inner}{"".join(dots)}</svg>'),
        height=height,
        up=tuple(Tick(round(height * (1 - tick.position / 100), 2), tick.text) for tick in ticks),
        labels=_spread([_end_label(frame, line) for line in lines if line.label], height),
    )


def thinned(count: int) -> list[int]:
    """Which of `count` points to draw: all of a few, else about MOST_POINTS, the closer the further left."""
    if count <= MOST_POINTS:
        return list(range(count))
    steps = [round(math.exp(math.log(count) * k / (MOST_POINTS - 1))) - 1 for k in range(MOST_POINTS)]
    return sorted(set(steps))


def _axis(lines: Sequence[Line]) -> Axis:
    shown = [one.value for line in lines for one in line.y]
    shown += [end for line in lines if line.banded or line.dotted for one in line.y for end in (one.low, one.high)]
    return Axis.over(shown)


def _level(frame: Frame, y: float, css: str) -> str:
    return f'<line class="{css}" x1="0" x2="100" y1="{frame.top(y)}" y2="{frame.top(y)}"/>'


def _upright(frame: Frame, x: float, css: str) -> str:
    return f'<line class="{css}" x1="{frame.across(x)}" x2="{frame.across(x)}" y1="0" y2="{frame.height}"/>'


def _points(frame: Frame, line: Line, values: Sequence[float]) -> list[str]:
    return [
        f"{frame.across(x)} {frame.top(value)}"
        for x, value in zip(line.x, values, strict=True)
        if math.isfinite(value) and math.isfinite(x)
    ]


def _path(frame: Frame, line: Line) -> str:
    points = _points(frame, line, [one.value for one in line.y])
    return "M" + "L".join(points) if points else ""


def _band(frame: Frame, line: Line) -> str:
    lower = _points(frame, line, [one.low for one in line.y])
    upper = _points(frame, line, [one.high for one in line.y])
    return f"M{'L'.join(lower + upper[::-1])}Z" if lower else ""


def _dots(frame: Frame, line: Line) -> list[str]:
    marks = []
    for x, one in zip(line.x, line.y, strict=True):
        if math.isfinite(x) and math.isfinite(one.value):
            at = f"{frame.across(x)}%"
            if math.isfinite(one.low):
                ends = f'y1="{frame.top(one.low)}" y2="{frame.top(one.high)}"'
                marks.append(f'<line class="stem {line.css}" x1="{at}" x2="{at}" {ends}/>')
            marks.append(f'<circle class="dot {line.css}" cx="{at}" cy="{frame.top(one.value)}" r="3.5"/>')
    return marks


def _end_label(frame: Frame, line: Line) -> EndLabel:
    return EndLabel(frame.top(line.y[-1].value), line.css, line.label, line.y[-1].value)


def _spread(labels: Sequence[EndLabel], height: int) -> tuple[EndLabel, ...]:
    """The labels from top to bottom, pushed apart to LABEL_GAP and kept inside the figure."""
    ordered = sorted(labels, key=lambda label: label.top)
    tops: list[float] = []
    for label in ordered:
        tops.append(max(label.top, tops[-1] + LABEL_GAP) if tops else label.top)
    limit = float(height)
    for position in reversed(range(len(tops))):
        tops[position] = min(tops[position], limit)
        limit = tops[position] - LABEL_GAP
    return tuple(EndLabel(top, label.css, label.text, label.value) for top, label in zip(tops, ordered, strict=True))
