"""A claim held against a contrast: the rules by which it holds, does not, or cannot be told.

Effects are in standard deviations of gold within a prompt, above 0 where they speak for the claim.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from bench.contrasts import Contrast, Row, estimates
from bench.intervals import LEVEL, NOTHING, Estimate, Floats

MARGIN = 0.05  # standard deviations of gold: less is no difference that anyone would notice
PUBLISHED_N = 405  # up to which best-of-n was followed in arXiv:2507.07375
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told here"


@dataclass(frozen=True)
class Finding:
    """One claim and what became of it.

    Attributes:
        claim: in words.
        published: the effect that the paper gives.
        setup: what was compared here.
        effects: by pool, and "all": the difference, above 0 where it speaks for the claim.
        verdict: HOLDS, FAILS or OPEN.
        why: the reason for the verdict.
        conditions: pairs of fits compared.
        accuracy: the effect over all pools on pair accuracy within held-out prompts; None where it has no such.
    """

    claim: str
    published: str
    setup: str
    effects: Mapping[str, Estimate] = field(default_factory=dict)
    verdict: str = OPEN
    why: str = ""
    conditions: int = 0
    accuracy: Estimate | None = None

    def ruled(self, verdict: str, why: str) -> "Finding":
        """The same with a verdict."""
        return replace(self, verdict=verdict, why=why)


Rule = Callable[[Finding, Contrast], Finding]


def gains(row: Row) -> Floats:
    """Each held-out prompt's gain, in standard deviations of gold."""
    values: Floats = row["gains"]
    return values


def accuracies(row: Row) -> Floats:
    """Each held-out prompt's pair accuracy; NaN where no gold differs."""
    values: Floats = row["accuracies"]
    return values


def judged(finding: Finding, compare: Callable[..., Contrast], rule: Rule | None = None) -> Finding:
    """The finding with its effects, by gains and by accuracies, and the verdict that a rule gives of the gains.

    Args:
        finding: without effects.
        compare: gives the contrast of a `value`.
        rule: `better` unless given.
    """
    found = (rule or better)(finding, compare(value=gains))
    return replace(found, accuracy=estimates(compare(value=accuracies)).get("all"))


def better(finding: Finding, found: Contrast) -> Finding:
    """It holds if the interval over all pools lies above 0, and does not if it lies below."""
    finding = _measured(finding, found)
    effect = finding.effects.get("all")
    if effect is None:
        return finding
    if effect.low > 0:
        return finding.ruled(HOLDS, "the interval lies above 0")
    if effect.high < 0:
        return finding.ruled(FAILS, "the interval lies below 0")
    reach = (effect.high - effect.low) / 2
    return finding.ruled(OPEN, f"the interval holds 0: effects below {reach:.2f} cannot be seen")


def no_worse(finding: Finding, found: Contrast) -> Finding:
    """As `better`; it holds also if the interval lies above -MARGIN."""
    ruled = better(finding, found)
    if ruled.verdict != HOLDS and ruled.effects.get("all", NOTHING).low > -MARGIN:
        return ruled.ruled(HOLDS, f"the interval lies above -{MARGIN}")
    return ruled


def about_equal(finding: Finding, found: Contrast) -> Finding:
    """It holds if the interval lies within MARGIN on both sides, and does not if it lies beyond."""
    finding = _measured(finding, found)
    effect = finding.effects.get("all")
    if effect is None:
        return finding
    if effect.low > -MARGIN and effect.high < MARGIN:
        return finding.ruled(HOLDS, f"the interval lies within {MARGIN}")
    if effect.low > MARGIN or effect.high < -MARGIN:
        return finding.ruled(FAILS, f"the interval lies outside {MARGIN}")
    return finding.ruled(OPEN, f"the interval reaches beyond {MARGIN}")


def sometimes(finding: Finding, found: Contrast) -> Finding:
    """It holds if one pool's interval lies above 0, at a level that allows for looking at each; not if all lie below.

    At 95 % each, one of four pools without any effect would lie above 0 in one study of ten.
    """
    finding = _measured(finding, found)
    if not found.pools:
        return finding
    level = 1 - (1 - LEVEL) / len(found.pools)
    strict = {name: effect for name, effect in estimates(found, level=level).items() if name != "all"}
    if won := [name for name, effect in strict.items() if effect.low > 0]:
        return finding.ruled(HOLDS, f"so on {', '.join(won)}, at {level:.2%} for {len(strict)} pools")
    if all(effect.high < 0 for name, effect in finding.effects.items() if name != "all"):
        return finding.ruled(FAILS, "below 0 on every pool")
    return finding.ruled(OPEN, f"no pool's interval lies above 0, at {level:.2%} for {len(strict)} pools")


def more_gain(
    finding: Finding, found: Contrast, *, gain: Callable[..., Contrast], small: Callable[..., Contrast] | None = None
) -> Finding:
    """As `better`, of a difference of two gains; without the first there is nothing that could be larger.

    Args:
        finding: without effects.
        found: `gain` less another.
        gain: the first of the two; its interval must lie above 0.
        small: a gain that the claim calls small; its interval must lie within MARGIN.
    """
    ruled = better(finding, found)
    if ruled.verdict != HOLDS:
        return ruled
    first = estimates(gain(value=gains)).get("all", NOTHING)
    if not first.low > 0:
        return ruled.ruled(OPEN, f"there is no gain to compare: {_shown(first)}")
    other = estimates(small(value=gains)).get("all", NOTHING) if small else None
    if other and not (other.low > -MARGIN and other.high < MARGIN):
        return ruled.ruled(OPEN, f"smaller, but not shown to be small (within {MARGIN}): {_shown(other)}")
    return ruled


def rising(finding: Finding, found: Contrast, *, largest: int) -> Finding:
    """As `better`, of gold's change at the end of best-of-n's curve; it says up to which n.

    Where gold must rise for few n before it can fall for many, a rise up to `largest` does not refute a fall.
    """
    ruled = better(finding, found)
    return replace(ruled, why=f"{ruled.why}, up to n = {largest}") if ruled.effects else ruled


def falling(finding: Finding, found: Contrast, *, largest: int) -> Finding:
    """As `rising`, of a claim that gold falls (`found` has its sign turned)."""
    ruled = rising(finding, found, largest=largest)
    if ruled.verdict == FAILS and largest < PUBLISHED_N:
        why = f"gold still rises up to n = {largest}; the paper's curves go on to {PUBLISHED_N}"
        return ruled.ruled(OPEN, why)
    return ruled


def last_step(row: Row) -> Floats:
    """What doubling n last adds for each held-out prompt: gold of best of its N responses less of best of N / 2."""
    curves: Floats = row["curves"]
    size = np.isfinite(curves).sum(axis=1)
    several = np.flatnonzero(size > 1)
    steps = np.full(len(curves), np.nan)
    steps[several] = curves[several, size[several] - 1] - curves[several, size[several] // 2 - 1]
    return steps


def _measured(finding: Finding, found: Contrast) -> Finding:
    effects = estimates(found)
    why = "" if effects else "the study has no fits of this kind"
    return replace(finding, effects=effects, conditions=found.conditions, why=why)


def _shown(effect: Estimate) -> str:
    return f"{effect.value:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]"
