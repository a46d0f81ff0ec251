"""Which pairs to annotate next: at random, where a linear reward is unsure, or where it would learn most.

A linear Bradley-Terry reward w.z has, at its solution, the information H = lambda I + sum p (1 - p) d d^T over the
annotated pairs, d their feature differences and p = s(w.d). A pair more adds p (1 - p) d d^T, and by the matrix
determinant lemma it raises log det H by log(1 + p (1 - p) d^T H^-1 d): the D-optimal score (Chaloner and Verdinelli
1995, "Bayesian experimental design: a review"; for reward models on a last layer, arXiv:2502.04354).
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Choice = Literal["random", "uncertainty", "d-optimal"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
Matrix = NDArray[np.float64]


def choose_pairs(
    differences: NDArray[np.floating],
    weight: NDArray[np.floating],
    annotated: NDArray[np.int64],
    *,
    choice: Choice,
    count: int,
    l2: float,
    seed: int,
) -> NDArray[np.int64]:
    """Choose the next pairs to annotate.

    Args:
        differences: standardised feature differences of all candidate pairs; shape (m, d).
        weight: of the linear reward fitted on what is annotated; shape (d,).
        annotated: numbers of the pairs that are annotated already; shape (a,).
        choice: "random"; "uncertainty", pairs whose p is nearest to 1/2; "d-optimal", greedily the pair with the
            largest p (1 - p) d^T H^-1 d, H renewed after each by Sherman and Morrison's formula, so that a batch does
            not ask the same question twice.
        count: pairs to choose.
        l2: the linear reward's penalty, that of a mean over pairs: lambda is `l2` times the annotated pairs.
        seed: for "random".

    Returns: numbers of `count` pairs that are not annotated, the most wanted first.
    Raises: ValueError if there are not so many.
    """
    if choice not in CHOICES:
        raise ValueError(f"no choice {choice!r}; there are {', '.join(CHOICES)}")
    free = np.setdiff1d(np.arange(len(differences)), annotated)
    if count > len(free):
        raise ValueError(f"{count} pairs were asked for and {len(free)} are not annotated; ask for at most that many")
    if choice == "random":
        return np.random.default_rng(seed).permutation(free)[:count]
    d = np.asarray(differences, dtype=np.float64)
    margin = np.asarray(d @ weight, dtype=np.float64)
    if choice == "uncertainty":
        return free[np.argsort(np.abs(margin[free]), kind="stable")[:count]]
    rows: Matrix = np.asarray(d * np.sqrt(expit(margin) * expit(-margin))[:, None], dtype=np.float64)
    return free[_greedy(rows[free], _inverse(rows[annotated], l2 * max(len(annotated), 1)), count)]


def _inverse(rows: Matrix, strength: float) -> Matrix:
    """(strength I + rows^T rows)^-1: (a, d) -> (d, d)."""
    return np.asarray(np.linalg.inv(strength * np.eye(rows.shape[1]) + rows.T @ rows), dtype=np.float64)


def _greedy(rows: Matrix, inverse: Matrix, count: int) -> NDArray[np.int64]:
    """`count` rows x, each with the largest x^T H^-1 x after those before it have been added to H.

    Adding x takes H^-1 to H^-1 - u u^T / (1 + x.u), u = H^-1 x, and every row's score down by (row.u)^2 / (1 + x.u):
    the matrix is never formed again, only the u are kept.
    """
    scores = np.einsum("ij,ij->i", rows @ inverse, rows)
    steps = np.empty((count, rows.shape[1]))
    chosen = np.empty(count, dtype=np.int64)
    for number in range(count):
        best = chosen[number] = int(np.argmax(scores))
        x, before = rows[best], steps[:number]
        u = inverse @ x - before.T @ (before @ x)
        steps[number] = u / np.sqrt(1 + x @ u)
        scores -= np.square(rows @ steps[number])
        scores[chosen[: number + 1]] = -np.inf
    return chosen
