"""Pairs drawn from tiny pools by hand, and annotators held against theory."""

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.annotate import PAIRINGS, Annotator, Pairing, draw_pairs, gold_scale, most_pairs
from bench.annotation_quality import gaussian_mean_gap, quality

GOLD = np.array([1.0, 10.0, 3.0, 2.0, 5.0, 0.0])
PROMPTS = np.array(["a", "a", "a", "a", "b", "b"])


def drawn(pairing: Pairing, count: int, gold: NDArray[np.float64] = GOLD, **options: int) -> set[tuple[int, int]]:
    pairs = draw_pairs(gold, PROMPTS, pairing=pairing, count=count, seed=3, **options)
    assert (gold[pairs[:, 0]] > gold[pairs[:, 1]]).all()  # the better one first
    return {(int(better), int(worse)) for better, worse in pairs}


def gaussian_pool(prompts: int, responses: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Prompts of unit standard deviation whose means spread as much."""
    generator = np.random.default_rng(seed)
    gold = generator.normal(size=(prompts, 1)) + generator.normal(size=(prompts, responses))
    return gold.ravel(), np.repeat(np.arange(prompts), responses)


def test_similar_takes_the_middle_two_and_diversified_the_ends() -> None:
    assert drawn("similar", 2) == {(2, 3), (4, 5)}
    assert drawn("diversified", 2) == {(1, 0), (4, 5)}


def test_a_tied_middle_moves_to_the_nearest_neighbours_that_differ() -> None:
    gold = np.array([1.0, 2.0, 2.0, 9.0, 5.0, 5.0])
    assert drawn("similar", 1, gold) <= {(1, 0), (2, 0), (3, 1), (3, 2)}
    assert most_pairs(gold, PROMPTS, pairing="similar") == 1  # prompt b has no pair that differs


def test_same_and_cross_exhaust_all_their_pairs() -> None:
    same, cross = drawn("same", 7), drawn("cross", 8)
    assert len(same) == 7  # 4 choose 2, and 1
    assert len(cross) == 8  # 4 times 2
    assert all((PROMPTS[i] == PROMPTS[j]) == (pair in same) for pair in same | cross for i, j in [pair])


def test_cross_counts_leave_out_ties_across_prompts_only_once() -> None:
    gold = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    assert most_pairs(gold, PROMPTS, pairing="cross") == 4  # 0s of a with 1 of b: 2; 1s of a with 0 of b: 2
    assert len(drawn("cross", 4, gold)) == 4


def test_cross_similar_takes_the_middle_responses_only() -> None:
    assert drawn("cross-similar", 4) == {(2, 5), (3, 5), (4, 2), (4, 3)}
    assert drawn("cross-diversified", 4) == {(1, 4), (1, 5), (4, 0), (0, 5)}


def test_pairs_per_prompt_caps_each_prompt() -> None:
    gold, prompts = gaussian_pool(50, 6)
    pairs = draw_pairs(gold, prompts, pairing="same", count=100, seed=0, pairs_per_prompt=2)
    assert (np.bincount(prompts[pairs[:, 0]]) == 2).all()


def test_with_replacement_has_no_most_and_repeats_pairs() -> None:
    pairs = draw_pairs(GOLD, PROMPTS, pairing="similar", count=100, seed=0, with_replacement=True)
    assert len(pairs) == 100 and len(np.unique(pairs, axis=0)) == 2


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_too_many_pairs_is_one_sentence_that_says_how_many_there_are(pairing: Pairing) -> None:
    most = most_pairs(GOLD, PROMPTS, pairing=pairing)
    with pytest.raises(ValueError, match=f"99 {pairing} pairs were asked for and the pool has {most} with different"):
        draw_pairs(GOLD, PROMPTS, pairing=pairing, count=99, seed=0)


def test_pairs_per_prompt_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(ValueError, match="cross pairs have two prompts"):
        draw_pairs(GOLD, PROMPTS, pairing="cross", count=1, seed=0, pairs_per_prompt=1)


def test_the_scale_is_the_pooled_deviation_within_prompts() -> None:
    gold = np.array([0.0, 2.0, 10.0, 12.0, 14.0])  # squares 2 and 8, with 1 and 2 degrees of freedom
    assert gold_scale(gold, np.array([0, 0, 1, 1, 1])) == pytest.approx(math.sqrt(10 / 3))
    with pytest.raises(ValueError, match="same gold score"):
        gold_scale(np.array([1.0, 1.0, 2.0]), np.array([0, 0, 1]))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0, 5.0, 10.0, math.inf])
@pytest.mark.parametrize("pairing", ["same", "cross"])
def test_realised_error_rates_are_those_of_theory(beta: float, pairing: Pairing) -> None:
    gold, prompts = gaussian_pool(400, 40)
    pairs = draw_pairs(gold, prompts, pairing=pairing, count=50_000, seed=1)
    annotator = Annotator(beta, gold_scale(gold, prompts))
    chosen, right = annotator.annotate(pairs, gold[pairs[:, 0]] - gold[pairs[:, 1]], seed=1)
    assert ((gold[chosen[:, 0]] > gold[chosen[:, 1]]) == right).all()
    found = quality(gold, prompts, pairs, right, annotator=annotator, pairing=pairing)
    spread = 2 if pairing == "cross" else math.sqrt(2)  # of dr, in units of the prompts' standard deviation
    gaps = np.abs(np.random.default_rng(0).normal(0, spread, 1_000_000))
    theory = 0.0 if beta == math.inf else float(np.mean(1 / (1 + np.exp(beta * gaps))))
    assert found.error_rate == pytest.approx(theory, abs=0.012)
    assert found.error_rate == pytest.approx(found.expected_error_rate, abs=0.008)
    assert found.gaussian_error_rate == pytest.approx(theory, abs=0.012)


def test_the_gap_between_two_prompts_follows_the_formula() -> None:
    drawn = np.random.default_rng(2).normal(size=(2, 3000))
    drawn = (drawn - drawn.mean(axis=1, keepdims=True)) / drawn.std(axis=1, keepdims=True)
    gold, prompts = np.concatenate([1 + 0.5 * drawn[0], 0.2 + 1.5 * drawn[1]]), np.repeat([0, 1], 3000)
    pairs = draw_pairs(gold, prompts, pairing="cross", count=60_000, seed=0)
    m, s = 0.8, math.sqrt(0.5**2 + 1.5**2)
    phi = 0.5 * math.erfc(m / s / math.sqrt(2))  # Phi(-m/s)
    theory = s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * (1 - 2 * phi)
    assert gaussian_mean_gap(np.array([m]), np.array([s]))[0] == pytest.approx(theory)
    assert (gold[pairs[:, 0]] - gold[pairs[:, 1]]).mean() == pytest.approx(theory, rel=0.01)
    found = quality(gold, prompts, pairs, np.ones(len(pairs), bool), annotator=Annotator(1, 1), pairing="cross")
    assert found.gaussian_mean_gap == pytest.approx(found.mean_gap, rel=0.01)


def test_the_gap_within_a_prompt_is_two_sigma_over_root_pi() -> None:
    assert gaussian_mean_gap(np.zeros(1), np.array([3 * math.sqrt(2)]))[0] == pytest.approx(6 / math.sqrt(math.pi))
    assert gaussian_mean_gap(np.array([-2.0]), np.zeros(1))[0] == 2.0  # nothing varies


@pytest.mark.parametrize(("pairing", "responses", "gap"), [("diversified", 2, 1.1284), ("diversified", 10, 3.0775),
                                                           ("similar", 2, 1.1284), ("similar", 4, 0.5940)])  # fmt: skip
def test_gaps_of_order_statistics_are_those_of_tables(pairing: Pairing, responses: int, gap: float) -> None:
    """Expected range, and twice the expected 3rd of 4, of standard normals (tables of normal order statistics)."""
    gold, prompts = gaussian_pool(20_000, responses)
    pairs = draw_pairs(gold, prompts, pairing=pairing, count=20_000, seed=0)
    found = quality(gold, prompts, pairs, np.ones(len(pairs), bool), annotator=Annotator(1, 1), pairing=pairing)
    assert found.gaussian_mean_gap == pytest.approx(gap, rel=0.02)
    assert found.mean_gap == pytest.approx(gap, rel=0.02)


def test_a_better_annotator_makes_no_error_that_a_worse_one_does_not() -> None:
    gold, prompts = gaussian_pool(50, 10)
    pairs = draw_pairs(gold, prompts, pairing="same", count=500, seed=0)
    gaps = gold[pairs[:, 0]] - gold[pairs[:, 1]]
    worse, better = (Annotator(beta, 1.0).annotate(pairs, gaps, seed=7)[1] for beta in (1.0, 3.0))
    assert (better | ~worse).all() and better.sum() > worse.sum()


def test_a_million_pairs_take_about_a_second() -> None:
    gold, prompts = gaussian_pool(100_000, 10)
    started = time.process_time()
    pairs = draw_pairs(gold, prompts, pairing="cross", count=1_000_000, seed=0)
    chosen, _ = Annotator(1.0, 1.0).annotate(pairs, gold[pairs[:, 0]] - gold[pairs[:, 1]], seed=0)
    assert len(np.unique(pairs.min(1) * len(gold) + pairs.max(1))) == len(chosen) == 1_000_000
    assert time.process_time() - started < 4  # 1.2 s when the machine is quiet
