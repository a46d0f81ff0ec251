"""Conversations from Python: read as a file's are, or refused by their number."""

from typing import Any

import pytest
from conftest import assistant, user

from pipeline.conversations import check_conversations


def test_texts_messages_and_parts_are_one_prompt() -> None:
    parts = [{"type": "text", "text": "why "}, {"type": "text", "text": "not"}]
    prompts: list[Any] = ["why not", [user("why not")], ({"role": "user", "content": parts, "name": "n"},)]
    checked = check_conversations(prompts, ["no", "no", "no"])
    assert checked == [([user("why not")], "no")] * 3


def test_a_response_may_be_empty_but_no_prompt() -> None:
    assert [response for _, response in check_conversations(["a", "b"], ["", " \n"])] == ["", " \n"]
    with pytest.raises(ValueError, match=r"conversation 1 \(from 0\) cannot be scored: its prompt is empty"):
        check_conversations(["a", " "], ["c", "d"])


@pytest.mark.parametrize(
    ("prompt", "response", "reason"),
    [
        ([{"role": "developer", "content": "a"}], "b", "a message in its prompt has the unknown role 'developer'"),
        ([{"content": "a"}], "b", "a message in its prompt has no role"),
        ([{"role": "user", "content": None}], "b", "a message in its prompt has no content"),
        ([user("a"), {**assistant("c"), "tool_calls": [{}]}], "b", "a message in its prompt has tool calls"),
        (
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}],
            "b",
            "a message in its prompt has a list of 2 as content where text is expected",
        ),
        ([assistant("a")], "b", "the prompt has no user turn"),
        ([], "b", "its prompt is empty"),
        (None, "b", "its prompt is missing"),
        (user("a"), "b", "its prompt holds an object where one text is expected"),
        (["a"], "b", "its prompt holds a list of 1 texts where one text or a list of messages is expected"),
        ("a", None, "its response is missing"),
        ("a", [assistant("b")], "its response holds a list of 1 where one text is expected"),
        ("a", "b\ud800", r"its response is not valid Unicode \(a lone surrogate\)"),
        ("a\udfff", "b", r"its prompt is not valid Unicode \(a lone surrogate\)"),
    ],
)
def test_what_no_file_could_hold_is_refused(prompt: Any, response: Any, reason: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=rf"conversation 0 \(from 0\) cannot be scored: {reason}"):
        check_conversations([prompt], [response])


def test_texts_in_the_place_of_lists_are_no_lists_of_letters() -> None:
    with pytest.raises(ValueError, match="prompts is text where a list is expected"):
        check_conversations("why", ["yes"])
    with pytest.raises(ValueError, match="responses is text where a list is expected"):
        check_conversations(["why"], "yes")
    with pytest.raises(ValueError, match="1 prompts for 2 responses"):
        check_conversations(["why"], ["yes", "no"])
