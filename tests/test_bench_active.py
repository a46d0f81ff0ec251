"""The choice of pairs, held against the scores written out."""

import numpy as np
import pytest

from bench.active import choose_pairs

GENERATOR = np.random.default_rng(0)
D = GENERATOR.normal(size=(60, 5))
W = GENERATOR.normal(size=5)
ANNOTATED = np.array([3, 10, 41])
NONE = np.empty(0, dtype=np.int64)


def greedy(count: int, l2: float) -> list[int]:
    """The same choice with H formed anew for every pair."""
    p = 1 / (1 + np.exp(-D @ W))
    weight = p * (1 - p)
    taken: list[int] = []
    for _ in range(count):
        rows = [*ANNOTATED, *taken]
        h = l2 * len(ANNOTATED) * np.eye(5) + (D[rows] * weight[rows, None]).T @ D[rows]
        scores = weight * np.einsum("ij,jk,ik->i", D, np.linalg.inv(h), D)
        scores[rows] = -np.inf
        taken.append(int(np.argmax(scores)))
    return taken


def test_d_optimal_is_the_greedy_choice_with_h_formed_anew() -> None:
    found = choose_pairs(D, W, ANNOTATED, choice="d-optimal", count=20, l2=0.1, seed=0)
    assert found.tolist() == greedy(20, 0.1)


def test_d_optimal_does_not_ask_the_same_question_twice() -> None:
    twins = np.array([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [0.0, 1.0]])
    found = choose_pairs(twins, np.zeros(2), NONE, choice="d-optimal", count=2, l2=0.01, seed=0)
    assert found.tolist() == [0, 3]


def test_uncertainty_takes_the_margins_nearest_to_zero() -> None:
    found = choose_pairs(D, W, ANNOTATED, choice="uncertainty", count=5, l2=0.1, seed=0)
    free = np.setdiff1d(np.arange(60), ANNOTATED)
    assert found.tolist() == free[np.argsort(np.abs(D[free] @ W))][:5].tolist()


def test_random_takes_any_that_is_not_annotated() -> None:
    found = choose_pairs(D, W, ANNOTATED, choice="random", count=57, l2=0.1, seed=0)
    assert sorted([*found, *ANNOTATED]) == list(range(60))
    with pytest.raises(ValueError, match="58 pairs were asked for and 57 are not annotated"):
        choose_pairs(D, W, ANNOTATED, choice="random", count=58, l2=0.1, seed=0)


def test_an_informed_choice_learns_more_than_a_random_one() -> None:
    """log det H of what is chosen: what D-optimality is about."""
    p = 1 / (1 + np.exp(-D @ W))

    def information(rows: np.ndarray) -> float:
        h = 0.1 * np.eye(5) + (D[rows] * (p * (1 - p))[rows, None]).T @ D[rows]
        return float(np.linalg.slogdet(h)[1])

    best = information(choose_pairs(D, W, NONE, choice="d-optimal", count=10, l2=0.1, seed=0))
    others = [information(choose_pairs(D, W, NONE, choice="random", count=10, l2=0.1, seed=s)) for s in range(20)]
    assert best > max(others)
