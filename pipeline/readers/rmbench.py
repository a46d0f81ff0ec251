"""RM-Bench: a prompt, three chosen and three rejected responses in the same three styles.

Every chosen response is preferred to every rejected one: nine pairs, whose subset is the domain and how hard they are.
Hard is a pair whose rejected response is the more adorned one, easy its mirror image (arXiv:2410.16184, section 3.3).
Two styles may have the same text, so the pair says it, and not the responses: its source is "concise > detailed" where
a concise response is preferred to a detailed one.
"""

from collections.abc import Sequence

from pipeline.readers import cells
from pipeline.readers.example import Answer, Example, Format, Parse, Preference, RefusedRowError, Row

STYLES = ("concise", "detailed", "detailed markdown")  # in the order of its lists


def _parse(row: Row) -> Example:
    chosen, rejected = (_texts(row, column) for column in ("chosen", "rejected"))
    if set(chosen) & set(rejected):
        raise RefusedRowError("a response is both chosen and rejected")
    answers = [Answer(text, style) for texts in (chosen, rejected) for text, style in zip(texts, STYLES, strict=True)]
    domain, count = cells.label(row, "domain"), len(STYLES)
    pairs = [
        Preference(
            better,
            count + worse,
            subset=f"{domain or 'all'}/{_difficulty(better, worse)}",
            source=f"{STYLES[better]} > {STYLES[worse]}",
        )
        for better in range(count)
        for worse in range(count)
    ]
    return Example(cells.prompt(row), tuple(answers), tuple(pairs), subset=domain)


def _difficulty(chosen_style: int, rejected_style: int) -> str:
    if chosen_style == rejected_style:
        return "normal"
    return "easy" if chosen_style > rejected_style else "hard"


def _texts(row: Row, column: str) -> list[str]:
    value = row.get(column)
    if not isinstance(value, list) or len(value) != len(STYLES) or not _is_texts(value):
        raise RefusedRowError(f"{column} holds {cells.kind(value)} where {len(STYLES)} texts are expected")
    return [cells.filled(text, column) for text in value]


def _matches(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    """True when a first row has texts in lists on both sides; messages would be lists of objects."""
    return any(all(_is_texts(row.get(column)) for column in ("chosen", "rejected")) for row in rows)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _parser(rows: Sequence[Row]) -> Parse:
    return _parse


RM_BENCH = Format(
    needs="prompt, chosen and rejected as lists of three texts (and domain)",
    required=frozenset(["prompt", "chosen", "rejected"]),
    reads=frozenset(["prompt", "chosen", "rejected", "domain"]),
    parser=_parser,
    matches=_matches,
    note=f"a response's generator is its style ({', '.join(STYLES)}), a pair's subset its domain and difficulty",
)
