"""Pools: one row for each sampled response, with a gold score, several responses to a prompt.

`prompt_id` is the file's own grouping: a prompt may be written out in the first row of its group only, and two texts
under one id are a mistake of the file, so the later one is refused.
"""

from collections.abc import Sequence

from cache.records import Message
from pipeline.readers import cells
from pipeline.readers.example import Answer, Example, Format, Parse, RefusedRowError, Row

DEFAULT_JUDGE = "gold"


def _parser(rows: Sequence[Row]) -> Parse:
    groups: dict[str, list[Message]] = {}

    def parse(row: Row) -> Example:
        prompt = _prompt(row, groups)
        score = cells.number(row, "gold_score")
        if score is None:
            raise RefusedRowError("gold_score is missing")
        judge = cells.label(row, "judge") or DEFAULT_JUDGE
        answer = Answer(cells.text(row, "response"), cells.label(row, "generator"), gold={judge: score})
        return Example(prompt, (answer,), subset=cells.label(row, "subset"), source=cells.label(row, "source"))

    return parse


def _prompt(row: Row, groups: dict[str, list[Message]]) -> list[Message]:
    group = cells.label(row, "prompt_id")
    if group is None:
        return cells.prompt(row)
    if group in groups and row.get("prompt") is None:
        return groups[group]
    prompt = cells.prompt(row)
    if groups.setdefault(group, prompt) != prompt:
        raise RefusedRowError("another prompt has the same prompt_id")
    return prompt


POOL = Format(
    needs="prompt, response, gold_score (and prompt_id, judge, generator, subset where there are any)",
    required=frozenset(["prompt", "response", "gold_score"]),
    reads=frozenset(["prompt_id", "prompt", "response", "gold_score", "judge", "generator", "subset", "source"]),
    parser=_parser,
)
