"""A run as the function that TRL calls, without TRL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, assistant, user, write_jsonl

import pipeline
from pipeline.fit import FitOptions, fit
from pipeline.score import Scorer

PAIRS = [
    {"prompt": f"why {WORDS[n % 20]} {n}", "chosen": f"{WORDS[n % 13]} yes", "rejected": f"{WORDS[n % 11]} no"}
    for n in range(40)
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Iterator[Path]:
    from pipeline.embed import EmbedOptions, embed

    folder = tmp_path_factory.mktemp("rewards")
    scores = [
        {"prompt": row["prompt"], "response": row[side], "yes": float(side == "chosen"), "loud": 0.1 * (number % 3)}
        for number, row in enumerate(PAIRS)
        for side in ("chosen", "rejected")
    ]
    datasets = {"pairs": PAIRS, "attrs": scores}
    sources = tuple(str(write_jsonl(folder / f"{name}.jsonl", rows)) for name, rows in datasets.items())
    embed(EmbedOptions(sources, folder / "store", str(tiny_backbone), template="plain", device="cpu"))
    yield folder / "store"


def fitted(store: Path, head: str) -> str:
    attributes = "attrs" if head == "smorm" else None
    return fit(FitOptions((head,), store, pairs="pairs", attributes=attributes, control=False))[0].run_id


def test_trl_calls_with_texts_and_with_messages(store: Path) -> None:
    run = fitted(store, "linear")
    reward = pipeline.reward_function(run, store=store)
    asked, said = "why not", [{"role": "assistant", "content": "yes"}]
    texts = reward(prompts=[asked, asked], completions=["yes", ""], answer=["a", "b"], trainer_state=None)
    turns = reward(prompts=[[user(asked)]], completions=[said])
    assert turns[0] == texts[0]
    assert all(isinstance(value, float) for value in texts)
    tools = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "4"}, *said]
    assert reward(prompts=[[user(asked)]], completions=[tools])[0] != turns[0]
    assert reward(prompts=[], completions=[]) == []
    assert reward.__name__ == run


def test_what_a_policy_writes_ends_no_training(store: Path) -> None:
    reward = pipeline.reward_function(fitted(store, "linear"), store=store)
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "ye"}, {"type": "text", "text": "s"}]}]
    calls: list[dict[str, Any]] = [{"role": "assistant", "content": "so", "tool_calls": [{"type": "function"}]}]
    odd, read, plain, in_parts, called, silent = reward(
        prompts=["why \ud83d"] + ["why \ufffd"] * 5,
        completions=["no \udc00", "no \ufffd", "yes", parts, calls, "so"],
    )
    assert (odd, plain, called) == (read, in_parts, silent)
    with pytest.raises(ValueError, match="a completion is a list of 0"):
        reward(prompts=["why"], completions=[[]])
    with pytest.raises(ValueError, match="1 prompts for 2 completions"):
        reward(prompts=["why"], completions=["a", "b"])
    with pytest.raises(ValueError, match="unknown role 'developer'"):
        reward(prompts=[[{"role": "developer", "content": "a"}, user("b")]], completions=["c"])
    with pytest.raises(ValueError, match="has tool calls"):
        reward(prompts=[[user("a"), {**assistant("b"), "tool_calls": [{}]}]], completions=["c"])


def test_any_of_a_heads_rewards_can_be_trained_on(store: Path) -> None:
    run = fitted(store, "smorm")
    expected = Scorer(run, store=store).score_all(["why"], ["so"]).rewards
    for name in ("F", "M"):
        reward = pipeline.reward_function(run, store=store, score=name)
        assert reward(prompts=["why"], completions=["so"]) == [expected[name][0]]
        assert reward.__name__ == f"{run}-{name}"
    assert expected["F"][0] != expected["M"][0]
    with pytest.raises(ValueError, match="head smorm has no reward 'lower'; it has F, L, M"):
        pipeline.reward_function(run, store=store, score="lower")


def test_a_reward_function_can_be_sent_to_another_process(store: Path) -> None:
    import pickle

    reward = pipeline.reward_function(fitted(store, "smorm"), store=store, score="M", device="cpu")
    before = reward(prompts=["why"], completions=["so"])
    sent = pickle.dumps(reward)
    assert len(sent) < 2000  # its arguments, and no backbone
    again = pickle.loads(sent)
    assert (again(prompts=["why"], completions=["so"]), again.__name__) == (before, reward.__name__)
