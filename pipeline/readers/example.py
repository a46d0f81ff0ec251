"""What a format is, and the `Example` that it makes of one row of a source."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cache.records import Message

Row = Mapping[str, Any]


class RefusedRowError(Exception):
    """This row cannot be carried; the message is the reason under which it is counted."""


class LeftOutRowError(Exception):
    """Nothing is wrong with this row, but it prefers neither response, so it gives no pair; the message is the reason.

    Counted in dataset.json under `left_out`, apart from rows that were refused.
    """


@dataclass(frozen=True)
class Answer:
    """One response in a row, with the attribute scores and the gold scores (by judge) that the row gives it.

    `prompt` is what it answers where that is not the Example's prompt: two conversations that were judged by their
    second replies differ in the first.
    """

    text: str
    generator: str | None = None
    attributes: Mapping[str, float] = field(default_factory=dict)
    gold: Mapping[str, float] = field(default_factory=dict)
    prompt: Sequence[Message] | None = None


class Preference(NamedTuple):
    """Positions of the chosen and the rejected answer in `Example.responses`; what else the pair has of its own.

    `source` stands for `Example.source` where pairs of one row have different ones.
    """

    chosen: int
    rejected: int
    margin: float | None = None
    subset: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Example:
    """One row, understood: a prompt, its responses, and what was annotated on them."""

    prompt: Sequence[Message]
    responses: tuple[Answer, ...]
    pairs: tuple[Preference, ...] = ()
    subset: str | None = None
    source: str | None = None


Parse = Callable[[Row], Example]


def any_rows(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    """Matches whatever the rows hold: for formats that their columns alone give away."""
    return True


@dataclass(frozen=True)
class Format:
    """One way to lay out a dataset.

    Attributes:
        needs: its columns in words, for the error that lists all formats.
        required: columns without which it cannot be read.
        reads: every column it may look at; others are listed in dataset.json as unused.
        parser: given the first rows, the function that turns a row into an Example or raises RefusedRowError or
            LeftOutRowError. Called once for each source, so what a format must remember between rows lives in that
            function.
        matches: given all columns and the first rows, whether a source with the required columns is of this format.
        note: what whoever uses the dataset should know about how it was read.
    """

    needs: str
    required: frozenset[str]
    reads: frozenset[str]
    parser: Callable[[Sequence[Row]], Parse]
    matches: Callable[[frozenset[str], Sequence[Row]], bool] = any_rows
    note: str | None = None
