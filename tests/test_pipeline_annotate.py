"""`pipeline annotate` on a pool of the tiny backbone: what it writes, and that a head is fitted on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, write_jsonl

from cache.store import Store

PROMPTS = [f"why {WORDS[number % 20]} {number}" for number in range(60)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    from pipeline.embed import EmbedOptions, embed

    folder = tmp_path_factory.mktemp("annotate")
    rows = [
        {"prompt_id": prompt, "prompt": prompt, "response": f"{word} {'yes ' * level}", "gold_score": level}
        for prompt in PROMPTS
        for level, word in enumerate(["dog", "cat", "mat", "red"])
    ]
    file = write_jsonl(folder / "pool.jsonl", rows)
    embed(EmbedOptions((str(file),), folder / "store", str(tiny_backbone), template="plain", device="cpu"))
    return folder / "store"


def annotate(run_cli: Callable[..., Any], store: Path, *more: object) -> dict[str, Any]:
    result = run_cli("annotate", "pool", "--store", store, "--json", *more)
    assert result.exit_code == 0, result.output
    row: dict[str, Any] = json.loads(result.stdout)[0]
    return row


def test_a_head_is_fitted_on_the_annotations_and_judged_on_the_pool(run_cli: Callable[..., Any], store: Path) -> None:
    row = annotate(run_cli, store, "--pairing", "cross", "--beta", "3", "--pairs", 400, "--name", "noisy")
    assert 0 < row["error_rate"] < 0.3 and row["error_rate"] == pytest.approx(row["expected_error_rate"], abs=0.08)
    fitted = run_cli("fit", "--head", "linear", "--pairs", "noisy", "--no-control", "--store", store, "--json")
    run = json.loads(fitted.stdout)[0]["run_id"]
    counts = Store(store).run(run)["counts"]
    # A pair is on a side only if both of its prompts are: 0.8^2 of 400 are not held out, fewer still fit or stop.
    assert counts["train_pairs"] + counts["valid_pairs"] < 0.8**2 * 400 * 1.1
    judged = run_cli("evaluate", run, "--on", "pool", "--store", store, "--json")
    rows = {(r["scorer"], r["metric"]): r["value"] for r in json.loads(judged.stdout) if r["at"] in (None, 4.0)}
    assert rows["reward", "best_of_n"] > rows["random", "best_of_n"] + 0.5
    assert run_cli("verify", "--rows", 0, "--store", store).exit_code == 0


def test_perfect_annotations_name_the_better_response(run_cli: Callable[..., Any], store: Path) -> None:
    row = annotate(run_cli, store, "--pairing", "diversified", "--beta", "inf", "--pairs", 60)
    dataset = Store(store).dataset(row["dataset"])
    text = dict(zip(*(dataset["responses"][name].to_pylist() for name in ("response_id", "response")), strict=True))
    assert {text[chosen].split()[0] for chosen in dataset["pairs"]["chosen_id"].to_pylist()} == {"red"}
    assert {text[rejected] for rejected in dataset["pairs"]["rejected_id"].to_pylist()} == {"dog "}
    assert row["error_rate"] == 0 and row["beta"] == "inf" and row["mean_gap"] == 3
    assert dataset.info["origin"]["annotated"]["scale"] == pytest.approx((5 / 3) ** 0.5)


def test_the_same_call_gives_the_same_dataset_and_another_of_its_name_is_refused(
    run_cli: Callable[..., Any], store: Path
) -> None:
    asked = ("--pairing", "same", "--beta", "1", "--pairs", 50, "--name", "again")
    annotate(run_cli, store, *asked)
    first = Store(store).dataset("again").info
    annotate(run_cli, store, *asked)
    assert Store(store).dataset("again").info == first
    refused = run_cli("annotate", "pool", "--store", store, *asked, "--seed", 1)
    assert refused.exit_code == 1 and "with other content; give this one another --name" in refused.stderr
    annotate(run_cli, store, *asked, "--seed", 1, "--refresh")
    assert Store(store).dataset("again").info != first


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--pairing", "similar", "--beta", 1, "--pairs", 61), "61 similar pairs were asked for and the pool has 60"),
        (("--pairing", "same", "--beta", -1, "--pairs", 1), "beta is -1.0; give 0 (random) or more"),
        (("--pairing", "same", "--beta", "nan", "--pairs", 1), "beta is nan; give 0 (random) or more"),
        (("--pairing", "same", "--beta", 1, "--pairs", 1, "--judge", "x"), "no judge 'x'; dataset 'pool' can be"),
        (("--pairing", "same", "--beta", 1, "--pairs", 1, "--name", "a/b"), "a dataset cannot be named 'a/b'"),
    ],
)
def test_what_cannot_be_annotated_is_one_sentence(
    run_cli: Callable[..., Any], store: Path, arguments: tuple[object, ...], sentence: str
) -> None:
    result = run_cli("annotate", "pool", "--store", store, *arguments)
    assert result.exit_code == 1 and sentence in result.stderr and "Traceback" not in result.output


def test_attributes_judge_where_there_is_no_gold(read: Callable[..., Any]) -> None:
    from pipeline.gold import gold_pool

    rows = [
        {"prompt": "why", "response": "a", "coherence": 1, "fluency": 10},
        {"prompt": "why", "response": "b", "coherence": 3, "fluency": 30},
        {"prompt": "why", "response": "c", "coherence": 2, "fluency": None},
    ]
    dataset = read(rows, format="attributes")
    with pytest.raises(
        ValueError, match="which judge\\? dataset 'rows' can be judged by coherence, fluency, attributes"
    ):
        gold_pool(dataset)
    assert gold_pool(dataset, "coherence").gold.tolist() == [1, 3, 2]
    both = gold_pool(dataset, "attributes")  # c has no fluency, and so no gold
    assert both.gold == pytest.approx([(-(1.5**0.5) - 1) / 2, (1.5**0.5 + 1) / 2])
