import math

import numpy as np
import pytest

from bench.annotate import Annotator
from bench.consistency import consistency
from bench.ordering import order_consistency


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_by_hand() -> None:
    gold = np.array([0.0, 1.0, 3.0, 2.0, 2.0])
    scores = np.array([[1.0], [2.0], [1.5], [9.0], [0.0]])
    prompts = np.array([0, 0, 0, 1, 1])  # the second prompt has no better response
    # pairs with |dr| 1, 3 ranked rightly, 2 wrongly
    found = consistency(scores, gold, prompts, annotator=Annotator(1.0, 2.0), resamples=10)
    xi = [s(0.5), s(1.5), s(1.0)]
    assert found.truth.value == pytest.approx(2 / 3)
    assert found.annotation.value == pytest.approx((xi[0] + xi[1] + 1 - xi[2]) / 3)
    assert found.quality.value == pytest.approx(np.mean(xi))
    assert found.bound.value == pytest.approx(found.annotation.value + found.quality.value - 1)
    assert found.truth.n == 3
    assert math.isnan(found.proposition.value)  # disagreement above 3/20


def test_ties_and_seeds_are_averaged() -> None:
    gold, prompts = np.array([0.0, 1.0]), np.zeros(2)
    scores = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0]])
    found = consistency(scores, gold, prompts, annotator=Annotator(3.0, 1.0), resamples=10)
    assert found.truth.value == 0.5
    assert found.annotation.value == pytest.approx(0.5)


def pool(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    gold = generator.normal(size=400)
    return gold[:, None] + generator.normal(size=(400, 2)) * 0.2, gold, np.repeat(np.arange(50), 8)


def test_truth_is_what_ordering_measures() -> None:
    scores, gold, prompts = pool(0)
    found = consistency(scores[:, :1], gold, prompts, annotator=Annotator(1.0, 1.0))
    assert found.truth.value == pytest.approx(order_consistency(scores[:, 0], gold, prompts).value)


def test_expected_agreement_is_the_mean_of_annotators_that_are_drawn() -> None:
    scores, gold, prompts = pool(1)
    found = consistency(scores[:, :1], gold, prompts, annotator=Annotator(2.0, 1.0), resamples=10)
    generator, shares = np.random.default_rng(2), []
    one, other = np.triu_indices(8, k=1)
    start = np.repeat(np.arange(0, 400, 8), len(one))
    first, second = start + np.tile(one, 50), start + np.tile(other, 50)
    dr = gold[first] - gold[second]
    for _ in range(200):
        annotated = np.sign(dr) * np.where(generator.random(len(dr)) < Annotator(2.0, 1.0).quality(dr), 1, -1)
        shares.append((annotated == np.sign(scores[first, 0] - scores[second, 0])).mean())
    assert found.annotation.value == pytest.approx(np.mean(shares), abs=0.003)


@pytest.mark.parametrize("beta", [0.0, 1.0, 10.0, math.inf])
def test_bounds_hold_and_the_papers_form_is_below_ours(beta: float) -> None:
    found = consistency(*pool(3), annotator=Annotator(beta, 1.0), resamples=10)
    assert found.bound.value <= found.truth.value + 1e-12
    if beta >= 10:
        assert found.proposition.value <= found.bound.value + 1e-12
    if beta == math.inf:
        assert found.bound.value == pytest.approx(found.truth.value)  # nothing is lost on a perfect annotator


def test_intervals_and_refusal() -> None:
    found = consistency(*pool(4), annotator=Annotator(1.0, 1.0))
    assert found.truth.low < found.truth.value < found.truth.high
    assert found.bound.low < found.bound.value < found.bound.high
    with pytest.raises(ValueError, match="two responses with different gold"):
        consistency(np.zeros((4, 1)), np.ones(4), np.array([0, 0, 1, 1]), annotator=Annotator(1.0, 1.0))
