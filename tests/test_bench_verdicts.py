"""Rules of verdicts on made-up contrasts: what they say, and how often they say it of nothing."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from bench.contrasts import Contrast, Row, average, turned_round
from bench.verdicts import FAILS, HOLDS, OPEN, Finding, about_equal, falling, last_step, more_gain, rising, sometimes

CLAIM = Finding("claim", "", "setup")


def steady(**pools: float) -> Contrast:
    """Pools whose every prompt has one effect."""
    return Contrast({pool: {seed: np.full(20, value) for seed in range(3)} for pool, value in pools.items()}, 3)


def null(generator: np.random.Generator, pools: int) -> Contrast:
    """No effect: prompts have luck that all seeds share, and seeds their own."""
    found = {}
    for pool in range(pools):
        shared = generator.normal(size=40)
        found[str(pool)] = {seed: shared + 0.3 * generator.normal(size=40) for seed in range(5)}
    return Contrast(found, 5 * pools)


def rows_of(found: Contrast) -> list[Row]:
    """Fits whose last step is the contrast's: gold 0, x and 1 + x at n = 1, 2, 4 (of prompts with four responses)."""
    return [
        {"pool": pool, "seed": seed, "curves": np.stack([0 * x, np.ones_like(x), 1 + x / 2, 1 + x], axis=1)}
        for pool, seeds in found.pools.items()
        for seed, x in seeds.items()
    ]


def share(verdicts: list[str]) -> float:
    return verdicts.count(HOLDS) / len(verdicts)


def test_the_last_step_is_from_half_of_a_prompt_s_own_responses_to_all() -> None:
    nan = np.nan
    curves = np.array([[0, 1, 2, 4], [0, 3, nan, nan], [0, 5, 6, nan], [0, nan, nan, nan]])
    assert last_step({"curves": curves})[:3].tolist() == [3, 3, 6]  # n = 4 less 2, 2 less 1, 3 less 1
    assert np.isnan(last_step({"curves": curves})[3])


def test_a_curve_that_neither_rises_nor_falls_is_seldom_said_to() -> None:
    generator = np.random.default_rng(0)
    verdicts = [
        rising(CLAIM, average(rows_of(null(generator, 1)), value=last_step), largest=4).verdict for _ in range(150)
    ]
    assert share(verdicts) <= 0.06  # 2.5 % is due; over seeds alone it was 33 %


def test_no_pool_wins_sometimes_by_being_one_of_four() -> None:
    generator = np.random.default_rng(1)
    verdicts = [sometimes(CLAIM, null(generator, 4)).verdict for _ in range(150)]
    assert share(verdicts) <= 0.06  # at 95 % for each pool 9 %


def test_sometimes_holds_on_one_pool_and_fails_on_all() -> None:
    won = sometimes(CLAIM, steady(a=0.4, b=-0.1))
    assert won.verdict == HOLDS and won.why == "so on a, at 97.50% for 2 pools"
    assert sometimes(CLAIM, steady(a=-0.4, b=-0.1)).verdict == FAILS
    assert sometimes(CLAIM, steady(a=-0.4, b=0.0)).verdict == OPEN


def test_a_difference_of_gains_needs_a_gain() -> None:
    def of(contrast: Contrast) -> Callable[..., Contrast]:
        return lambda value: contrast

    more = steady(a=0.4)
    assert more_gain(CLAIM, more, gain=of(steady(a=0.5))).verdict == HOLDS
    nothing = more_gain(CLAIM, more, gain=of(steady(a=-0.1)))  # less harm is no gain
    assert nothing.verdict == OPEN and "no gain to compare: -0.10" in nothing.why
    assert more_gain(CLAIM, steady(a=-0.4), gain=of(steady(a=-0.1))).verdict == FAILS
    small = partial(more_gain, CLAIM, more, gain=of(steady(a=0.5)))
    assert small(small=of(steady(a=0.01))).verdict == HOLDS
    large = small(small=of(steady(a=0.1)))
    assert large.verdict == OPEN and "not shown to be small" in large.why


def test_a_rise_over_few_n_refutes_no_fall() -> None:
    rises = steady(a=0.3)
    assert rising(CLAIM, rises, largest=16).verdict == HOLDS
    assert rising(CLAIM, turned_round(rises), largest=16).verdict == FAILS
    told = falling(CLAIM, turned_round(rises), largest=16)
    assert told.verdict == OPEN and told.why == "gold still rises up to n = 16; the paper's curves go on to 405"
    assert falling(CLAIM, turned_round(rises), largest=405).verdict == FAILS
    assert falling(CLAIM, rises, largest=16).verdict == HOLDS
    assert falling(CLAIM, Contrast({}, 0), largest=0).why == "the study has no fits of this kind"


@pytest.mark.parametrize(("value", "verdict"), [(0.02, HOLDS), (0.3, FAILS), (-0.3, FAILS)])
def test_equal_is_within_the_margin(value: float, verdict: str) -> None:
    assert about_equal(CLAIM, steady(a=value)).verdict == verdict
