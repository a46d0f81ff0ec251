"""Simulated annotators: preference pairs from a pool's gold scores, with errors of a known kind.

Drawing pairs and annotating them are two steps, so that the same pairs can be annotated at every quality: `draw_pairs`
says which responses are compared, `Annotator.annotate` which of the two is chosen (arXiv:2411.04991, section 4). Two
responses with the same gold have no better one, and are never drawn.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from bench.intervals import Floats, finite, per_prompt, prompt_numbers, ratio

Pairing = Literal["same", "cross", "similar", "diversified", "cross-similar", "cross-diversified"]
PAIRINGS: tuple[Pairing, ...] = get_args(Pairing)
Rows = NDArray[np.int64]

_LISTED = 1 << 20  # cross-prompt pairs that are listed; of more, pairs are drawn until there are enough


@dataclass(frozen=True)
class Annotator:
    """Chooses the response with the higher gold with probability s(beta |dr| / scale).

    arXiv:2411.04991, eq. (9): beta 0 tosses a coin, infinity never errs.

    Attributes:
        beta: quality of the annotations.
        scale: what gold differences are divided by, in gold's units.
    """

    beta: float
    scale: float

    def error_rate(self, gaps: Floats) -> Floats:
        """The probability that the worse response is chosen, for each |dr| > 0."""
        wrong: Floats = expit(-self.beta * gaps / self.scale)
        return wrong

    def quality(self, gaps: Floats) -> Floats:
        """s(beta |dr| / scale), the probability that a pair is ranked rightly; 1/2 where there is nothing to see."""
        size = np.abs(gaps)
        told = size > 0
        return np.where(told, 1 - self.error_rate(np.where(told, size, 1.0)), 0.5)

    def annotate(self, pairs: Rows, gaps: Floats, *, seed: int) -> tuple[Rows, NDArray[np.bool_]]:
        """Choose in every pair.

        Each pair has a luck of its own, the same for every beta: what a better annotator gets wrong, a worse one gets
        wrong too.

        Args:
            pairs: (better, worse) row numbers; shape (m, 2).
            gaps: gold differences; shape (m,).
            seed: of the annotator's errors.

        Returns: (chosen, rejected) row numbers, (m, 2), and whether the better one was chosen, (m,).
        """
        wrong = np.random.default_rng([seed, 1]).random(len(pairs)) < self.error_rate(gaps)
        return np.where(wrong[:, None], pairs[:, ::-1], pairs), ~wrong


def gold_scale(gold: NDArray[np.floating], prompts: NDArray[np.generic]) -> float:
    """The standard deviation of gold among a prompt's responses, pooled over prompts, in gold's units.

    It belongs to the pool and not to the pairing: at one beta, cross-prompt pairs are then annotated better exactly as
    far as their |dr| is larger.

    Raises: ValueError if gold does not differ within any prompt.
    """
    values, number = finite("gold scores", gold), prompt_numbers(prompts)
    _, sd, size = moments(values, number)
    freedom = np.maximum(size - 1, 0).sum()
    pooled = math.sqrt(float((sd**2 * np.maximum(size - 1, 0)).sum() / freedom)) if freedom else 0.0
    if not pooled:
        raise ValueError("all responses of each prompt have the same gold score, so no annotator could tell them apart")
    return pooled


def draw_pairs(
    gold: NDArray[np.floating],
    prompts: NDArray[np.generic],
    *,
    pairing: Pairing,
    count: int,
    seed: int,
    pairs_per_prompt: int | None = None,
    with_replacement: bool = False,
) -> Rows:
    """Draw pairs of responses with different gold, in random order: a part of them is a smaller draw of the same kind.

    same: two responses to one prompt, all such pairs alike. cross: two responses to different prompts. similar: the two
    middle-ranked responses of a prompt by gold; where these are tied, the neighbours in rank nearest to the middle that
    are not. diversified: its best and its worst. cross-similar, cross-diversified: two responses to different prompts,
    both of them among those of `similar` or `diversified`.

    Args:
        gold: shape (n,), finite.
        prompts: prompt of each response; shape (n,).
        pairing: which responses are compared.
        count: pairs to draw.
        seed: of the draw.
        pairs_per_prompt: take at most so many pairs, at random, of each prompt; for `same` only.
        with_replacement: whether a pair may be drawn again.

    Returns: (better, worse) row numbers; shape (count, 2).
    Raises: ValueError if the pool has fewer pairs of this kind.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"no pairing {pairing!r}; there are {', '.join(PAIRINGS)}")
    if pairs_per_prompt is not None and pairing != "same":
        raise ValueError(
            f"pairs per prompt are a choice for pairing same only: {pairing} pairs "
            + ("have two prompts" if pairing.startswith("cross") else "are one for each prompt")
        )
    values, number = finite("gold scores", gold), prompt_numbers(prompts)
    generator = np.random.default_rng(seed)
    if pairing.startswith("cross"):
        rows = _eligible(values, number, pairing, generator)
        drawn = rows[_draw_cross(values[rows], number[rows], count, pairing, generator, again=with_replacement)]
    else:
        candidates = _capped(_CANDIDATES[pairing](values, number, generator), number, pairs_per_prompt, generator)
        n = len(candidates)
        _require(count, n, pairing, again=with_replacement)
        drawn = candidates[generator.integers(n, size=count) if with_replacement else generator.permutation(n)[:count]]
    return np.where((values[drawn[:, 0]] >= values[drawn[:, 1]])[:, None], drawn, drawn[:, ::-1])


def most_pairs(
    gold: NDArray[np.floating], prompts: NDArray[np.generic], *, pairing: Pairing, pairs_per_prompt: int | None = None
) -> int:
    """How many pairs `draw_pairs` can draw without replacement."""
    values, number = finite("gold scores", gold), prompt_numbers(prompts)
    generator = np.random.default_rng(0)
    if pairing.startswith("cross"):
        rows = _eligible(values, number, pairing, generator)
        return _untied_across(values[rows], number[rows])
    return len(_capped(_CANDIDATES[pairing](values, number, generator), number, pairs_per_prompt, generator))


def moments(values: Floats, number: Rows) -> tuple[Floats, Floats, Rows]:
    """Of each prompt: mean, standard deviation (n - 1 in the denominator, 0 for one response) and responses."""
    size = np.bincount(number)
    mean = per_prompt(values, number) / size
    squares = per_prompt((values - mean[number]) ** 2, number)
    return mean, np.sqrt(np.nan_to_num(ratio(squares, (size - 1).astype(np.float64)))), size


def _same(gold: Floats, number: Rows, generator: np.random.Generator) -> Rows:
    """All pairs of a prompt's responses, untied."""
    size = np.bincount(number)
    start, grouped = np.cumsum(size) - size, np.argsort(number, kind="stable")
    found = [np.empty((0, 2), dtype=np.int64)]
    for n in np.unique(size[size > 1]):
        one, other = np.triu_indices(int(n), k=1)
        rows = grouped[start[size == n, None] + np.arange(n)]
        found.append(np.stack([rows[:, one].ravel(), rows[:, other].ravel()], axis=1))
    return _untied(gold, np.concatenate(found))


def _diversified(gold: Floats, number: Rows, generator: np.random.Generator) -> Rows:
    """The best and the worst of each prompt, untied."""
    size = np.bincount(number)
    start, ordered = np.cumsum(size) - size, _ordered(gold, number, generator)
    some = size > 0
    return _untied(gold, np.stack([ordered[(start + size - 1)[some]], ordered[start[some]]], axis=1))


def _similar(gold: Floats, number: Rows, generator: np.random.Generator) -> Rows:
    """The two untied neighbours in rank that are nearest to the middle of each prompt."""
    size = np.bincount(number)
    start, ordered = np.cumsum(size) - size, _ordered(gold, number, generator)
    lower = np.flatnonzero((number[ordered[1:]] == number[ordered[:-1]]) & (gold[ordered[1:]] != gold[ordered[:-1]]))
    prompt = number[ordered[lower]]
    from_middle = np.abs(2 * (lower - start[prompt]) + 2 - size[prompt])
    nearest = np.lexsort((generator.random(len(lower)), from_middle, prompt))
    first = nearest[np.unique(prompt[nearest], return_index=True)[1]]
    return np.stack([ordered[lower[first] + 1], ordered[lower[first]]], axis=1)


def _ordered(gold: Floats, number: Rows, generator: np.random.Generator) -> Rows:
    """All rows by prompt and ascending gold; the order of equal golds is a coin toss, not that of storage."""
    return np.lexsort((generator.random(len(gold)), gold, number))


_CANDIDATES: dict[str, Callable[[Floats, Rows, np.random.Generator], Rows]] = {
    "same": _same,
    "similar": _similar,
    "diversified": _diversified,
}


def _untied(gold: Floats, pairs: Rows) -> Rows:
    kept: Rows = pairs[gold[pairs[:, 0]] != gold[pairs[:, 1]]]
    return kept


def _capped(pairs: Rows, number: Rows, most: int | None, generator: np.random.Generator) -> Rows:
    """At most `most` pairs of each prompt, at random."""
    if most is None:
        return pairs
    pairs = generator.permutation(pairs)
    prompt = number[pairs[:, 0]]
    order = np.argsort(prompt, kind="stable")
    size = np.bincount(prompt)
    rank = np.empty(len(pairs), dtype=np.int64)
    rank[order] = np.arange(len(pairs)) - (np.cumsum(size) - size)[prompt[order]]
    return pairs[rank < most]


def _eligible(gold: Floats, number: Rows, pairing: str, generator: np.random.Generator) -> Rows:
    """Rows that a cross-prompt pairing may take."""
    if pairing == "cross":
        return np.arange(len(gold))
    return np.sort(_CANDIDATES[pairing.removeprefix("cross-")](gold, number, generator), axis=None)


def _draw_cross(
    gold: Floats, number: Rows, count: int, pairing: str, generator: np.random.Generator, *, again: bool
) -> Rows:
    """Untied pairs of rows of different prompts.

    Which way they are drawn depends on the pool alone, so that a smaller draw is always the beginning of a larger.
    """
    n, most = len(gold), _untied_across(gold, number)
    _require(count, most, pairing, again=again)
    if not again and most <= _LISTED:
        every = np.stack(np.triu_indices(n, k=1), axis=1)
        every = _untied(gold, every[number[every[:, 0]] != number[every[:, 1]]])
        return every[generator.permutation(most)[:count]]
    drawn = np.empty((0, 2), dtype=np.int64)
    while len(drawn) < count:
        more = generator.integers(n, size=(max(2 * (count - len(drawn)), len(drawn) // 2) + 64, 2))
        one, other = more.T
        drawn = np.concatenate([drawn, more[(number[one] != number[other]) & (gold[one] != gold[other])]])
        if not again:
            key = drawn.min(axis=1) * n + drawn.max(axis=1)
            drawn = drawn[np.sort(np.unique(key, return_index=True)[1])]
    return drawn[:count]


def _untied_across(gold: Floats, number: Rows) -> int:
    """How many pairs of rows differ in both prompt and gold: all, less those of one prompt, less tied, plus both."""
    level = np.unique(gold, return_inverse=True)[1].reshape(-1)
    same_prompt, tied = _couples(number), _couples(level)
    return _choose_two(len(gold)) - same_prompt - tied + _couples(number * (level.max(initial=0) + 1) + level)


def _couples(groups: Rows) -> int:
    return sum(_choose_two(size) for size in np.unique(groups, return_counts=True)[1].tolist())


def _choose_two(n: int) -> int:
    return n * (n - 1) // 2


def _require(count: int, most: int, pairing: str, *, again: bool) -> None:
    if count < 1:
        raise ValueError(f"{count} pairs were asked for; ask for one or more")
    if most == 0:
        raise ValueError(f"the pool has no {pairing} pair with different gold scores; take another pairing")
    if count > most and not again:
        raise ValueError(
            f"{count:,} {pairing} pairs were asked for and the pool has {most:,} with different gold scores; "
            "ask for at most that many, or draw with replacement"
        )
