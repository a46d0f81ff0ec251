"""The benchmark formats on rows written by hand: recognised, read, and refused for which reason."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Read, assistant, user

from bench.report.provenance import _source
from bench.rules import RULES
from cache.records import Dataset
from pipeline.readers import FORMATS


def pairs(dataset: Dataset) -> list[tuple[Any, ...]]:
    """(prompt, chosen, rejected, margin, subset, source) of each pair; the prompt is the chosen response's."""
    responses = {row["response_id"]: row for row in dataset["responses"].to_pylist()}
    found = []
    for pair in dataset["pairs"].to_pylist():
        chosen, rejected = responses[pair["chosen_id"]], responses[pair["rejected_id"]]
        prompt = [turn["content"] for turn in json.loads(chosen["prompt"])]
        found.append((prompt, chosen["response"], rejected["response"], *[pair[c] for c in ("margin", "subset")]))
        found[-1] += (pair["source"],)
    return found


def refusals(dataset: Dataset) -> dict[str, list[int]]:
    return {refused["reason"]: refused["rows"] for refused in dataset.info["refused"]}


SECOND_TURN = [user("Why?"), assistant("Because."), user("Really?"), assistant("Yes.")]
OTHER_TURN = [user("Why?"), assistant("No idea."), user("Really?"), assistant("No.")]
UNANSWERED = SECOND_TURN[:3]
NO_REPLY = "conversation_a does not end with an assistant reply"
ROWS: dict[str, dict[str, Any]] = {
    "rewardbench-2": {
        "id": "7", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"],
        "num_correct": 1, "num_incorrect": 3, "total_completions": 4, "models": ["m"] * 4, "subset": "Math",
    },
    "rmb-bon": {
        "conversation_input": [{"role": "user", "content": "p", "language": "English"}],
        "bon_best": {"llm_name": "m", "answer": "a"},
        "loser_list": [{"llm_name": "n", "answer": "b"}, {"llm_name": "o", "answer": "c"}],
        "bon_uid": "7", "category_path": "BoN_set/Helpfulness/Chat/Discussion",
    },
    "rmb-pairwise": {
        "conversation_input": [{"role": "user", "content": "p", "language": "English"}],
        "chosen": {"llm_name": "m", "answer": "a", "score": 5.0},
        "reject": {"llm_name": "n", "answer": "b", "score": 4.5},
        "pair_uid": "7", "category_path": "Pairwise_set/Harmlessness/S1",
    },
    "mt-bench": {
        "question_id": 81, "model_a": "m", "model_b": "n", "winner": "model_b", "judge": "expert_1",
        "conversation_a": SECOND_TURN, "conversation_b": OTHER_TURN, "turn": 1,
    },
    "judgebench": {
        "pair_id": "x", "original_id": "3", "source": "mmlu-pro-law", "question": "p", "response_model": "m",
        "response_A": "b", "response_B": "a", "label": "B>A",
    },
    "llmbar": {"input": "p", "output_1": "b", "output_2": "a", "label": 2},
    "hhh": {"input": "p", "targets": {"choices": ["b", "a"], "labels": [0, 1]}},
    "unified-feedback": {
        "id": "x", "conv_A": [user("p"), assistant("b")], "conv_B": [user("p"), assistant("a")],
        "conv_A_rating": 1.0, "conv_B_rating": 3.5, "num_turns": 1, "source": "s",
    },
    "helpsteer2-preference": {
        "split": "train", "prompt": "p", "response_1": "b", "response_2": "a", "preference_strength": 2,
        "preference_statement": "@Response 2 is better",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("rewardbench-2", [(["p"], "a", other, None, "Math", "7") for other in "bcd"]),
        ("rmb-bon", [(["p"], "a", other, None, "Helpfulness/Chat/Discussion", "7") for other in "bc"]),
        ("rmb-pairwise", [(["p"], "a", "b", 0.5, "Harmlessness/S1", "7")]),
        ("mt-bench", [(["Why?"], "No idea.", "Because.", None, "turn 1", "81")]),
        ("judgebench", [(["p"], "a", "b", None, "knowledge", "mmlu-pro-law")]),
        ("llmbar", [(["p"], "a", "b", None, None, None)]),
        ("hhh", [(["p"], "a", "b", None, None, None)]),
        ("unified-feedback", [(["p"], "a", "b", 2.5, None, "s")]),
        ("helpsteer2-preference", [(["p"], "a", "b", 2.0, None, None)]),
    ],
)
def test_each_format_is_recognised_and_read(format: str, expected: list[tuple[Any, ...]], read: Read) -> None:
    dataset = read([ROWS[format]])
    assert dataset.info["format"] == format
    assert pairs(dataset) == expected
    assert dataset.info["left_out"] == []


@pytest.mark.parametrize(
    ("format", "changed", "reason"),
    [
        ("rewardbench-2", {"rejected": []}, "rejected holds a list of 0 texts where a list of texts is expected"),
        ("rewardbench-2", {"rejected": ["a", "b"]}, "a response is both chosen and rejected"),
        ("rewardbench-2", {"num_correct": 2}, "num_correct is not the number of chosen responses"),
        ("rewardbench-2", {"id": None}, "id is missing"),
        ("rmb-bon", {"loser_list": []}, "loser_list holds a list of 0 texts where a list of responses is expected"),
        ("rmb-bon", {"loser_list": [{"answer": "a"}]}, "a response is both chosen and rejected"),
        ("rmb-bon", {"bon_best": "a"}, "bon_best holds text where llm_name and answer are expected"),
        ("rmb-pairwise", {"reject": {"answer": "a"}}, "chosen equals reject"),
        ("mt-bench", {"winner": "both"}, "winner is none of model_a, model_b, tie"),
        ("mt-bench", {"turn": 3}, "conversation_a has no reply in turn 3"),
        ("mt-bench", {"conversation_b": SECOND_TURN}, "the two responses are the same"),
        ("mt-bench", {"turn": None, "conversation_a": UNANSWERED}, NO_REPLY),
        ("judgebench", {"label": "A"}, "label is none of A>B, B>A, A=B, tie"),
        ("llmbar", {"label": 0}, "label is neither 1 nor 2"),
        ("hhh", {"targets": {"choices": ["a", "b"], "labels": [1, 1]}}, "the labels are not one 1 among 0s"),
        ("hhh", {"targets": {"choices": ["a", "a"], "labels": [1, 0]}}, "a response is both chosen and rejected"),
        ("hhh", {"targets": {"choices": ["a"], "labels": [1, 0]}}, "targets has no choices with a label each"),
        ("unified-feedback", {"conv_A_rating": None}, "a rating is missing"),
        ("unified-feedback", {"conv_A": "x"}, "conv_A holds text where a list of messages is expected"),
        ("helpsteer2-preference", {"preference_strength": None}, "preference_strength is missing"),
    ],
)  # fmt: skip
def test_refusals(format: str, changed: dict[str, Any], reason: str, read: Read) -> None:
    dataset = read([ROWS[format], {**ROWS[format], **changed}], format=format)
    assert refusals(dataset) == {reason: [2]}
    assert pairs(dataset) == pairs(read([ROWS[format]]))


@pytest.mark.parametrize(
    ("format", "tie"),
    [
        ("mt-bench", {"winner": "tie"}),
        ("mt-bench", {"winner": "tie (bothbad)"}),
        ("judgebench", {"label": "A=B"}),
        ("unified-feedback", {"conv_A_rating": 3.5}),
        ("helpsteer2-preference", {"preference_strength": 0}),
    ],
)
def test_ties_are_kept_out_and_counted(format: str, tie: dict[str, Any], read: Read) -> None:
    dataset = read([{**ROWS[format], **tie}, ROWS[format], {**ROWS[format], **tie}])
    assert dataset.info["left_out"] == [{"reason": "left out as ties", "count": 2}]
    assert dataset.info["refused"] == []
    assert dataset.info["rows"] == 3
    assert len(dataset["pairs"]) == 1
    assert "--prompts" not in _source(dataset.name, dict(dataset.info))


def test_nothing_but_ties_is_an_error_that_says_so(read: Read) -> None:
    with pytest.raises(ValueError, match=r"all 2 rows of .* were refused as mt-bench: left out as ties \(2\)"):
        read([{**ROWS["mt-bench"], "winner": "tie"}] * 2)


def test_a_second_turn_keeps_the_prompt_that_each_reply_answers(read: Read) -> None:
    dataset = read([{**ROWS["mt-bench"], "turn": 2}])
    prompts = {row["response"]: json.loads(row["prompt"])[1] for row in dataset["responses"].to_pylist()}
    assert prompts == {"No.": assistant("No idea."), "Yes.": assistant("Because.")}
    assert pairs(dataset) == [(["Why?", "No idea.", "Really?"], "No.", "Yes.", None, "turn 2", "81")]
    generators = {row["response"]: row["generator"] for row in dataset["responses"].to_pylist()}
    assert generators == {"No.": "n", "Yes.": "m"}


@pytest.mark.parametrize(
    ("source", "subset"),
    [
        ("livebench-reasoning", "reasoning"),
        ("livebench-math", "math"),
        ("livecodebench", "coding"),
        ("another", "another"),
        (None, None),
    ],
)
def test_judgebench_categories(source: str | None, subset: str | None, read: Read) -> None:
    assert read([{**ROWS["judgebench"], "source": source}])["pairs"]["subset"].to_pylist() == [subset]


def test_ties_subset_has_every_correct_response_against_every_wrong_one(read: Read) -> None:
    row = {**ROWS["rewardbench-2"], "id": "tied:3", "subset": "Ties", "chosen": ["a", "b"], "num_correct": 2}
    dataset = read([{**row, "rejected": ["c", "d", "e"]}])
    assert {(chosen, rejected) for _, chosen, rejected, *_ in pairs(dataset)} == {(x, y) for x in "ab" for y in "cde"}
    assert set(dataset["pairs"]["source"].to_pylist()) == {"tied:3"}


def test_three_lists_without_a_count_are_rm_bench(read: Read) -> None:
    row = {"id": 1, "prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
    assert read([row]).info["format"] == "rm-bench"


def test_hhh_dialogue_is_split_at_its_later_turns(read: Read) -> None:
    row = {**ROWS["hhh"], "input": "Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:", "subset": "honest"}
    assert pairs(read([row])) == [(["Hi", "Hello", "Why?"], "a", "b", None, "honest", None)]


def test_hhh_with_several_wrong_choices_has_a_pair_for_each(read: Read) -> None:
    row = {**ROWS["hhh"], "targets": {"choices": ["b", "a", "c"], "labels": [0, 1, 0]}}
    assert [(chosen, rejected) for _, chosen, rejected, *_ in pairs(read([row]))] == [("a", "b"), ("a", "c")]


def completion(text: str, *ratings: str) -> dict[str, Any]:
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    annotations = {
        aspect: {"Rating": rating, "Rationale": "."} for aspect, rating in zip(aspects, ratings, strict=True)
    }
    return {"model": f"m-{text}", "response": text, "annotations": annotations, "overall_score": 10.0}


def test_ultrafeedback_gives_attributes_and_pairs_of_different_means(read: Read) -> None:
    row = {
        "instruction": "p",
        "source": "evol_instruct",
        "completions": [
            completion("a", "5", "4", "5", "4"),  # mean 4.5
            completion("b", "3", "3", "3", "3"),  # mean 3
            completion("c", "3", "2", "3", "4"),  # mean 3: no pair with b
            completion("d", "5", "N/A", "5", "5"),  # not rated on one aspect: no pair
        ],
    }
    dataset = read([row])
    assert dataset.info["format"] == "ultrafeedback"
    assert pairs(dataset) == [(["p"], "a", other, 1.5, None, "evol_instruct") for other in "bc"]
    assert dataset.info["counts"] == {"responses": 4, "pairs": 2, "attributes": 15}
    assert dataset.info["attributes"] == ["helpfulness", "honesty", "instruction_following", "truthfulness"]
    assert dataset["responses"]["generator"].to_pylist() == ["m-a", "m-b", "m-c", "m-d"]
    assert dataset.info["unused_columns"] == []


def test_ultrafeedback_refusals(read: Read) -> None:
    good = {"instruction": "p", "completions": [completion("a", "5", "5", "5", "5")]}
    rows = [
        good,
        {**good, "completions": "a"},
        {**good, "completions": [completion("a", "N/A", "N/A", "N/A", "N/A")]},
        {**good, "completions": [completion("a", "5", "5", "5", "high")]},
        {**good, "completions": [{"response": "a"}]},
        {**good, "completions": [completion("", "5", "5", "5", "5")]},
    ]
    assert refusals(read(rows)) == {
        "completions holds text where a list of objects is expected": [2],
        "no completion is rated": [3],
        "a Rating is neither a number nor N/A": [4],
        "a completion has no annotations": [5],
        "response is empty": [6],
    }


def test_rewardbench_1_and_skywork_are_preference_files(read: Read) -> None:
    rewardbench = {"id": 1, "subset": "hep-go", "prompt": "p", "chosen": "a", "rejected": "b", "chosen_model": "x"}
    skywork = {"chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("b")], "source": "s"}
    for row, subset, source in ((rewardbench, "hep-go", None), (skywork, None, "s")):
        dataset = read([row])
        assert dataset.info["format"] == "preference"
        assert pairs(dataset) == [(["p"], "a", "b", None, subset, source)]


def test_the_docs_list_every_format_in_the_order_in_which_they_are_tried_and_every_rule() -> None:
    docs = Path(__file__).parents[1] / "docs"
    listed = re.findall(r"^\| `([a-z0-9][a-z0-9-]*)` \|", (docs / "formats.md").read_text(), flags=re.MULTILINE)
    assert listed == list(FORMATS)
    evaluation = (docs / "evaluation.md").read_text()
    assert [rule for rule in RULES if f"| `{rule}` |" not in evaluation] == []
