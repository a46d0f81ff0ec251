"""The demo data says what its card says: checkers, gold, pairs, balance, and a rebuild that gives the same files."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from bench.demo import make_demo
from bench.demo.constraints import Constraint, Prompt, gold_score, met, wording
from bench.demo.edits import worked_answer
from bench.demo.pools import Response, agreement, clean_samples, cut, make_pairs, presentable
from bench.demo.prompts import make_prompts, shots_for
from bench.demo.qualities import attributes
from bench.demo.topics import SHOT_TOPICS, TOPICS

FILES = ("preferences", "attributes", "pool")
QUALITIES = ("constraints_met", "brevity", "no_repetition", "on_topic", "own_words")

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def stored() -> dict[str, Rows]:
    return {name: make_demo.read_rows(make_demo.HERE / f"{name}.jsonl.gz") for name in FILES}


@pytest.fixture(scope="module")
def prompts() -> dict[str, Prompt]:
    return {prompt.text: prompt for prompt in make_prompts()}


@pytest.mark.parametrize(
    ("constraint", "meets", "misses"),
    [
        (Constraint("at_most_words", 3), "Don't stop now.", "one two three four"),
        (Constraint("at_least_words", 3), "a-b c", "one two"),
        (Constraint("sentences", 2), "Is it? Yes", "Well... no. 3!"),
        (Constraint("lines", 2), "a\n\nb", "a b"),
        (Constraint("line_words", 2), "1. the hive\n2. sweet honey", "1. hive\n2. sweet honey"),
        (Constraint("include", words=("sea",)), "The SEA.", "The season"),
        (Constraint("avoid", words=("sea",)), "The season", "the sea"),
        (Constraint("times", 2, ("sea",)), "Sea, sea.", "sea sea sea"),
        (Constraint("order", words=("a", "b")), "a then b then a", "b then a"),
        (Constraint("order", words=("a", "b")), "a, b", "a alone"),
        (Constraint("sorted", words=("a", "b", "c")), "- a\n- b\n- c", "a c b"),
        (Constraint("starts", words=("well",)), '"Well, yes."', "wells are deep"),
        (Constraint("ends", words=("the end",)), "This is the end.", "the end is near"),
        (Constraint("question"), '"Why?"', "Why? No."),
        (Constraint("exclaim"), "Go!", "Go! Now."),
        (Constraint("lower"), "all 3 low", "One"),
        (Constraint("upper"), "ALL 3", "123"),
        (Constraint("no_commas"), "a b", "a, b"),
        (Constraint("quotes"), '"so it is"', '"so" it is'),
        (Constraint("bullets", 2), "- a\n- b", "- a\n-b"),
        (Constraint("bullets", 2), "- a\n- b", "- a\n- b\nc"),
        (Constraint("numbered", 2), "1. a\n2. b", "1. a\n3. b"),
        (Constraint("comma_list", 3), "a, b, c", "a, b\nc, d"),
        (Constraint("json_keys", words=("name", "place")), '{"NAME": "a", "place": 1}', '{"name": "a", "place": ""}'),
        (Constraint("json_keys", words=("name", "place")), '{"place": "a", "name": "b"}', '{"name": "a", "place": "b"'),
        (Constraint("result", 14), "It is 14.", "It is 140 or 1 4."),
    ],
)
def test_a_checker_tells_a_text_that_meets_it_from_one_that_does_not(
    constraint: Constraint, meets: str, misses: str
) -> None:
    assert met(constraint, meets)
    assert not met(constraint, misses)


def test_every_kind_of_constraint_that_is_used_has_both_answers_in_the_pool(
    stored: dict[str, Rows], prompts: dict[str, Prompt]
) -> None:
    seen: dict[str, set[bool]] = defaultdict(set)
    for row in stored["pool"]:
        for constraint in prompts[row["prompt"]].constraints:
            seen[constraint.kind].add(met(constraint, row["response"]))
    assert all(answers == {True, False} for answers in seen.values()), seen


def test_gold_is_the_share_of_constraints_met() -> None:
    prompt = Prompt(
        "p", "?", "prose", TOPICS[0], (Constraint("lower"), Constraint("sentences", 2), Constraint("question"))
    )
    assert gold_score(prompt, "so it is. is it?") == 1
    assert gold_score(prompt, "is it?") == pytest.approx(2 / 3)
    assert gold_score(prompt, "No.") == 0


def test_a_prompt_words_all_its_constraints() -> None:
    assert wording(Constraint("sentences", 1), 0) == "Write exactly 1 sentence."
    assert wording(Constraint("times", 2, ("hive",)), 0) == 'Use the word "hive" exactly twice.'
    for prompt in make_prompts():
        unworded = [c for c in prompt.constraints if c.kind in ("result", "sorted")]
        told = [c for c in prompt.constraints if any(wording(c, v) in prompt.text for v in (0, 1) if c not in unworded)]
        assert len(told) + len(unworded) == len(prompt.constraints), prompt.text


def test_the_sum_that_a_prompt_asks_for_is_its_result() -> None:
    import re

    for prompt in make_prompts():
        if prompt.subset == "arithmetic":
            question = prompt.text.split("?")[0]
            first, second = (int(number) for number in re.findall(r"\d+", question))
            minus = "minus" in question or "gone" in question
            assert prompt.constraints[0].number == (first - second if minus else first + second), prompt.text


def test_attribute_scores_by_hand() -> None:
    prompt = Prompt("p", "Tell me about bees. Use 2 lines.", "prose", TOPICS[0], (Constraint("lines", 2),))
    scores = attributes(prompt, "the hive the hive the hive\ntell me about honey")
    assert scores["constraints_met"] == 1
    assert scores["brevity"] == pytest.approx(1 - 10 / 40)
    assert scores["no_repetition"] == pytest.approx(
        6 / 9
    )  # the-hive, hive-the, hive-tell, tell-me, me-about, about-honey
    assert scores["on_topic"] == 1  # hive and honey
    assert scores["own_words"] == pytest.approx(7 / 8)  # only "tell me about" stands in the prompt


def test_rebuilding_from_the_samples_gives_the_same_files(stored: dict[str, Rows], tmp_path: Path) -> None:
    samples = make_demo.read_rows(make_demo.HERE / "samples.jsonl.gz")
    files = make_demo.build_files(make_demo.build_pools(samples))
    for name in FILES:
        assert files[name] == stored[name], name
        make_demo.write_rows(tmp_path / name, files[name])
        first = (tmp_path / name).read_bytes()
        make_demo.write_rows(tmp_path / name, make_demo.read_rows(tmp_path / name))
        assert (tmp_path / name).read_bytes() == first
        assert first[4:8] == b"\0\0\0\0"  # gzip's time of writing


def test_counts_and_sizes_are_what_the_card_says(stored: dict[str, Rows]) -> None:
    assert sum(path.stat().st_size for path in make_demo.HERE.iterdir() if path.is_file()) < 5_000_000
    responses = defaultdict(list)
    for row in stored["pool"]:
        responses[row["prompt"]].append(row["response"])
    assert len(responses) == 330
    assert all(len(texts) == len(set(texts)) == 12 for texts in responses.values())
    assert all(presentable(row["response"]) for row in stored["pool"])
    assert set(QUALITIES) == set(stored["attributes"][0]) - {
        "id", "prompt", "response", "generator", "subset", "source"
    }  # fmt: skip


def test_the_same_prompts_stand_in_the_same_order_in_all_files(stored: dict[str, Rows]) -> None:
    order = [prompt.text for prompt in make_prompts()]
    for name in FILES:
        assert list(dict.fromkeys(row["prompt"] for row in stored[name])) == order, name
    assert len({prompt.subset for prompt in make_prompts()[:30]}) == 5


def test_stored_gold_and_attributes_are_what_the_checkers_say(
    stored: dict[str, Rows], prompts: dict[str, Prompt]
) -> None:
    for gold, row in zip(stored["pool"], stored["attributes"], strict=True):
        assert (gold["id"], gold["prompt"], gold["response"]) == (row["id"], row["prompt"], row["response"])
        prompt = prompts[row["prompt"]]
        assert gold["gold_score"] == pytest.approx(gold_score(prompt, row["response"]), abs=1e-6)
        assert {name: row[name] for name in QUALITIES} == pytest.approx(attributes(prompt, row["response"]), abs=1e-6)
        assert all(0 <= row[name] <= 1 for name in QUALITIES)


def test_a_pair_prefers_the_response_of_the_pool_with_more_gold(stored: dict[str, Rows]) -> None:
    gold = {(row["prompt"], row["response"]): row["gold_score"] for row in stored["pool"]}
    seen = set()
    for row in stored["preferences"]:
        difference = gold[row["prompt"], row["chosen"]] - gold[row["prompt"], row["rejected"]]
        assert row["margin"] > 0
        assert row["margin"] == pytest.approx(difference, abs=2e-6)
        seen.add((row["prompt"], row["chosen"], row["rejected"]))
    assert len(seen) == len(stored["preferences"]) == 6 * 330


def test_neither_length_nor_origin_tells_which_response_is_chosen(stored: dict[str, Rows]) -> None:
    generator = {(row["prompt"], row["response"]): row["generator"] for row in stored["pool"]}
    longer = [len(row["chosen"]) > len(row["rejected"]) for row in stored["preferences"]]
    mixed = [
        chosen.startswith("edit-")
        for row in stored["preferences"]
        for chosen, rejected in [[generator[row["prompt"], row[side]] for side in ("chosen", "rejected")]]
        if chosen.startswith("edit-") != rejected.startswith("edit-")
    ]
    assert sum(longer) / len(longer) == pytest.approx(0.5, abs=0.05)
    assert sum(mixed) / len(mixed) == pytest.approx(0.5, abs=0.06)


def test_agreement_counts_pairs_of_unequal_gold_and_half_a_tie() -> None:
    pool = [Response("a", "x", 1.0), Response("bb", "x", 0.5), Response("cc", "x", 0.5), Response("dd", "x", 0.0)]
    # a>bb, a>cc, a>dd, bb>dd, cc>dd; by length the first three are wrong, the last two tied.
    assert agreement(pool, {response.text: len(response.text) for response in pool}) == pytest.approx(1 / 5)


def test_pairs_need_unequal_gold(prompts: dict[str, Prompt]) -> None:
    prompt = next(iter(prompts.values()))
    assert make_pairs(prompt, [Response("a", "x", 0.5), Response("b", "x", 0.5)]) == []


def test_raw_samples_are_cut_and_cleaned() -> None:
    assert cut(" Yes.\n\nUser: And?") == "Yes."
    assert cut("- a\n- b\nUser: more") == "- a\n- b"
    raw = ["Fine.", "Fine. ", "", "what the hell", "ooooo no", "caf\u00e9", "word " * 60]
    rows: Rows = [{"prompt": "p", "temperature": 0.7, "response": text} for text in raw]
    assert clean_samples(rows) == {"p": [("Fine.", "gemma3-270m@0.7")]}


def test_worked_examples_are_of_the_same_kind_about_other_topics() -> None:
    answered = []
    for prompt in make_prompts()[:60]:
        for shot in shots_for(prompt):
            assert [c.kind for c in shot.constraints] == [c.kind for c in prompt.constraints]
            assert shot.topic in SHOT_TOPICS
            answered.append(gold_score(shot, worked_answer(shot)))
    assert sum(gold == 1 for gold in answered) / len(answered) > 0.95
