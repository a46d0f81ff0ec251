"""Numbers as the page writes them."""

import math
from collections.abc import Sequence

from bench.intervals import Estimate

MINUS = "\N{MINUS SIGN}"  # as wide as a digit, so that columns line up
DASH = "\N{EN DASH}"  # of a number that is not there


def percent(value: float) -> str:
    """A share as per cent with one decimal, a dash when undefined."""
    return f"{100 * value:.1f}".replace("-", MINUS) if math.isfinite(value) else DASH


def number(value: float) -> str:
    """Three decimals with a true minus sign, a dash when undefined."""
    return f"{value:.3f}".replace("-", MINUS) if math.isfinite(value) else DASH


def short(value: float) -> str:
    """Three significant digits, for quantities without a scale of their own."""
    if not math.isfinite(value):
        return DASH
    decimals = 2 if value == 0 else min(max(2 - math.floor(math.log10(abs(value))), 0), 4)
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def signed(value: float) -> str:
    """A difference of shares in points, with its sign."""
    if not math.isfinite(value):
        return DASH
    return "0.0" if abs(value) < 0.0005 else f"{100 * value:+.1f}".replace("-", MINUS)


def count(value: int) -> str:
    """Thousands set off by commas."""
    return f"{value:,}"


def seconds(values: Sequence[float]) -> str:
    """The mean fitting time in seconds, a dash when none was recorded."""
    mean = sum(values) / len(values) if values else math.nan
    return DASH if math.isnan(mean) else f"{mean:.2f}" if mean < 10 else f"{mean:,.0f}"


def percent_with_interval(estimate: Estimate) -> str:
    """As in "70.0 % [60.0, 80.0]", without brackets where there is no interval."""
    if math.isnan(estimate.low):
        return f"{percent(estimate.value)} %"
    return f"{percent(estimate.value)} % [{percent(estimate.low)}, {percent(estimate.high)}]"


def number_with_interval(estimate: Estimate) -> str:
    """As in "0.700 [0.600, 0.800]", without brackets where there is no interval."""
    if math.isnan(estimate.low):
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"
