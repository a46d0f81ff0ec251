"""Contrasts of made-up results whose differences are known."""

from typing import Any

import numpy as np
import pytest

from bench.contrasts import Contrast, contrast, estimates, minus, rank_correlation
from bench.intervals import Floats

PLACE = {"features": "z", "pairing": "same", "choice": "random", "beta": 1.0, "pairs": 10, "scorer": "reward"}


def row(pool: str, head: str, seed: int, gains: list[float | None], **levels: Any) -> dict[str, Any]:  # noqa: ANN401
    return {**PLACE, "pool": pool, "head": head, "seed": seed, "gains": gains, **levels}


def gains(one: Any) -> Floats:  # noqa: ANN401
    return np.array(one["gains"], dtype=np.float64)


def test_only_fits_that_are_alike_in_all_else_are_compared() -> None:
    rows = [
        row("a", "clf", 0, [3.0, 5.0]), row("a", "bt", 0, [1.0, 1.0]),
        row("a", "clf", 0, [2.0, 2.0], beta=2.0), row("a", "bt", 0, [2.0, 0.0], beta=2.0),
        row("a", "clf", 1, [9.0, 9.0]),  # no bt of this seed
        row("a", "bt", 0, [9.0, 9.0], pairing="cross"),
    ]  # fmt: skip
    found = contrast(rows, {"head": "clf"}, {"head": "bt"}, value=gains)
    assert found.conditions == 2
    assert found.pools["a"].tolist() == [[1.0, 3.0]]  # the mean of (2, 4) and (0, 2)


def test_pools_weigh_alike_and_prompts_without_a_value_are_left_out() -> None:
    found = Contrast({"a": np.array([[1.0, 3.0, np.nan]]), "b": np.full((1, 50), 4.0)}, 2)
    result = estimates(found)
    assert (result["a"].value, result["a"].n) == (2.0, 2)
    assert (result["b"].low, result["b"].high) == pytest.approx((4.0, 4.0))
    assert result["all"].value == 3.0
    assert 1.0 <= result["a"].low < result["a"].high <= 3.0


def test_the_interval_covers_a_true_difference_as_often_as_it_says() -> None:
    generator, covered = np.random.default_rng(0), 0
    for trial in range(200):
        values = 0.3 + generator.normal(size=(1, 60)) + 0.2 * generator.normal(size=(20, 1))
        found = estimates(Contrast({"a": values}, 20), seed=trial)["a"]
        covered += found.low < 0.3 < found.high
    assert 180 <= covered <= 198


def test_a_difference_of_differences() -> None:
    one, other = (
        Contrast({"a": np.array([[3.0, 5.0]])}, 1),
        Contrast({"a": np.array([[1.0, 1.0]]), "b": np.ones((1, 1))}, 1),
    )
    assert minus(one, other).pools["a"].tolist() == [[2.0, 4.0]] and list(minus(one, other).pools) == ["a"]


def test_rank_correlation_of_conditions_with_their_differences() -> None:
    steady = [np.full((2, 4), level) for level in (1.0, 2.0, 5.0)]
    found = rank_correlation([0.1, 0.3, 0.9], steady)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((1.0, 1.0, 1.0, 3))
    noisy = [np.random.default_rng(k).normal(size=(3, 10)) for k in range(6)]
    assert rank_correlation(list(range(6)), noisy).low < rank_correlation(list(range(6)), noisy).high
    assert rank_correlation([3, 2, 1], steady).value == pytest.approx(-1)
