"""TRL preference data: `[prompt,] chosen, rejected` as texts or as message lists.

The prompt is explicit (a column) or implicit (what chosen and rejected share). For message lists that is everything
before the last reply, which must be the same on both sides. For plain texts TRL (`extract_prompt`) takes the common
prefix of characters and steps back over one space; we do the same but never cut inside a word, as TRL does when two
replies start with the same letters. RewardBench v1 files have this layout too, with `subset` and the two models.
"""

from collections.abc import Sequence

from cache.records import Message
from pipeline.readers import cells
from pipeline.readers.example import Answer, Example, Format, Parse, Preference, RefusedRowError, Row

SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
READS = frozenset(
    ["prompt", "chosen", "rejected", "margin", "subset", "source", "chosen_model", "rejected_model"]
).union(*SCORES)


def preferred(row: Row, prompt: Sequence[Message], chosen: str, rejected: str) -> Example:
    """The Example of one annotated pair; refused when the two responses are the same."""
    if chosen == rejected:
        raise RefusedRowError("chosen equals rejected")
    return Example(
        prompt,
        (Answer(chosen, cells.label(row, "chosen_model")), Answer(rejected, cells.label(row, "rejected_model"))),
        pairs=(Preference(0, 1, _margin(row)),),
        subset=cells.label(row, "subset"),
        source=cells.label(row, "source"),
    )


def _margin(row: Row) -> float | None:
    margin = cells.number(row, "margin")
    if margin is not None:
        return margin
    for of_chosen, of_rejected in SCORES:
        chosen, rejected = cells.number(row, of_chosen), cells.number(row, of_rejected)
        if chosen is not None and rejected is not None:
            return chosen - rejected
    return None


def _parse(row: Row) -> Example:
    given = None if row.get("prompt") is None else cells.prompt(row)
    before_chosen, chosen = _split(row, "chosen", given)
    before_rejected, rejected = _split(row, "rejected", given)
    if before_chosen != before_rejected:
        raise RefusedRowError("chosen and rejected share no prompt: they differ before the last reply")
    return preferred(row, cells.with_user_turn(before_chosen), chosen, rejected)


def _split(row: Row, column: str, given: list[Message] | None) -> tuple[list[Message], str]:
    """The prompt and the reply of one side."""
    value = row.get(column)
    if isinstance(value, list):
        return _split_messages(cells.messages(value, column), column, given)
    reply = cells.text(row, column)
    if given is None:
        raise RefusedRowError(f"prompt is missing and {column} is plain text")
    return given, reply


def _split_messages(turns: list[Message], column: str, given: list[Message] | None) -> tuple[list[Message], str]:
    *before, last = turns
    if last["role"] != "assistant":
        raise RefusedRowError(f"{column} does not end with an assistant reply")
    reply = cells.filled(last["content"], column)
    if given is None or _contains(before, given):
        return before, reply
    if not before or before[0]["role"] in ("assistant", "tool"):  # the reply only, perhaps after tool use
        return given + before, reply
    raise RefusedRowError(f"the conversation in {column} does not start with the prompt")


def _contains(before: list[Message], given: list[Message]) -> bool:
    """True when the conversation repeats the prompt: at its start, or, for a one-turn prompt, anywhere.

    UltraFeedback-like files give the question as text and the whole conversation, system turn included, as messages.
    """
    return before[: len(given)] == given or (len(given) == 1 and given[0] in before)


def _parse_shared_prefix(row: Row) -> Example:
    chosen, rejected = cells.text(row, "chosen"), cells.text(row, "rejected")
    if chosen == rejected:
        raise RefusedRowError("chosen equals rejected")
    cut = shared_words(chosen, rejected)
    if not chosen[:cut].strip():
        raise RefusedRowError("chosen and rejected share no prompt: they differ in their first word")
    replies = cells.filled(chosen[cut:], "chosen"), cells.filled(rejected[cut:], "rejected")
    return preferred(row, [cells.user(chosen[:cut])], *replies)


def shared_words(chosen: str, rejected: str) -> int:
    """Where the shared prefix of whole words ends; a single space before the replies belongs to the replies."""
    differ = (at for at, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    cut = next(differ, min(len(chosen), len(rejected)))
    while cut and not chosen[cut - 1].isspace() and not _word_ends(chosen, cut, rejected):
        cut -= 1
    return cut - 1 if cut and chosen[cut - 1] == " " else cut


def _word_ends(chosen: str, cut: int, rejected: str) -> bool:
    return all(cut == len(side) or side[cut].isspace() for side in (chosen, rejected))


def _is_text_without_prompt(columns: frozenset[str], rows: Sequence[Row]) -> bool:
    replies = [row[side] for row in rows for side in ("chosen", "rejected") if row.get(side) is not None]
    return "prompt" not in columns and all(isinstance(reply, str) for reply in replies)


def _preference_parser(rows: Sequence[Row]) -> Parse:
    return _parse


def _shared_prefix_parser(rows: Sequence[Row]) -> Parse:
    return _parse_shared_prefix


PREFERENCE = Format(
    needs="chosen, rejected as messages, or prompt, chosen, rejected as text or messages",
    required=frozenset(["chosen", "rejected"]),
    reads=READS,
    parser=_preference_parser,
)
SHARED_PREFIX = Format(
    needs="chosen, rejected as plain text that starts with the same prompt",
    required=frozenset(["chosen", "rejected"]),
    reads=READS,
    parser=_shared_prefix_parser,
    matches=_is_text_without_prompt,
    note="the prompt is the words that chosen and rejected share, as in TRL: words that both replies start with are "
    "counted as prompt, and two pairs of one prompt may get two prompts and fall on both sides of a split; "
    "a prompt column avoids both",
)
