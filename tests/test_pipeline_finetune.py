"""Fine-tuning from the command line on a tiny backbone, and the road back: embed, fit, evaluate."""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import WORDS, write_jsonl

from cache.splits import is_test
from cache.store import Store

RunCLI = Callable[..., Any]
TEMPLATE = ("--template", "plain")


def plain_rows(*, start: int = 0, count: int = 60) -> Iterator[dict[str, Any]]:
    """Pairs of one length in which the chosen response says "red" and the rejected one "blue"."""
    for number in range(start, start + count):
        for animal in ("cat", "dog"):
            said = f"{WORDS[number % 13]} {animal}"
            prompt = f"why {WORDS[number % 20]} {WORDS[number * 7 % 20]} {number}"
            yield {"prompt": prompt, "chosen": f"red {said}", "rejected": f"blue {said}", "margin": 1.0 + number % 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pairs.jsonl, other.jsonl (other prompts), and scores.jsonl (attributes of the pairs' responses)."""
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "pairs.jsonl", list(plain_rows()))
    write_jsonl(folder / "other.jsonl", list(plain_rows(start=60)))
    scores = [
        {
            "prompt": row["prompt"],
            "response": row[side],
            "colour": float(side == "chosen"),
            "size": float("dog" in row[side]),
        }
        for row in plain_rows(count=30)
        for side in ("chosen", "rejected")
    ]
    write_jsonl(folder / "scores.jsonl", scores)
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, data: Path) -> Path:
    """A folder with a smorm fine-tune in `tuned`, and a store in which its embedding of both datasets of pairs is."""
    from pipeline.embed import EmbedOptions, embed
    from pipeline.finetune import finetune
    from pipeline.finetune_options import FinetuneOptions

    folder = tmp_path_factory.mktemp("tuned")
    finetune(
        FinetuneOptions(
            backbone=str(tiny_backbone),
            output=folder / "tuned",
            store=folder / "store",
            pairs=str(data / "pairs.jsonl"),
            attributes=str(data / "scores.jsonl"),
            objective="smorm",
            template="plain",
            lr=2e-3,
            epochs=8,
            every=12,
            device="cpu",
            test_share=0.3,
            valid_share=0.25,
            split_seed=4,
        )
    )
    options = EmbedOptions(
        sources=("pairs", "scores", str(data / "other.jsonl")),
        store=folder / "store",
        backbone=str(folder / "tuned"),
        store_dtype="float32",
        device="cpu",
    )
    embed(options)
    return folder


def arguments(backbone: Path, data: Path, output: Path, *more: object) -> list[str]:
    fixed = ["finetune", "--backbone", backbone, *TEMPLATE, "--pairs", data / "pairs.jsonl", "--device", "cpu"]
    return [str(word) for word in [*fixed, "--output", output, "--store", output.parent / "store", *more]]


def test_it_learns_what_was_planted(tuned: Path) -> None:
    from pipeline.finetune_loop import read_curves

    lines = list(read_curves(tuned / "tuned" / "curves.jsonl"))
    judged = [line["valid"] for line in lines if "valid" in line]
    assert judged[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)  # heads start at 0
    assert judged[0]["tie_share"] == 1
    assert judged[-1]["accuracy"] == 1
    assert judged[-1]["loss"] < 0.5
    assert judged[-1]["attribute_r2"] > 0.3
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))


def test_plain_transformers_gives_the_scores_that_evaluate_stores(tuned: Path) -> None:
    """From messages by the tokenizer's own template, in a batch; up to the constant that a score row has not."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from pipeline.evaluate import EvaluateOptions, evaluate

    store = Store(tuned / "store")
    (run_id,) = [name for name in store.run_names() if name.startswith("finetuned-smorm")]
    evaluate(EvaluateOptions(runs=(run_id,), on=("other",), store=store.root))
    stored = {
        row["response_id"]: row for row in pq.read_table(store.run_directory(run_id) / "scores.parquet").to_pylist()
    }
    responses = store.dataset("other")["responses"].to_pylist()[:40]
    model = AutoModelForSequenceClassification.from_pretrained(tuned / "tuned").eval()
    tokenizer = AutoTokenizer.from_pretrained(tuned / "tuned")
    assert model.config.num_labels == 1 and model.config.problem_type == "regression"
    messages = [[*json.loads(r["prompt"]), {"role": "assistant", "content": r["response"]}] for r in responses]
    inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", padding=True, return_dict=True)
    assert ((inputs["input_ids"] == tokenizer.bos_token_id).sum(1) == 1).all()
    with torch.no_grad():
        found = model(**inputs).logits[:, 0].numpy()
    expected = np.array([stored[row["response_id"]]["F"] for row in responses])
    np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), atol=1e-4)
    assert expected.std() > 0.1
    assert {"colour", "size", "L", "M"} <= set(next(iter(stored.values())))


def conversations(store: Store) -> tuple[list[str], list[str], list[Any]]:
    """Prompts and responses of a dataset of the store, and both as messages."""
    rows = store.dataset("pairs")["responses"].to_pylist()[:20]
    prompts = [json.loads(row["prompt"]) for row in rows]
    said = [row["response"] for row in rows]
    both = [[*prompt, {"role": "assistant", "content": text}] for prompt, text in zip(prompts, said, strict=True)]
    return prompts, said, both


def plain_logits(directory: Path, messages: list[Any]) -> np.ndarray[Any, Any]:
    """What transformers makes of a directory, trusting its code if it has any."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, trust_remote_code=True).eval()
    inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", padding=True, return_dict=True)
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = model(**inputs).logits[:, 0].numpy()
    return logits


def exports_as_it_scores(root: Path, directory: Path, *, plain: bool) -> None:
    """The store's fine-tuned run by `pipeline export`, loaded by transformers, against the `Scorer`."""
    from pipeline.export import ExportOptions, export
    from pipeline.score import Scorer

    (run,) = [name for name in Store(root).run_names() if name.startswith("finetuned")]
    done = export(ExportOptions(run, directory, root, rows=16))
    assert done.plain is plain
    prompts, said, messages = conversations(Store(root))
    expected = Scorer(run, store=root).score(prompts, said)
    found = plain_logits(directory, messages) + done.constant
    np.testing.assert_allclose(found, expected, atol=done.agreement.allowed_cached)
    assert done.agreement.allowed_cached < 0.05 * expected.std()
    card = (directory / "README.md").read_text()
    assert "fine-tuned" in card and "frozen" not in card
    assert str(root.parent) not in card  # a folder of this machine


def scores_as_trained(directory: Path, root: Path) -> None:
    """A directory with code of its own: loaded with trust it scores as its run, and without it does not load."""
    from transformers import AutoModelForSequenceClassification

    from pipeline.score import Scorer

    (run,) = [name for name in Store(root).run_names() if name.startswith("finetuned")]
    prompts, said, messages = conversations(Store(root))
    expected = Scorer(run, store=root).score(prompts, said)
    np.testing.assert_allclose(plain_logits(directory, messages), expected, atol=1e-2 * expected.std())
    with pytest.raises(ValueError, match=r"trust_remote_code|custom code"):
        AutoModelForSequenceClassification.from_pretrained(directory, trust_remote_code=False)


def test_a_fine_tuned_run_is_exported(tuned: Path, tmp_path: Path) -> None:
    exports_as_it_scores(tuned / "store", tmp_path / "exported", plain=True)


def test_a_run_whose_datasets_are_elsewhere_is_exported_on_what_there_is(
    tuned: Path, data: Path, tmp_path: Path, run_cli: RunCLI
) -> None:
    options = ("--backbone", tuned / "tuned", "--store", tmp_path / "store", "--device", "cpu")
    assert run_cli("embed", data / "other.jsonl", "--name", "pairs", *options).exit_code == 0
    (run,) = Store(tmp_path / "store").run_names()
    assert Store(tmp_path / "store").run(run)["pairs_dataset"] is None
    exports_as_it_scores(tmp_path / "store", tmp_path / "exported", plain=True)
    record = json.loads((tuned / "tuned" / "finetune.json").read_text())
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "- pairs: pairs (" in card and f"pairs.jsonl), content {record['plan']['pairs_hash'][:16]}" in card


def test_what_was_written_is_held_against_the_spread_of_the_scores(tuned: Path, tiny_backbone: Path) -> None:
    """And not against their size: a constant that all scores share would hide any difference."""
    from transformers import AutoModelForSequenceClassification

    from heads.given import given_linear, reward_row
    from heads.registry import load_head
    from pipeline.backbone import load_backbone
    from pipeline.finetuned import _largest_difference
    from pipeline.render import TokenRow

    directory = tuned / "tuned"
    base = load_backbone(str(directory), revision=None, device="cpu", dtype="float32").model
    row = reward_row(load_head(directory / "head"))
    assert row is not None
    rows = [TokenRow(np.arange(3, 3 + length, dtype=np.int32), 2) for length in (9, 4, 6)]

    def difference(weight: torch.Tensor) -> float:
        head = given_linear(weight)
        shifted = copy.copy(head)
        shifted.score = lambda features: head.score(features) + 50  # type: ignore[method-assign]
        return _largest_difference(directory, AutoModelForSequenceClassification, base, shifted, rows)

    assert difference(row) < 2e-4
    noise = torch.randn(len(row), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="scores what was written otherwise than it was trained"):
        difference(row + 0.05 * row.norm() / noise.norm() * noise)


def test_no_head_on_its_features_is_judged_on_prompts_it_has_seen(tuned: Path, run_cli: RunCLI) -> None:
    """Not even one that was fitted on another dataset, or with another split."""
    store = Store(tuned / "store")
    fit = ("fit", "--head", "linear", "--no-control", "--store", store.root, "--json")
    elsewhere = run_cli(*fit, "--pairs", "other")
    resplit = run_cli(*fit, "--pairs", "pairs", "--split-seed", "9")
    prompts = sorted(set(store.dataset("pairs")["responses"]["prompt_id"].to_pylist()))
    held = dict(zip(prompts, is_test(prompts, share=0.3, seed=4).tolist(), strict=True))
    prompt_of = {r["response_id"]: r["prompt_id"] for r in store.dataset("pairs")["responses"].to_pylist()}
    for result in (elsewhere, resplit):
        run_id = json.loads(result.stdout)[0]["run_id"]
        assert run_cli("evaluate", run_id, "--on", "pairs", "--store", store.root).exit_code == 0
        judged = pq.read_table(store.run_directory(run_id) / "scores.parquet")["response_id"].to_pylist()
        assert judged and all(held[prompt_of[response]] for response in judged)


def test_fit_takes_the_split_that_the_backbone_was_tuned_with(tuned: Path, run_cli: RunCLI) -> None:
    fit = ("fit", "--head", "linear", "--no-control", "--store", tuned / "store", "--json", "--pairs", "pairs")
    runs = [json.loads(run_cli(*fit, *more).stdout)[0]["run_id"] for more in ((), ("--test-share", "0.25"))]
    splits = [Store(tuned / "store").run(run_id)["split"] for run_id in runs]
    assert splits[0] == {"test_share": 0.3, "valid_share": 0.25, "seed": 4}
    assert splits[1] == {"test_share": 0.25, "valid_share": 0.25, "seed": 4}


def test_the_run_says_what_it_was_trained_on(tuned: Path) -> None:
    store = Store(tuned / "store")
    (run_id,) = [name for name in store.run_names() if name.startswith("finetuned-smorm")]
    run = store.run(run_id)
    assert (run["pairs_dataset"], run["attributes_dataset"], run["features"]) == ("pairs", "scores", ["L4.last"])
    assert run["split"] == {"test_share": 0.3, "valid_share": 0.25, "seed": 4}
    record = json.loads((tuned / "tuned" / "finetune.json").read_text())
    assert record["datasets"]["pairs"]["content_hash"] == store.dataset("pairs").info["content_hash"]
    seen = pq.read_table(tuned / "tuned" / "seen_prompts.parquet")["prompt_id"].to_pylist()
    prompts = sorted(set(store.dataset("pairs")["responses"]["prompt_id"].to_pylist()))
    assert sorted(seen) == [p for p, out in zip(prompts, is_test(prompts, share=0.3, seed=4), strict=True) if not out]


def test_it_starts_from_a_frozen_head(tiny_backbone: Path, data: Path, tmp_path: Path, run_cli: RunCLI) -> None:
    """The first evaluation is the frozen head's, and what that head has seen is not judged either."""
    store = tmp_path / "store"
    options = ("--backbone", tiny_backbone, *TEMPLATE, "--store", store, "--store-dtype", "float32", "--device", "cpu")
    assert run_cli("embed", data / "pairs.jsonl", data / "other.jsonl", *options, "--layers", "50%,last").exit_code == 0
    fit = ("fit", "--head", "linear", "--no-control", "--store", store, "--json", "-o", "l2", 1.0)
    (run,) = json.loads(run_cli(*fit, "--pairs", "other").stdout)
    (lower,) = json.loads(run_cli(*fit, "--pairs", "other", "--features", "L2.last").stdout)
    refused = run_cli(*arguments(tiny_backbone, data, tmp_path / "no", "--init", lower["run_id"]))
    assert refused.exit_code == 1 and "--init takes a linear head on L4.last" in refused.stderr
    differ = {"--split-seed": "split", "--seed": "seed", "--max-length": "max_length"}
    for option, name in differ.items():  # it has seen prompts that would be judged on, or read other rows
        refused = run_cli(*arguments(tiny_backbone, data, tmp_path / "no", "--init", run["run_id"], option, 40))
        assert refused.exit_code == 1 and f"was fitted with {name} " in refused.stderr, refused.output
    assert not (tmp_path / "no").exists()
    result = run_cli(*arguments(tiny_backbone, data, tmp_path / "out", "--init", run["run_id"], "--steps", 1))
    assert result.exit_code == 0, result.output
    first = json.loads((tmp_path / "out" / "curves.jsonl").read_text().splitlines()[0])["valid"]

    from cache.assembly import assemble
    from cache.splits import is_valid
    from heads.objectives import bt_loss
    from heads.registry import load_head

    disk = Store(store)
    found = assemble(disk.embeddings(disk.fingerprints()[0]), ["L4.last"], pairs=disk.dataset("pairs"))
    test, valid = is_test(found.prompt_ids, share=0.2, seed=0), is_valid(found.prompt_ids, share=0.15, seed=0)
    pairs = found.view.subset(~test & valid).pairs
    rewards = torch.from_numpy(load_head(disk.run_directory(run["run_id"])).score(found.view.matrix("the test")))
    expected = bt_loss(rewards[pairs[:, 0]] - rewards[pairs[:, 1]])
    assert first["loss"] == pytest.approx(float(expected), rel=1e-3)
    assert float(expected) < 0.6 and first["n"] == len(pairs) > 0
    seen = set(pq.read_table(tmp_path / "out" / "seen_prompts.parquet")["prompt_id"].to_pylist())
    prompts = sorted(set(disk.dataset("other")["responses"]["prompt_id"].to_pylist()))
    assert [p in seen for p in prompts] == (~is_test(prompts, share=0.2, seed=0)).tolist()


def test_a_backbone_that_is_tuned_again_hands_on_what_it_has_seen(
    tuned: Path, data: Path, tmp_path: Path, run_cli: RunCLI
) -> None:
    words = arguments(tuned / "tuned", data, tmp_path / "out", "--steps", 1)
    words[words.index("--pairs") + 1] = str(data / "other.jsonl")
    again = [word for word in words if word not in TEMPLATE]  # it brings its own template
    result = run_cli(*again)
    assert result.exit_code == 0, result.output
    seen = [
        set(pq.read_table(folder / "seen_prompts.parquet")["prompt_id"].to_pylist())
        for folder in (tuned / "tuned", tmp_path / "out")
    ]
    other = set(Store(tmp_path / "store").dataset("other")["responses"]["prompt_id"].to_pylist())
    assert seen[0] < seen[1] and seen[1] - seen[0] < other


def test_a_store_without_the_datasets_still_does_not_judge_what_was_seen(
    tuned: Path, data: Path, tmp_path: Path, run_cli: RunCLI
) -> None:
    """The same texts under another name: only the prompts are known."""
    options = ("--backbone", tuned / "tuned", "--store", tmp_path, "--device", "cpu")
    assert run_cli("embed", data / "pairs.jsonl", "--name", "renamed", *options).exit_code == 0
    result = run_cli("evaluate", "--on", "renamed", "--store", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    (run_id,) = Store(tmp_path).run_names()
    assert Store(tmp_path).run(run_id)["pairs_dataset"] is None
    judged = pq.read_table(Store(tmp_path).run_directory(run_id) / "scores.parquet")["response_id"].to_pylist()
    prompts = {r["response_id"]: r["prompt_id"] for r in Store(tmp_path).dataset("renamed")["responses"].to_pylist()}
    assert judged and is_test([prompts[response] for response in judged], share=0.3, seed=4).all()


@pytest.mark.parametrize(
    "more",
    [("--objective", "odin"), ("--objective", "grm"), ("--margin-weight", 0.5, "--centring", 0.01)],
    ids=["odin", "grm", "margin"],
)
def test_every_objective_ends_as_a_run(
    more: tuple[object, ...],
    tiny_backbone: Path,
    data: Path,
    tmp_path: Path,
    run_cli: RunCLI,
) -> None:
    result = run_cli(*arguments(tiny_backbone, data, tmp_path / "out", "--lr", "2e-3", "--epochs", 4, *more))
    assert result.exit_code == 0, result.output
    options = ("--backbone", tmp_path / "out", "--store", tmp_path / "store", "--device", "cpu")
    assert run_cli("embed", "pairs", *options).exit_code == 0
    result = run_cli("evaluate", "--on", "pairs", "--store", tmp_path / "store", "--json")
    assert result.exit_code == 0, result.output
    fits = "both" if "odin" in more else "reward"  # odin's score is its quality, which need not fit the pairs alone
    judged = {row["scorer"]: row["value"] for row in json.loads(result.stdout) if row["metric"] == "pair_accuracy"}
    assert judged[fits] > 0.9
    if "grm" in more:
        scores_as_trained(tmp_path / "out", tmp_path / "store")
        exports_as_it_scores(tmp_path / "store", tmp_path / "exported", plain=False)


def test_lora_ends_as_merged_weights(tiny_backbone: Path, data: Path, tmp_path: Path, run_cli: RunCLI) -> None:
    pytest.importorskip("peft")
    from safetensors.torch import load_file

    result = run_cli(*arguments(tiny_backbone, data, tmp_path / "out", "--lora", 4, "--lr", "1e-2", "--epochs", 4))
    assert result.exit_code == 0, result.output
    weights, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", tiny_backbone))
    assert not any("lora" in name for name in weights)
    assert {name.removeprefix("model.") for name in weights} == {*before, "score.weight"}
    changed = {name for name in before if not torch.equal(before[name], weights[f"model.{name}"])}
    assert changed == {name for name in before if "_proj" in name}
    record = json.loads((tmp_path / "out" / "finetune.json").read_text())
    assert record["difference"] < 1e-4  # written, by plain transformers, against merged
    assert 0 < record["merged"] < 1e-4  # merged against adapters
    assert record["best"]["valid"]["accuracy"] > 0.9
    checkpoint = next((tmp_path / "out" / "checkpoints").glob("*/model.safetensors"))
    assert all("lora_" in name or name.startswith("heads.") for name in load_file(checkpoint))
    options = ("--backbone", tmp_path / "out", "--store", tmp_path / "store", "--device", "cpu")
    assert run_cli("embed", "pairs", *options).exit_code == 0
    exports_as_it_scores(tmp_path / "store", tmp_path / "exported", plain=True)


def test_adapters_that_merge_into_other_scores_are_refused(
    tiny_backbone: Path, data: Path, tmp_path: Path, run_cli: RunCLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is merged is held against the adapters, and not against itself."""
    peft = pytest.importorskip("peft")
    monkeypatch.setattr(peft.PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False)
    result = run_cli(*arguments(tiny_backbone, data, tmp_path / "out", "--lora", 4, "--lr", "1e-2", "--steps", 4))
    assert result.exit_code == 1
    assert "the backbone with its adapters merged scores otherwise than it was trained" in result.stderr
    assert not (tmp_path / "out" / "config.json").exists()


def run_files(output: Path) -> dict[str, bytes]:
    """What a fine-tune left but for times: weights, the last checkpoint and the curves."""
    checkpoint = max((output / "checkpoints").iterdir())
    files = [output / "model.safetensors", *sorted(checkpoint.iterdir()), output / "head" / "head.safetensors"]
    found = {
        path.name if path.parent == output else f"{path.parent.name}/{path.name}": path.read_bytes() for path in files
    }
    lines = [json.loads(line) for line in (output / "curves.jsonl").read_text().splitlines()]
    found["curves"] = json.dumps([{k: v for k, v in line.items() if k != "seconds"} for line in lines]).encode()
    return found


def test_a_killed_run_goes_on_to_the_same_bits(
    tiny_backbone: Path, data: Path, tmp_path: Path, run_cli: RunCLI
) -> None:
    """SIGKILL at a random moment after a random checkpoint, between or within steps."""
    more = ("--epochs", 4, "--lr", "1e-3", "--every", 3, "--attributes", data / "scores.jsonl", "--objective", "smorm")
    whole, killed = (arguments(tiny_backbone, data, tmp_path / name / "out", *more) for name in ("whole", "killed"))
    assert run_cli(*whole).exit_code == 0
    words = [sys.executable, "-m", "pipeline.cli", *killed]
    chance = random.Random()  # another moment in every run of the tests
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    after = tmp_path / "killed" / "out" / "checkpoints" / f"step-{3 * chance.randrange(1, 4):08d}" / "checkpoint.json"
    while not after.exists() and process.poll() is None and not list(after.parent.parent.glob("step-0000002*")):
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.3))
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "out" / "finetune.json").exists()
    again = run_cli(*killed)
    assert again.exit_code == 0, again.output
    assert "going on from step" in again.stderr
    ours, theirs = run_files(tmp_path / "killed" / "out"), run_files(tmp_path / "whole" / "out")
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert set(ours) == set(theirs)


@pytest.fixture
def sees(tmp_path: Path, tiny_backbone: Path, tiny_tokenizer: Any) -> Path:  # noqa: ANN401
    """The tiny backbone behind a vision tower, as Gemma 3 of 4b and more are."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = Gemma3TextConfig.from_pretrained(tiny_backbone).to_dict()
    vision = {**small, "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5)
    ).save_pretrained(tmp_path / "sees")
    tiny_tokenizer.save_pretrained(tmp_path / "sees")
    return tmp_path / "sees"


def test_weights_that_text_does_not_read_stay_and_the_run_is_resumed(
    sees: Path, data: Path, tmp_path: Path, run_cli: RunCLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from pipeline.finetune_loop import Loop

    step = Loop.step

    def interrupted(self: Loop, number: int) -> dict[str, float]:
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number)

    words = arguments(sees, data, tmp_path / "out", "--steps", 4, "--every", 2, "--lr", "1e-3")
    monkeypatch.setattr(Loop, "step", interrupted)
    assert run_cli(*words).exit_code == 130
    monkeypatch.setattr(Loop, "step", step)
    again = run_cli(*words)
    assert again.exit_code == 0, again.output
    assert "going on from step 2" in again.stderr
    assert "weights of the backbone are not read for text; they stay as they are" in again.stderr
    kept = load_file(tmp_path / "out" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert kept and not any("vision" in name or "projector" in name for name in kept)
    assert any(".layers.3." in name for name in kept)
    before, after = (load_file(folder / "model.safetensors") for folder in (sees, tmp_path / "out"))
    same = {name for name in before if "vision" in name and torch.equal(before[name], after[name])}
    assert same == {name for name in before if "vision" in name} != set()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--alpha", 0.1), "--alpha goes with --objective grm, not bt; leave it out"),
        (("--objective", "smorm"), "objective smorm is trained on attributes; give --attributes DATASET"),
        (("--attributes", "pairs"), "objective bt does not use attributes; leave out --attributes pairs"),
        (("--use", "colour"), "objective bt does not use attributes; leave out --use colour"),
        (("--lora-alpha", 8), "--lora-alpha goes with --lora RANK; give both or neither"),
        (("--max-length", 9999), "--max-length 9999 is outside 2 to 512"),
        (("--test-share", 0.99, "--valid-share", 0.9), "leaves none of 120 pairs to fit on"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_writes_nothing(
    more: tuple[object, ...], said: str, tiny_backbone: Path, data: Path, tmp_path: Path, run_cli: RunCLI
) -> None:
    result = run_cli(*arguments(tiny_backbone, data, tmp_path / "out", *more))
    assert result.exit_code == 1
    error = result.stderr[result.stderr.index("Error:") :]
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_fine_tune_is_not_written_over(tuned: Path, tiny_backbone: Path, data: Path, run_cli: RunCLI) -> None:
    before = (tuned / "tuned" / "model.safetensors").read_bytes()
    result = run_cli(*arguments(tiny_backbone, data, tuned / "tuned"))
    assert result.exit_code == 1
    assert "holds a fine-tune with" in result.stderr and "give another --output" in result.stderr
    assert (tuned / "tuned" / "model.safetensors").read_bytes() == before


def test_an_encoder_is_refused_before_the_training() -> None:
    from transformers import BertConfig

    from pipeline.finetune_plan import check_architecture

    config = BertConfig(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=1)
    with pytest.raises(ValueError, match="no sequence classifier with a single score row for BertConfig"):
        check_architecture(config)


def test_rows_that_end_in_the_padding_token_keep_their_end(
    tiny_tokenizer: Any,  # noqa: ANN401
    data: Path,
    tmp_path: Path,
    run_cli: RunCLI,
) -> None:
    """A Llama whose padding token is its EOS, and a template that ends in EOS: transformers would read before it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaModel

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    LlamaModel(config).save_pretrained(tmp_path / "llama")
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "llama")
    template = "{% for message in messages %}{{ message.content }}<eos>{% endfor %}"
    (tmp_path / "ends.jinja").write_text(template)
    words = arguments(tmp_path / "llama", data, tmp_path / "out", "--lr", "5e-3", "--steps", 6)
    words[words.index("plain")] = str(tmp_path / "ends.jinja")
    result = run_cli(*words)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "finetune.json").read_text())["difference"] < 1e-4
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert written.pad_token == "<bos>"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    talks = [
        [{"role": "user", "content": "why"}, {"role": "assistant", "content": text}] for text in ("red", "a cat sat")
    ]
    both = written.apply_chat_template(talks, return_tensors="pt", padding=True, return_dict=True)
    alone = [written.apply_chat_template([talk], return_tensors="pt", return_dict=True) for talk in talks]
    assert all(one["input_ids"][0, -1] == written.eos_token_id for one in alone)
    with torch.no_grad():
        together = model(**both).logits[:, 0]
        states = [model.model(**one).last_hidden_state[0, -1] for one in alone]
    torch.testing.assert_close(together, torch.stack(states) @ model.score.weight[0])


@pytest.mark.parametrize("package", ["accelerate", "peft"])
def test_a_missing_package_is_named_with_what_to_install(
    package: str, tiny_backbone: Path, data: Path, tmp_path: Path, run_cli: RunCLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = run_cli(*arguments(tiny_backbone, data, tmp_path / "out", "--lora", 2))
    assert result.exit_code == 1
    assert f"{package}, which is not installed; run: pip install 'rewardheads[finetune]'" in result.stderr


def test_a_start_that_no_step_betters_is_told(tiny_backbone: Path, data: Path, tmp_path: Path, run_cli: RunCLI) -> None:
    words = arguments(tiny_backbone, data, tmp_path / "out", "--steps", 2, "--lr", "1e-30", "--max-length", 14)
    result = run_cli(*words)
    assert result.exit_code == 0, result.output
    assert "WARNING: no step had less held-out loss than none" in result.stderr
    assert "row 0 as the model sees it (plain template" in result.stderr
    assert "longer than 14 tokens: " in result.stderr and " cut (left), 0 dropped" in result.stderr
    plan = json.loads((tmp_path / "out" / "finetune.json").read_text())["plan"]
    assert plan["reward_hidden"] == 0 and plan["attributes_used"] == []
    other = {"float32": "bfloat16", "bfloat16": "float32"}[plan["dtype"]]
    refused = run_cli(*words, "--dtype", other)
    assert refused.exit_code == 1 and f"with dtype {plan['dtype']}, not {other}" in refused.stderr


@pytest.mark.parametrize("named", [True, False], ids=["other tokens", "no named token"])
def test_a_tokenizer_that_would_be_written_otherwise_is_refused_before_the_training(
    named: bool, tiny_backbone: Path, data: Path, tmp_path: Path, run_cli: RunCLI
) -> None:
    """Metaspace marks where a text begins, and after a BOS in the template does not. Or there is none to pad with."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>"], show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS), "User: Assistant: red blue 0 1 2 3 4 5 6 7 8 9"], trainer)
    special = {"unk_token": "<unk>", "bos_token": "<s>"} if named else {}
    if named:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = tmp_path / "backbone"
    shutil.copytree(tiny_backbone, folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    template = tmp_path / "bare.jinja"  # it leaves the BOS to the tokenizer
    template.write_text("{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}")
    words = arguments(folder, data, tmp_path / "out")
    words[words.index("plain")] = str(template)
    result = run_cli(*words)
    assert result.exit_code == 1
    said = "gives other tokens than are trained on: ['<s>', 'u" if named else "so there is nothing to pad with"
    assert said in result.stderr
    assert not (tmp_path / "out").exists()
