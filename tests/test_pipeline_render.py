import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.render import NAMED, Renderer, TokenRow, fit_length

CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "why"},
]
TEXTS = {
    "plain": "<bos>System: S\n\nUser: Hi\n\nAssistant: yes?\n\nUser: why\n\nAssistant: because",
    "gemma": (
        "<bos><start_of_turn>user\nS\n\nHi<end_of_turn>\n<start_of_turn>model\nyes?<end_of_turn>\n"
        "<start_of_turn>user\nwhy<end_of_turn>\n<start_of_turn>model\nbecause<end_of_turn>\n"
    ),
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nyes?<|im_end|>\n"
        "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\nbecause<|im_end|>\n"
    ),
    "llama3": (
        "<bos><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nyes?<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nwhy<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nbecause<|eot_id|>"
    ),
}


def encode(renderer: Renderer, prompt: list[dict[str, str]], response: str) -> TokenRow:
    return renderer.encode([(json.dumps(prompt), response)])[0]


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_write_what_is_expected(tiny_tokenizer: Any, name: str) -> None:  # noqa: ANN401
    assert Renderer.of(tiny_tokenizer, name).text(CHAT, "because") == TEXTS[name]


@pytest.mark.parametrize("name", NAMED)
def test_exactly_one_bos_whether_the_template_writes_it_or_not(tiny_tokenizer: Any, name: str) -> None:  # noqa: ANN401
    row = encode(Renderer.of(tiny_tokenizer, name), CHAT, "because")
    bos = tiny_tokenizer.bos_token_id
    assert row.ids[0] == bos
    assert (row.ids == bos).sum() == 1


def test_a_template_that_writes_two_bos_gives_one(tiny_tokenizer: Any, tmp_path: Path) -> None:  # noqa: ANN401
    path = tmp_path / "double.jinja"
    path.write_text("{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    row = encode(Renderer.of(tiny_tokenizer, str(path)), [CHAT[1]], "yes")
    assert row.ids.tolist() == [
        tiny_tokenizer.bos_token_id,
        *tiny_tokenizer("Hiyes", add_special_tokens=False).input_ids,
    ]


def test_the_plain_rows_tokens_by_hand(tiny_tokenizer: Any) -> None:  # noqa: ANN401
    row = encode(Renderer.of(tiny_tokenizer, "plain"), [CHAT[1]], "yes")
    by_hand = [2, *tiny_tokenizer("User: Hi\n\nAssistant: yes", add_special_tokens=False).input_ids]
    assert row.ids.tolist() == by_hand


@pytest.mark.parametrize("name", NAMED)
def test_the_response_starts_where_it_starts(tiny_tokenizer: Any, name: str) -> None:  # noqa: ANN401
    renderer = Renderer.of(tiny_tokenizer, name)
    row = encode(renderer, CHAT, "why")  # the prompt has a "why" of its own
    after = tiny_tokenizer.decode(row.ids[row.response_start :])
    before = tiny_tokenizer.decode(row.ids[: row.response_start])
    assert after.lstrip().startswith("why")
    assert "why" in before
    assert before.rstrip().endswith(("Assistant:", "model", "assistant", "<|end_header_id|>"))


def test_an_empty_response_has_no_token_of_its_own(tiny_tokenizer: Any) -> None:  # noqa: ANN401
    row = encode(Renderer.of(tiny_tokenizer, "llama3"), [CHAT[1]], "")
    assert tiny_tokenizer.decode(row.ids[row.response_start :]) == "<|eot_id|>"


def test_no_template_of_its_own_and_none_named_is_an_error(tiny_tokenizer: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="no chat template; name one with --template plain"):
        Renderer.of(tiny_tokenizer, None)
    with pytest.raises(ValueError, match="no template 'nonesuch'"):
        Renderer.of(tiny_tokenizer, "nonesuch")


def test_a_template_that_refuses_a_conversation_says_which(tiny_tokenizer: Any, tmp_path: Path) -> None:  # noqa: ANN401
    path = tmp_path / "strict.jinja"
    path.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}")
    with pytest.raises(ValueError, match=r"begins 'S' \(no system turn\)"):
        encode(Renderer.of(tiny_tokenizer, str(path)), CHAT, "yes")


ROW = TokenRow(np.array([2, 10, 11, 12, 20, 21], dtype=np.int32), response_start=4)


@pytest.mark.parametrize(
    ("max_length", "overlong", "ids", "start"),
    [
        (6, "error", [2, 10, 11, 12, 20, 21], 4),
        (4, "left", [2, 12, 20, 21], 2),
        (2, "left", [2, 21], 1),
        (5, "right", [2, 10, 11, 12, 20], 4),
    ],
)
def test_cutting_keeps_the_bos_and_finds_the_response(
    max_length: int, overlong: str, ids: list[int], start: int
) -> None:
    row = fit_length(ROW, max_length=max_length, overlong=overlong, bos=True)
    assert row is not None
    assert (row.ids.tolist(), row.response_start) == (ids, start)


def test_without_a_bos_the_left_cut_keeps_the_last_tokens() -> None:
    row = fit_length(ROW, max_length=3, overlong="left", bos=False)
    assert row is not None
    assert row.ids.tolist() == [12, 20, 21]
    assert row.response_start == 1


@pytest.mark.parametrize(("max_length", "overlong"), [(5, "drop"), (5, "error"), (4, "right")])
def test_rows_that_cannot_be_kept_are_left_out(max_length: int, overlong: str) -> None:
    assert fit_length(ROW, max_length=max_length, overlong=overlong, bos=True) is None


def test_what_comes_after_the_conversation_survives_a_cut() -> None:
    row = TokenRow(np.array([2, 10, 11, 12, 20, 21, 90, 91], dtype=np.int32), response_start=4, after=2)
    left = fit_length(row, max_length=6, overlong="left", bos=True)
    right = fit_length(row, max_length=7, overlong="right", bos=True)
    assert left is not None
    assert right is not None
    assert left.ids.tolist() == [2, 12, 20, 21, 90, 91]
    assert right.ids.tolist() == [2, 10, 11, 12, 20, 90, 91]
    assert [list(left.pooled(pool)) for pool in ("last", "mean", "suffix")] == [[3], [2, 3], [5]]
    assert fit_length(row, max_length=3, overlong="left", bos=True) is None  # nothing of the conversation is left
