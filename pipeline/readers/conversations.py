"""Conversations without any annotation, to be scored: prompt and response, or one list of messages."""

from collections.abc import Sequence

from cache.records import Message
from pipeline.readers import cells
from pipeline.readers.example import Answer, Example, Format, Parse, RefusedRowError, Row

LABELS = frozenset(["generator", "subset", "source"])


def _parse_messages(row: Row) -> Example:
    value = row.get("messages")
    if not isinstance(value, list):
        raise RefusedRowError(f"messages holds {cells.kind(value)} where a list of messages is expected")
    *before, last = cells.messages(value, "messages")
    if last["role"] != "assistant":
        raise RefusedRowError("messages does not end with an assistant reply")
    return _unannotated(row, cells.with_user_turn(before), cells.filled(last["content"], "messages"))


def _parse_response(row: Row) -> Example:
    return _unannotated(row, cells.prompt(row), cells.text(row, "response"))


def _unannotated(row: Row, prompt: Sequence[Message], response: str) -> Example:
    answer = Answer(response, cells.label(row, "generator"))
    return Example(prompt, (answer,), subset=cells.label(row, "subset"), source=cells.label(row, "source"))


def _messages_parser(rows: Sequence[Row]) -> Parse:
    return _parse_messages


def _responses_parser(rows: Sequence[Row]) -> Parse:
    return _parse_response


RESPONSES = Format(
    needs="prompt, response",
    required=frozenset(["prompt", "response"]),
    reads=LABELS.union(["prompt", "response"]),
    parser=_responses_parser,
)
MESSAGES = Format(
    needs="messages that end with the assistant's reply",
    required=frozenset(["messages"]),
    reads=LABELS.union(["messages"]),
    parser=_messages_parser,
)
