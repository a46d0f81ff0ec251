"""Checks on the cells of one row.

A check either returns the cell's content exactly as it stands or raises `RefusedRowError`. Reasons name the column and
the kind of defect, never the row's own text, so that refusals can be counted.
"""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

from cache.records import Message
from pipeline.readers.example import RefusedRowError, Row

ROLES = ("system", "user", "assistant", "tool")


def text(row: Row, column: str) -> str:
    """The cell's text, not blank."""
    value = row.get(column)
    if value is None:
        raise RefusedRowError(f"{column} is missing")
    if not isinstance(value, str):
        raise RefusedRowError(f"{column} holds {kind(value)} where one text is expected")
    return filled(value, column)


def filled(value: str, column: str) -> str:
    """`value`, once it is known to have something in it and to be storable."""
    if not value.strip():
        raise RefusedRowError(f"{column} is empty")
    return storable(value, column)


def storable(value: str, column: str) -> str:
    """`value`, once it is known to be valid Unicode: JSON can smuggle in half of a surrogate pair."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RefusedRowError(f"{column} is not valid Unicode (a lone surrogate)") from error
    return value


def number(row: Row, column: str) -> float | None:
    """The cell's number; None where it is missing or NaN."""
    value = row.get(column)
    if value is None:
        return None
    if not is_number(value):
        raise RefusedRowError(f"{column} holds {kind(value)} where a number is expected")
    try:
        score = float(value)
    except OverflowError:
        score = math.inf
    if math.isinf(score):
        raise RefusedRowError(f"{column} is infinite")
    return None if math.isnan(score) else score


def is_number(value: object) -> bool:
    """True for integers, floats and decimals; not for booleans."""
    return isinstance(value, Real | Decimal) and not isinstance(value, bool)


def label(row: Row, column: str) -> str | None:
    """A name such as a generator or a subset; numbers become their text, None stays None."""
    value = row.get(column)
    if value is None or isinstance(value, str):
        return None if value is None else storable(value, column)
    if is_number(value) or isinstance(value, bool):
        return str(value)
    raise RefusedRowError(f"{column} holds {kind(value)} where a name is expected")


def prompt(row: Row) -> list[Message]:
    """The `prompt` cell as messages, a text being one user turn; at least one user turn says something."""
    value = row.get("prompt")
    turns = messages(value, "prompt") if isinstance(value, list) else [user(text(row, "prompt"))]
    return with_user_turn(turns)


def user(content: str) -> Message:
    """A user turn."""
    return {"role": "user", "content": content}


def with_user_turn(turns: list[Message]) -> list[Message]:
    """`turns`, once it is known that a user speaks in them."""
    if not any(turn["role"] == "user" and turn["content"].strip() for turn in turns):
        raise RefusedRowError("the prompt has no user turn")
    return turns


def messages(value: Sequence[object], column: str) -> list[Message]:
    """A list of {"role", "content"} with known roles and text content; other keys fall away."""
    if not value:
        raise RefusedRowError(f"{column} is empty")
    if not all(isinstance(turn, Mapping) for turn in value):
        raise RefusedRowError(f"{column} holds {kind(value)} where one text or a list of messages is expected")
    return [_message(turn, column) for turn in value if isinstance(turn, Mapping)]


def _message(turn: Mapping[str, Any], column: str) -> Message:
    role, content = turn.get("role"), turn.get("content")
    if role is None or content is None:
        raise RefusedRowError(f"a message in {column} has no {'role' if role is None else 'content'}")
    if role not in ROLES:
        raise RefusedRowError(f"a message in {column} has the unknown role {str(role)[:20]!r}")
    if not isinstance(content, str):
        raise RefusedRowError(f"a message in {column} has {kind(content)} as content where text is expected")
    if turn.get("tool_calls"):
        raise RefusedRowError(f"a message in {column} has tool calls, which the tables cannot hold")
    return {"role": role, "content": storable(content, column)}


def kind(value: object) -> str:
    """What a cell holds, in words: "a list of 3 texts", "an object", "a number"."""
    if isinstance(value, list):
        return f"a list of {len(value)}" + (" texts" if all(isinstance(item, str) for item in value) else "")
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "true or false"
    return "a number" if is_number(value) else f"a {type(value).__name__}"
