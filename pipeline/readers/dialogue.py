r"""HH-RLHF dialogue text: turns opened by "\n\nHuman: " and "\n\nAssistant: ", two sharing all but the last reply.

The separator, with its one space, belongs to the format and is taken off; everything else stays as it is, blank ends
included. A `prompt` column in the same notation (it ends with "\n\nAssistant:") with bare replies is read too.
"""

import re
from collections.abc import Sequence

from cache.records import Message
from pipeline.readers import cells
from pipeline.readers.example import Example, Format, Parse, RefusedRowError, Row
from pipeline.readers.preference import READS, preferred

TURN = re.compile(r"(?:\A\n*|\n\n)(Human|Assistant): ?")
ROLE = {"Human": "user", "Assistant": "assistant"}


def turns(dialogue: str, column: str) -> list[Message]:
    """The dialogue's turns; refused when it does not open with one."""
    opening, *parts = TURN.split(dialogue)
    if opening or not parts:
        raise RefusedRowError(f"{column} is not dialogue text that starts with Human:")
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": ROLE[speaker], "content": cells.storable(content, column)} for speaker, content in pairs]


def _parse(row: Row) -> Example:
    if row.get("prompt") is not None:
        prompt, chosen, rejected = _explicit(row)
    else:
        prompt, chosen, rejected = _implicit(row)
    return preferred(row, cells.with_user_turn(prompt), chosen, rejected)


def _implicit(row: Row) -> tuple[list[Message], str, str]:
    before_chosen, chosen = _split(row, "chosen")
    before_rejected, rejected = _split(row, "rejected")
    if before_chosen != before_rejected:
        raise RefusedRowError("chosen and rejected share no prompt: they differ before the last reply")
    return before_chosen, chosen, rejected


def _split(row: Row, column: str) -> tuple[list[Message], str]:
    *before, last = turns(cells.text(row, column), column)
    if last["role"] != "assistant":
        raise RefusedRowError(f"{column} does not end with an Assistant reply")
    return before, cells.filled(last["content"], column)


def _explicit(row: Row) -> tuple[list[Message], str, str]:
    """A prompt that leaves the last Assistant turn open: a reply's first space may be the separator's."""
    text = cells.text(row, "prompt")
    *before, last = turns(text, "prompt")
    if last["role"] != "assistant" or last["content"]:
        raise RefusedRowError("prompt does not end with Assistant:")
    separator = " " if text.endswith(":") else ""
    chosen, rejected = (cells.text(row, column).removeprefix(separator) for column in ("chosen", "rejected"))
    return before, chosen, rejected


def _is_dialogue(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    """True when any of the first rows is one: the other formats would take it for plain text and guess its prompt."""
    column = "prompt" if "prompt" in columns else "chosen"
    texts = (row.get(column) for row in rows)
    return any(isinstance(text, str) and _opens_as_dialogue(text, column) for text in texts)


def _opens_as_dialogue(text: str, column: str) -> bool:
    if column == "prompt" and not text.rstrip().endswith("\n\nAssistant:"):
        return False
    return text.startswith(("\n\nHuman:", "Human:")) and "\n\nAssistant:" in text


def _parser(rows: Sequence[Row]) -> Parse:
    return _parse


HH_RLHF = Format(
    needs='chosen, rejected as "\\n\\nHuman: ... \\n\\nAssistant: ..." text',
    required=frozenset(["chosen", "rejected"]),
    reads=READS,
    parser=_parser,
    matches=_is_dialogue,
)
