"""Conversations that come from Python and not from a file, checked as the readers check the cells of a row.

What `pipeline embed` would refuse, or write otherwise than it was meant, is refused here too: a chat template takes
almost anything, and a head then scores a text that nobody has said.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cache.records import Message
from pipeline.readers import cells
from pipeline.readers.example import RefusedRowError

Prompt = str | Sequence[Mapping[str, Any]]


def check_conversations(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[tuple[list[Message], str]]:
    """Each prompt as messages, beside its response.

    A text is one user turn, and the text parts of a message are joined. Unlike in a file a response may be empty: a
    policy can end at once, and gets a reward for it.

    Raises: ValueError for lists of two lengths, and for a conversation that a file could not hold, by its number.
    """
    refuse_unequal(prompts, responses, "responses")
    return [_checked(number, *both) for number, both in enumerate(zip(prompts, responses, strict=True))]


def refuse_unequal(prompts: Sequence[Prompt], others: Sequence[object], name: str) -> None:
    """Raise ValueError if there is not one prompt for each of the others, or either is no list."""
    for what, given in (("prompts", prompts), (name, others)):
        if isinstance(given, str | Mapping):
            raise ValueError(
                f"{what} is {cells.kind(given)} where a list is expected; for one conversation give lists of one"
            )
    if len(prompts) != len(others):
        raise ValueError(f"{len(prompts)} prompts for {len(others)} {name}; give one prompt for each")


def joined(content: object) -> object:
    """A message's content as one text where it comes in parts that are all text; else as it stands."""
    if isinstance(content, str) or not isinstance(content, Sequence):
        return content
    return "".join(part["text"] for part in content) if all(map(_is_text, content)) else content


def _is_text(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def _checked(number: int, prompt: Prompt, response: str) -> tuple[list[Message], str]:
    try:
        return cells.with_user_turn(_turns(prompt)), _reply(response)
    except RefusedRowError as error:
        raise ValueError(
            f"conversation {number} (from 0) cannot be scored: {error}; give texts, or a prompt of messages with text "
            f"as content and the roles {', '.join(cells.ROLES)}"
        ) from error


def _turns(prompt: Prompt) -> list[Message]:
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return [cells.user(cells.text({"its prompt": prompt}, "its prompt"))]
    whole = [{**turn, "content": joined(turn.get("content"))} if isinstance(turn, Mapping) else turn for turn in prompt]
    return cells.messages(whole, "its prompt")


def _reply(response: str) -> str:
    if isinstance(response, str) and not response.strip():
        return response
    return cells.text({"its response": response}, "its response")
