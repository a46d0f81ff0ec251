"""How good annotations are beside how good theory says they are: error rates and mean |dr|.

The Gaussian formulas take each prompt's gold for normal with a mean and a standard deviation of its own
(arXiv:2411.04991, section 4.3).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, ndtr, ndtri

from bench.annotate import Annotator, Pairing, Rows, moments
from bench.intervals import Floats, finite, prompt_numbers

_NODES = 128  # at which a distribution of |dr| is evaluated: the mean error rate is right to three digits
_SUMMED = 1 << 16  # pairs over which Gaussian expectations are averaged; of more, as many are taken evenly
_SIMULATED = 1 << 14  # Gaussian prompts behind the gaps of order statistics


@dataclass(frozen=True)
class Quality:
    """How good annotations turned out, and how good they should be.

    Attributes:
        pairs: how many there are.
        error_rate: share in which the worse response was chosen.
        expected_error_rate: its expectation, given each pair's |dr|.
        gaussian_error_rate: its expectation if gold were Gaussian within each prompt, with the prompt's own mean and
            standard deviation; NaN where there is no formula (cross-similar, cross-diversified).
        mean_gap: mean |dr|, in gold's units.
        gaussian_mean_gap: the same under Gaussian gold.
    """

    pairs: int
    error_rate: float
    expected_error_rate: float
    gaussian_error_rate: float
    mean_gap: float
    gaussian_mean_gap: float


def quality(
    gold: NDArray[np.floating],
    prompts: NDArray[np.generic],
    pairs: Rows,
    right: NDArray[np.bool_],
    *,
    annotator: Annotator,
    pairing: Pairing,
) -> Quality:
    """Hold annotations against theory.

    Args:
        gold: of the pool that the pairs were drawn from; shape (n,).
        prompts: prompt of each response; shape (n,).
        pairs: (better, worse) row numbers; shape (m, 2).
        right: whether the better one was chosen; shape (m,).
        annotator: who chose.
        pairing: how the pairs were drawn.
    """
    values = finite("gold scores", gold)
    gaps = values[pairs[:, 0]] - values[pairs[:, 1]]
    gap, error = gaussian_expectations(values, prompts, pairs, annotator=annotator, pairing=pairing)
    return Quality(
        pairs=len(pairs),
        error_rate=float(np.mean(~right)),
        expected_error_rate=float(annotator.error_rate(gaps).mean()),
        gaussian_error_rate=error,
        mean_gap=float(gaps.mean()),
        gaussian_mean_gap=gap,
    )


def gaussian_expectations(
    gold: Floats, prompts: NDArray[np.generic], pairs: Rows, *, annotator: Annotator, pairing: Pairing
) -> tuple[float, float]:
    """Mean |dr| and error rate of pairs from these prompts if gold were Gaussian within a prompt; NaN without formula.

    For the prompts of each pair, m = mu1 - mu2 and s^2 = sigma1^2 + sigma2^2 (arXiv:2411.04991, section 4.3; m = 0 and
    s = sqrt(2) sigma within a prompt). For `similar` and `diversified` |dr| is sigma times a gap of order statistics.
    """
    number = prompt_numbers(prompts)
    mean, sd, size = moments(gold, number)
    first, second = number[pairs[:: max(1, len(pairs) // _SUMMED)]].T
    # Across prompts, variances with n in the denominator: m^2 is too large by what they are too small.
    sd = sd * np.sqrt((size - 1) / size) if pairing == "cross" else sd / deviation_bias(size)
    if pairing in ("same", "cross"):
        m, s = mean[first] - mean[second], np.hypot(sd[first], sd[second])
        gaps = np.abs(m[:, None] + s[:, None] * normal_nodes())
        return float(gaussian_mean_gap(m, s).mean()), float(annotator.error_rate(gaps).mean())
    if pairing in ("similar", "diversified"):
        order_gaps = {int(n): _order_gaps(int(n), pairing) for n in np.unique(size[first])}
        gaps = sd[first, None] * np.stack([order_gaps[int(n)] for n in size[first]])
        return float(gaps.mean()), float(annotator.error_rate(gaps).mean())
    return math.nan, math.nan


def gaussian_mean_gap(m: Floats, s: Floats) -> Floats:
    """E|dr| of dr ~ N(m, s^2): s sqrt(2/pi) exp(-m^2 / 2 s^2) + m (1 - 2 Phi(-m/s)); |m| where s is 0.

    With m = 0 and s = sqrt(2) sigma it is 2 sigma / sqrt(pi): two responses to one prompt (arXiv:2411.04991, 4.3).
    """
    z = np.divide(m, s, out=np.full(np.shape(m), np.inf), where=s > 0)
    gap: Floats = s * math.sqrt(2 / math.pi) * np.exp(-(z**2) / 2) + m * (1 - 2 * ndtr(-z))
    return np.where(s > 0, gap, np.abs(m))


def deviation_bias(size: Rows) -> Floats:
    """E[sample standard deviation] / sigma of so many Gaussian values: sqrt(2/(n-1)) Gamma(n/2) / Gamma((n-1)/2)."""
    n = np.maximum(size, 2)
    bias: Floats = np.sqrt(2 / (n - 1)) * np.exp(gammaln(n / 2) - gammaln((n - 1) / 2))
    return bias


def normal_nodes() -> Floats:
    """Midpoints, in probability, of equal parts of a standard normal."""
    nodes: Floats = ndtri((np.arange(_NODES) + 0.5) / _NODES)
    return nodes


def _order_gaps(responses: int, pairing: str) -> Floats:
    """_NODES quantiles of the gap that `pairing` takes among so many standard normal golds."""
    drawn = np.random.default_rng(responses).standard_normal((_SIMULATED, responses))
    low, high = (0, responses - 1) if pairing == "diversified" else ((responses - 1) // 2, (responses - 1) // 2 + 1)
    ordered = np.sort(drawn, axis=1)
    quantiles: Floats = np.quantile(ordered[:, high] - ordered[:, low], (np.arange(_NODES) + 0.5) / _NODES)
    return quantiles
