"""Attribute tables: prompt, response, and one numeric column for each attribute; HelpSteer and HelpSteer2 among them.

An attribute is any column that holds numbers and nothing else in the first rows, ids and bookkeeping apart. A
missing score or NaN means "not annotated".
"""

import re
from collections.abc import Mapping, Sequence

from cache.records import Message
from pipeline.readers import cells
from pipeline.readers.example import Answer, Example, Format, Parse, RefusedRowError, Row

HELPSTEER2_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
READS = frozenset(["prompt", "response", "generator", "subset", "source"])
# ids, counters and sampling settings are numbers too; pandas writes an index as Unnamed, __index_level or ""
BOOKKEEPING = re.compile(
    r"(.*_)?(id|ids|idx|index|seed|timestamp)|(num_)?turns?|temperature|top_[pk]|Unnamed: \d+|__index_level_\d+__|"
)
TURN = re.compile(r"\n?<extra_id_1>(?:(User|Assistant)\n)?")


def rated(row: Row, prompt: Sequence[Message], scores: Mapping[str, float]) -> Example:
    """The Example of one annotated response; refused when nothing is annotated."""
    response = cells.text(row, "response")
    if not scores:
        raise RefusedRowError("no attribute is annotated")
    return Example(
        prompt,
        (Answer(response, cells.label(row, "generator"), attributes=scores),),
        subset=cells.label(row, "subset"),
        source=cells.label(row, "source"),
    )


def attribute_columns(rows: Sequence[Row]) -> tuple[list[str], frozenset[str]]:
    """The attributes among the columns of the first rows, and the columns that are none.

    A column that is empty in all of these rows is in neither: it may turn out to hold scores later.
    """
    columns = dict.fromkeys(column for row in rows for column in row)
    numeric = {
        column: [cells.is_number(row[column]) for row in rows if row.get(column) is not None] for column in columns
    }
    none = frozenset(c for c in columns if c in READS or BOOKKEEPING.fullmatch(c) or not all(numeric[c]))
    return [column for column in columns if column not in none and numeric[column]], none


def _parser(rows: Sequence[Row]) -> Parse:
    attributes, others = attribute_columns(rows)

    def parse(row: Row) -> Example:
        late = [c for c, v in row.items() if c not in others and c not in attributes and cells.is_number(v)]
        return rated(row, cells.prompt(row), _scores(row, [*attributes, *late]))

    return parse


def _scores(row: Row, attributes: Sequence[str]) -> dict[str, float]:
    scores = {attribute: cells.number(row, attribute) for attribute in attributes}
    return {attribute: score for attribute, score in scores.items() if score is not None}


def helpsteer2_prompt(row: Row) -> list[Message]:
    """The prompt's turns; the first is the user's, the others start with <extra_id_1>User or <extra_id_1>Assistant.

    Without those names the turns alternate. The newline on each side of a marker is the format's.
    """
    content, *rest = TURN.split(cells.text(row, "prompt"))
    turns: list[Message] = [cells.user(content)]
    for name, content in zip(rest[::2], rest[1::2], strict=True):
        speaker = name or ("Assistant" if turns[-1]["role"] == "user" else "User")
        turns.append({"role": speaker.lower(), "content": content})
    return cells.with_user_turn(turns)


def _helpsteer2_parser(rows: Sequence[Row]) -> Parse:
    return lambda row: rated(row, helpsteer2_prompt(row), _scores(row, HELPSTEER2_ATTRIBUTES))


def _has_attributes(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    return bool(attribute_columns(rows)[0])


HELPSTEER2 = Format(
    needs=f"prompt, response, {', '.join(HELPSTEER2_ATTRIBUTES)}",
    required=frozenset(["prompt", "response", *HELPSTEER2_ATTRIBUTES]),
    reads=READS,
    parser=_helpsteer2_parser,
)
ATTRIBUTES = Format(
    needs="prompt, response and at least one numeric column",
    required=frozenset(["prompt", "response"]),
    reads=READS,
    parser=_parser,
    matches=_has_attributes,
)
