"""What the rewardbench package (0.1.4) makes of an export of ours: its steps, one by one, and its own command.

The package asks for transformers 4.51, so it has an environment of its own (`pip install rewardbench==0.1.4
'setuptools<81'`), whose interpreter REWARDBENCH_PYTHON names; without it the steps alone are tested. Its
`rewardbench.py` loads by AutoModelForSequenceClassification and AutoTokenizer, makes texts by
`apply_chat_template(tokenize=False)`, tokenises these texts again with special tokens and padding on the left, in
`RewardBenchPipeline` masks the first of two BOS, and counts a pair as right if the chosen response's logit is the
larger one.
"""

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import WORDS, write_jsonl

from cache.store import Store
from pipeline.export import ExportOptions, export
from pipeline.fit import FitOptions, fit
from pipeline.progress import say

Pair = dict[str, Any]
FLOAT16 = 0.02  # of the margins' deviation: what rounding the cached features may do to one
PACKAGE = os.environ.get("REWARDBENCH_PYTHON", "")
needs_package = pytest.mark.skipif(not PACKAGE, reason="REWARDBENCH_PYTHON names no interpreter with rewardbench")
ON_CPU = """
from rewardbench.rewardbench import main
from transformers import BatchEncoding

to = BatchEncoding.to
BatchEncoding.to = lambda self, device, **more: to(self, "cpu" if device == "cuda" else device, **more)
main()
"""  # all of it that needs a GPU when nothing is quantised: it sends inputs to "cuda" wherever the model is


def package_margins(directory: Path, pairs: Iterable[tuple[str, str, str]], *, batch: int = 8) -> tuple[Any, Any]:
    """How far each pair's chosen response leads by the package's own command, and whether it calls that right: (n,)."""
    folder = directory.parent
    rows = [
        {
            side: [*json.loads(prompt), {"role": "assistant", "content": response}]
            for side, response in (("chosen", chosen), ("rejected", rejected))
        }
        for prompt, chosen, rejected in pairs
    ]
    write_jsonl(folder / "pairs.jsonl", rows)
    flags = ["--load_json", "--not_quantized", "--trust_remote_code", "--torch_dtype", "float32"]
    files = ["--model", directory.name, "--dataset", "pairs.jsonl", "--output_dir", "scores/"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "PYTHONPATH": ""}
    done = subprocess.run(
        [PACKAGE, "-c", ON_CPU, *files, *flags, "--batch_size", str(batch)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with (folder / "scores" / f"{directory.name}_outputs.jsonl").open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    assert [row["chosen"] for row in found] == [chosen for _, chosen, _ in pairs]
    return (
        np.array([row["scores_chosen"] - row["scores_rejected"] for row in found]),
        np.array([row["results"] == 1 for row in found]),
    )


def decisions(directory: Path, pairs: list[Pair], *, custom: bool, batch: int = 8) -> tuple[list[bool], int]:
    """Whether each pair's chosen response wins, the published way; and how many rows began with two BOS."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=custom)
    tokenizer.padding_side = "left"
    model = AutoModelForSequenceClassification.from_pretrained(directory, trust_remote_code=custom).eval()
    doubled = 0
    logits: dict[str, list[float]] = {"chosen": [], "rejected": []}
    for side, found in logits.items():
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[side]}],
                tokenize=False,
            )
            for pair in pairs
        ]
        for start in range(0, len(texts), batch):
            inputs = tokenizer(texts[start : start + batch], padding=True, truncation=False, return_tensors="pt")
            doubled += mask_second_bos(inputs["input_ids"], inputs["attention_mask"], tokenizer.bos_token_id)
            with torch.no_grad():
                found += model(**inputs).logits[:, 0].tolist()
    return [c > r for c, r in zip(logits["chosen"], logits["rejected"], strict=True)], doubled


def mask_second_bos(ids: torch.Tensor, mask: torch.Tensor, bos: int) -> int:
    """Take the first of two BOS out of the mask, as `RewardBenchPipeline` does; how many rows had two."""
    rows, first = torch.arange(len(ids)), mask.argmax(1)
    second = (first + 1).clamp(max=ids.shape[1] - 1)
    twice = (ids[rows, first] == bos) & (ids[rows, second] == bos)
    mask[rows[twice], first[twice]] = 0
    return int(twice.sum())


def judged(store: Path, run: str, dataset: str) -> dict[tuple[str, str, str], float]:
    """Of each held-out pair, by prompt and responses, how far the chosen one leads by the scores that evaluate kept."""
    from pipeline.evaluate import EvaluateOptions, evaluate

    evaluate(EvaluateOptions((run,), (dataset,), store))
    scores = pq.read_table(Store(store).run_directory(run) / "scores.parquet")
    score = dict(zip(scores["response_id"].to_pylist(), scores["score"].to_pylist(), strict=True))
    tables = Store(store).dataset(dataset)
    text = {row["response_id"]: (row["prompt"], row["response"]) for row in tables["responses"].to_pylist()}
    return {
        (*text[pair["chosen_id"]], text[pair["rejected_id"]][1]): score[pair["chosen_id"]] - score[pair["rejected_id"]]
        for pair in tables["pairs"].to_pylist()
        if pair["chosen_id"] in score and pair["rejected_id"] in score
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Iterator[Path]:
    yield embedded(tmp_path_factory.mktemp("rewardbench"), tiny_backbone)


def embedded(folder: Path, backbone: Path) -> Path:
    from pipeline.embed import EmbedOptions, embed

    pairs = [
        {"prompt": f"why {WORDS[n % 20]} {n}", "chosen": f"{WORDS[n % 13]} yes", "rejected": f"{WORDS[n % 11]} no"}
        for n in range(60)
    ]
    source = str(write_jsonl(folder / "pairs.jsonl", pairs))
    embed(EmbedOptions((source,), folder / "store", str(backbone), template="plain", device="cpu"))
    return folder / "store"


@pytest.mark.parametrize(("head", "custom"), [("linear", False), ("bt", True)])
def test_rewardbench_decides_as_evaluate_does(head: str, custom: bool, store: Path, tmp_path: Path) -> None:
    run = fit(FitOptions((head,), store, pairs="pairs", control=False))[0].run_id
    assert export(ExportOptions(run, tmp_path / "out", store, rows=8)).plain is not custom
    expected = judged(store, run, "pairs")
    pairs = [{"prompt": json_prompt(prompt), "chosen": c, "rejected": r} for prompt, c, r in expected]
    found, doubled = decisions(tmp_path / "out", pairs, custom=custom)
    assert doubled == 0
    assert found == [margin > 0 for margin in expected.values()]
    assert 0 < len(found) <= 60


@needs_package
@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("head", "plain"), [("linear", True), ("bt", False)])
def test_the_package_reads_the_rotary_embedding(head: str, plain: bool, tmp_path: Path, tiny_tokenizer: Any) -> None:  # noqa: ANN401
    """Transformers 4.51 takes base 10,000 and no scaling where it finds no keys of its own, and says nothing."""
    from transformers import LlamaConfig, LlamaModel

    rope = {"rope_type": "llama3", "rope_theta": 500.0, "original_max_position_embeddings": 16}
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        rope_parameters={**rope, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    )
    torch.manual_seed(0)
    LlamaModel(config).save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    store = embedded(tmp_path, tmp_path / "tiny")
    run = fit(FitOptions((head,), store, pairs="pairs", control=False))[0].run_id
    assert export(ExportOptions(run, tmp_path / "out", store, rows=8)).plain is plain
    expected = judged(store, run, "pairs")
    margin = np.array(list(expected.values()))
    found, right = package_margins(tmp_path / "out", expected)
    assert np.abs(found - margin).max() < FLOAT16 * margin.std()
    assert right.tolist() == (margin > 0).tolist()


def json_prompt(prompt: str) -> str:
    (turn,) = json.loads(prompt)
    content: str = turn["content"]
    return content


def test_a_second_bos_is_masked_as_the_package_does() -> None:
    ids = torch.tensor([[0, 2, 2, 7], [2, 7, 8, 9], [2, 2, 8, 9]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
    assert mask_second_bos(ids, mask, 2) == 2
    assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]


@pytest.mark.backbone
@pytest.mark.shared
@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("head", "custom"), [("linear", False), ("bt", True)])
def test_on_llmbar_with_gemma(
    head: str, custom: bool, llmbar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real data, every pair of LLMBar: a decision differs only where the float16 cache cannot tell a tie."""
    run = fit(FitOptions((head,), llmbar, pairs="autoj", features=("L18.last",), control=False))[0].run_id
    assert export(ExportOptions(run, tmp_path / "out", llmbar, rows=8)).plain is not custom
    margins = judged(llmbar, run, "llmbar")
    pairs = [{"prompt": json_prompt(prompt), "chosen": c, "rejected": r} for prompt, c, r in margins]
    found, doubled = decisions(tmp_path / "out", pairs, custom=custom, batch=2)
    margin = np.array(list(margins.values()))
    differ = np.array(found) != (margin > 0)
    with capsys.disabled():
        right = f"{np.mean(found):.4f} by rewardbench's steps, {np.mean(margin > 0):.4f} by evaluate"
        tied = f"margins of these {np.abs(margin[differ])}, sd of all {margin.std():.4f}"
        say(f"\n{head}: {len(found)} LLMBar pairs, {differ.sum()} decided otherwise ({tied})\nright: {right}")
    assert len(found) > 400 and doubled == 0
    assert differ.mean() < 0.01 and (np.abs(margin[differ]) < FLOAT16 * margin.std()).all()


@needs_package
@pytest.mark.backbone
@pytest.mark.shared
@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", ["linear", "bt"])
def test_the_package_on_llmbar_with_gemma(
    head: str, llmbar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Custom, because transformers 4.51 has no class for a plain Gemma 3."""
    run = fit(FitOptions((head,), llmbar, pairs="autoj", features=("L18.last",), control=False))[0].run_id
    export(ExportOptions(run, tmp_path / "out", llmbar, form="custom", rows=8))
    margins = judged(llmbar, run, "llmbar")
    margin = np.array(list(margins.values()))
    found, right = package_margins(tmp_path / "out", margins, batch=2)
    differ = right != (margin > 0)
    with capsys.disabled():
        moved = f"margins differ by {np.abs(found - margin).max():.1e} at most, their sd is {margin.std():.4f}"
        say(f"\n{head}: {len(right)} LLMBar pairs by the package, {differ.sum()} decided otherwise; {moved}")
        say(f"right: {right.mean():.4f} by the package, {np.mean(margin > 0):.4f} by evaluate")
    assert len(right) > 400
    assert differ.mean() < 0.01 and (np.abs(margin[differ]) < FLOAT16 * margin.std()).all()


@pytest.fixture(scope="module")
def llmbar(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[Path]:
    """All pairs of LLMBar to be judged, and the 300 shortest of Auto-J to fit on."""
    from pipeline.embed import EmbedOptions, embed
    from pipeline.readers import read_source

    folder = tmp_path_factory.mktemp("llmbar")
    files = {"llmbar": "bench_rewardbench_llmbar_ifbench.parquet", "autoj": "pref_autoj_human.jsonl.gz"}
    sources = []
    for name, count in (("llmbar", None), ("autoj", 300)):
        rows = short_pairs(read_source(str(shared_data / files[name])), "llmbar" if name == "llmbar" else "", count)
        sources.append(str(write_jsonl(folder / f"{name}.jsonl", rows)))
    embed(
        EmbedOptions(tuple(sources), folder / "store", "gemma3-270m", template="plain", dtype="float32", device="cpu")
    )
    yield folder / "store"


def short_pairs(dataset: Any, subset: str, count: int | None) -> list[Pair]:  # noqa: ANN401 - cache.records.Dataset
    """The shortest one-turn pairs of the subsets that are called so, or all of them."""
    text = {row["response_id"]: row for row in dataset["responses"].to_pylist()}
    rows = []
    for pair in dataset["pairs"].to_pylist():
        chosen, rejected = text[pair["chosen_id"]], text[pair["rejected_id"]]
        if subset in (pair["subset"] or "") and chosen["prompt"].count('"role"') == 1:
            prompt = json_prompt(chosen["prompt"])
            rows.append({"prompt": prompt, "chosen": chosen["response"], "rejected": rejected["response"]})
    return sorted(rows, key=lambda row: len("".join(row.values())))[:count]
