"""Every kind of head on gemma3-270m, exported, and 500 cached rows scored by plain transformers.

EXPORT_PYTHON names an interpreter whose environment has torch and transformers and not this package (default: the one
that runs the tests); EXPORT_STORE a folder that keeps the embedding between runs (it takes minutes).
"""

import gzip
import json
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_jsonl
from numpy.typing import NDArray

from bench.metrics import spearman
from cache.store import Store
from heads.registry import load_head
from pipeline.embed import EmbedOptions, embed
from pipeline.export import ExportOptions, Sample, export
from pipeline.export_proof import Expected, compare, rescore_elsewhere
from pipeline.fit import FitOptions, fit
from pipeline.progress import say
from pipeline.rerun import Rerun
from pipeline.windows import Pending

pytestmark = [pytest.mark.heavy, pytest.mark.backbone, pytest.mark.shared, pytest.mark.filterwarnings("ignore")]

ROWS = 500
FILES = {"pref_hh_harmless_base_test": "pairs", "attr_topicalchat_usr_human": "attributes"}
SHORT = "short"
NEEDS = {"ridge": "a", "morm": "a", "smorm": "pa", "baseline-sm": "pa", "gated": "pa"}  # others: pairs
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "linear": ("linear", "L18.last", {}),
    "linear whitened": ("linear", "L18.last", {"options": (("scaling", "whiten"),)}),
    "smorm, linear trunk": ("smorm", "L18.last", {"options": (("trunk", "none"),)}),
    "ridge, one attribute": ("ridge", "L18.last", {"use": ("overall",)}),
    "linear, two layers": ("linear", "L9.last+L18.last", {}),
    "linear, mean": ("linear", "L9.mean", {}),
    "bayes": ("bayes", "L18.last", {}),
    "bt": ("bt", "L18.last", {}),
    "clf": ("clf", "L18.last", {}),
    "odin": ("odin", "L18.last", {}),
    "ridge": ("ridge", "L18.last", {}),
    "morm": ("morm", "L18.last", {}),
    "smorm": ("smorm", "L18.last", {}),
    "baseline-sm": ("baseline-sm", "L18.last", {}),
    "gated": ("gated", "L18.last+L18.prompt", {}),
    "ensemble": ("ensemble", "L18.last", {}),
}
PLAIN = ("linear", "linear whitened", "smorm, linear trunk", "ridge, one attribute")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("export")
    folder = Path(os.environ.get("EXPORT_STORE", made))
    spec: dict[str, Any] = {"layers": ("9", "last"), "pool": ("last", "mean", "prompt"), "template": "plain"}
    spec |= {"store": folder, "backbone": "gemma3-270m", "dtype": "float32", "device": "cpu"}
    files = tuple(str(shared_data / f"{name}.jsonl.gz") for name in FILES)
    if not set(FILES) <= set(Store(folder).dataset_names()):
        embed(EmbedOptions(files, prompts=400, **spec))
    if SHORT not in Store(folder).dataset_names():
        with gzip.open(files[0], "rt") as lines:
            pairs = sorted((json.loads(line) for line in lines), key=lambda row: len(row["chosen"] + row["rejected"]))
        embed(EmbedOptions((str(write_jsonl(made / f"{SHORT}.jsonl", pairs[: ROWS // 2 + 50])),), **spec))
    yield folder


def fitted(store: Path, kind: str) -> str:
    head, features, more = KINDS[kind]
    sources = {use: name for name, use in FILES.items() if use[0] in NEEDS.get(head, "p")}
    return fit(FitOptions((head,), store, features=(features,), control=False, **sources, **more))[0].run_id


@lru_cache(maxsize=1)
def shortest(store: Path) -> list[Pending]:
    """Rows of the pairs with the shortest texts: a CPU runs about 1,500 tokens a second."""
    columns = ["response_id", "prompt", "response"]
    rows: list[dict[str, str]] = Store(store).dataset(SHORT)["responses"].select(columns).to_pylist()
    return [Pending(**row) for row in rows[:ROWS]]


FEATURES = ("L9.last", "L9.mean", "L18.last", "L18.prompt")


@lru_cache(maxsize=1)
def fresh(store: Path) -> tuple[Sample, dict[str, NDArray[np.float32]]]:
    """The rows' tokens, and their features run again and not rounded, each (n, d)."""
    spec = Store(store).embeddings(Store(store).fingerprints()[0]).spec
    rerun = Rerun.load(spec, FEATURES)
    rows = shortest(store)
    sample = Sample.of(rerun.renderer, rows, {})
    matrix = rerun.run(rows, rounded=False).matrix
    return sample, dict(zip(FEATURES, np.split(matrix, len(FEATURES), axis=1), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_scores_500_cached_rows_as_the_head(
    kind: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = fitted(store, kind)
    done = export(ExportOptions(run_id, tmp_path / "out", store, rows=8))
    assert done.plain is (kind in PLAIN)
    sample, features = fresh(store)
    assert len(sample.texts) == ROWS
    run, head = Store(store).run(run_id), load_head(Store(store).run_directory(run_id))
    exact = np.concatenate([features[name] for name in run["features"]], axis=1)
    cached = (
        Store(store).embeddings(run["embedding"]).gather([row.response_id for row in sample.texts], run["features"])
    )
    half = exact.astype(np.float16).astype(np.float32)
    expected = Expected(*(head.scores(rows)[done.score] for rows in (exact, half, cached)), done.constant)
    python = os.environ.get("EXPORT_PYTHON", sys.executable)
    found = rescore_elsewhere(tmp_path / "out", sample.messages, sample.tokens, python=python)
    agreement = compare(found, expected, dtype="float32")
    with capsys.disabled():
        say(
            f"\n| {kind} | {agreement.model_class} | {agreement.spread:.3f} | {agreement.fresh_difference:.1e} | "
            f"{agreement.fresh_spearman:.6f} | {agreement.cached_difference:.1e} | {agreement.cached_spearman:.6f} | "
            f"{agreement.rounding:.1e} | {agreement.starts_found} |"
        )
    if kind == "linear":
        check_pipeline(tmp_path / "out", sample, expected.cached)


def check_pipeline(directory: Path, sample: Sample, cached: NDArray[np.float32]) -> None:
    """`transformers.pipeline` ranks as the cached scores do, but for those that float16 makes change places."""
    from transformers import pipeline

    classify: Any = pipeline("text-classification", model=str(directory))
    texts = [classify.tokenizer.apply_chat_template(one, tokenize=False) for one in sample.messages[:100]]
    scores = np.array([row["score"] for row in classify(texts, function_to_apply="none")])
    rank = spearman(scores, cached[:100].astype(np.float64), np.arange(100), resamples=2).value
    say(f"text-classification pipeline, 100 rows: Spearman with the cached scores {rank:.6f}")
    assert rank > 0.9999
