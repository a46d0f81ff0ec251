"""Contrasts of made-up results whose differences are known."""

from typing import Any

import numpy as np
import pytest

from bench.contrasts import Contrast, average, contrast, estimates, minus, rank_correlation
from bench.intervals import Floats

PLACE = {"features": "z", "pairing": "same", "choice": "random", "beta": 1.0, "pairs": 10, "scorer": "reward"}


def row(pool: str, head: str, seed: int, gains: list[float | None], **levels: Any) -> dict[str, Any]:  # noqa: ANN401
    return {**PLACE, "pool": pool, "head": head, "seed": seed, "gains": gains, **levels}


def gains(one: Any) -> Floats:  # noqa: ANN401
    return np.array(one["gains"], dtype=np.float64)


def seeds(values: Any) -> dict[int, Floats]:  # noqa: ANN401
    """Rows (seeds, prompts) by the seeds 0, 1, ..."""
    return dict(enumerate(np.asarray(values, dtype=np.float64)))


def test_only_fits_that_are_alike_in_all_else_are_compared() -> None:
    rows = [
        row("a", "clf", 0, [3.0, 5.0]), row("a", "bt", 0, [1.0, 1.0]),
        row("a", "clf", 0, [2.0, 2.0], beta=2.0), row("a", "bt", 0, [2.0, 0.0], beta=2.0),
        row("a", "clf", 1, [9.0, 9.0]),  # no bt of this seed
        row("a", "bt", 0, [9.0, 9.0], pairing="cross"),
    ]  # fmt: skip
    found = contrast(rows, {"head": "clf"}, {"head": "bt"}, value=gains)
    assert found.conditions == 2
    assert list(found.pools["a"]) == [0] and found.pools["a"][0].tolist() == [1.0, 3.0]  # the mean of (2, 4) and (0, 2)


def test_an_average_holds_fits_against_nothing() -> None:
    found = average([row("a", "bt", 3, [1.0, 2.0]), row("a", "clf", 3, [3.0, 2.0]), row("b", "bt", 1, [5.0])],
                    value=gains)  # fmt: skip
    assert found.conditions == 3
    assert found.pools["a"][3].tolist() == [2.0, 2.0] and found.pools["b"][1].tolist() == [5.0]


def test_pools_weigh_alike_and_prompts_without_a_value_are_left_out() -> None:
    found = Contrast({"a": seeds([[1.0, 2.0, 3.0, np.nan]]), "b": seeds(np.full((1, 50), 4.0))}, 2)
    result = estimates(found)
    assert (result["a"].value, result["a"].n) == (2.0, 3)
    assert (result["b"].low, result["b"].high) == pytest.approx((4.0, 4.0))
    assert result["all"].value == 3.0
    assert 0.7 <= result["a"].low < 1.5 and 2.5 < result["a"].high <= 3.3


def test_the_interval_covers_a_true_difference_as_often_as_it_says() -> None:
    generator, covered = np.random.default_rng(0), 0
    for trial in range(200):
        values = 0.3 + generator.normal(size=(1, 60)) + 0.2 * generator.normal(size=(20, 1))
        found = estimates(Contrast({"a": seeds(values)}, 20), seed=trial)["a"]
        covered += found.low < 0.3 < found.high
    assert 180 <= covered <= 198


def test_five_seeds_have_the_spread_of_a_mean_of_five() -> None:
    """A plain bootstrap's would be sqrt(4/5) of it."""
    by_seed = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    found = estimates(Contrast({"a": seeds(np.tile(by_seed[:, None], (1, 400)))}, 5))["a"]
    expected = 1.96 * by_seed.std(ddof=1) / np.sqrt(5)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.04)


def test_a_stricter_level_is_wider() -> None:
    found = Contrast({"a": seeds(np.random.default_rng(0).normal(size=(3, 30)))}, 3)
    assert estimates(found, level=0.99)["a"].high > estimates(found)["a"].high


def test_a_difference_of_differences() -> None:
    one, other = Contrast({"a": seeds([[3.0, 5.0]])}, 1), Contrast({"a": seeds([[1.0, 1.0]]), "b": seeds([[1.0]])}, 1)
    found = minus(one, other)
    assert found.pools["a"][0].tolist() == [2.0, 4.0] and list(found.pools) == ["a"]


def test_seeds_meet_their_own_whatever_order_they_come_in() -> None:
    luck = {0: 10.0, 1: 20.0, 2: 40.0}  # what a seed adds to every fit
    one = average([row("a", "bt", seed, [luck[seed] + 1]) for seed in (2, 0, 1)], value=gains)
    other = average([row("a", "bt", seed, [luck[seed]]) for seed in (1, 2)], value=gains)
    assert {seed: float(values[0]) for seed, values in minus(one, other).pools["a"].items()} == {1: 1.0, 2: 1.0}
    assert not minus(one, average([row("a", "bt", 7, [0.0])], value=gains)).pools


def test_rank_correlation_of_conditions_with_their_differences() -> None:
    steady = [seeds(np.full((2, 4), level)) for level in (1.0, 2.0, 5.0)]
    found = rank_correlation([0.1, 0.3, 0.9], ["a", "b", "b"], steady)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((1.0, 1.0, 1.0, 3))
    noisy = [seeds(np.random.default_rng(k).normal(size=(3, 10))) for k in range(6)]
    wide = rank_correlation(list(range(6)), list("aabbcc"), noisy)
    assert wide.low < wide.high
    assert rank_correlation([3, 2, 1], ["a", "a", "a"], steady).value == pytest.approx(-1)
    # Mid-ranks 1.5, 1.5, 3 against 1, 2, 3; what differs by rounding alone is equal.
    assert rank_correlation([0.1 + 0.2, 0.3, 0.9], ["a"] * 3, steady).value == pytest.approx(1.5 / 3**0.5)
    assert np.isnan(rank_correlation([0.0, 0.0, 0.0], ["a"] * 3, steady).value)


def test_the_luck_of_a_pool_s_prompts_is_not_agreement() -> None:
    """Points of a pool share the luck of its prompts. Drawn apart, 10 of these 100 nulls would be found to rise."""
    generator, outside = np.random.default_rng(0), 0
    for trial in range(100):
        x, pools, points = [], [], []
        for pool in range(4):
            shared = generator.normal(size=(3, 20))
            for kind in range(3):
                for _ in range(4):  # heads: x is the same for all of them
                    x.append(float(kind + pool))
                    pools.append(str(pool))
                    points.append(seeds(shared + 0.05 * generator.normal(size=(3, 20))))
        outside += rank_correlation(x, pools, points, seed=trial).low > 0
    assert outside <= 4
