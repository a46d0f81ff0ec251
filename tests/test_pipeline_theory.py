import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cache_embeddings import SPEC as ANY_SPEC
from test_pipeline_compare import write_run

from cache.records import Dataset, DatasetBuilder, content_hash
from cache.store import Store

SPEC = replace(ANY_SPEC, layers=(2,), pool=("last",), stored_dtype="float32")
PROMPTS = 150
DIM = 6


def write(store: Path, builder: DatasetBuilder) -> Dataset:
    tables = builder.tables()
    counts = {kind: table.num_rows for kind, table in tables.items()}
    info = {"format": "preference", "content_hash": content_hash(tables), "counts": counts, "prompts": PROMPTS}
    dataset = Dataset(builder.name, tables, {**info, "refused": []})
    Store(store).write_dataset(dataset)
    return dataset


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two responses to each prompt: the first channel chooses, "helpful" is like it and "terse" the reverse."""
    generator = np.random.default_rng(0)
    prefs, scores, pool = (DatasetBuilder(name) for name in ("prefs", "scores", "pool"))
    vectors: dict[str, np.ndarray] = {}
    for number in range(PROMPTS):
        prompt = [{"role": "user", "content": f"prompt {number}"}]
        two = generator.normal(size=(2, DIM))
        two = two[np.argsort(-two[:, 0])]
        texts = (f"good {number}", f"worse {number}")
        ids = [[builder.add_response(prompt, text) for text in texts] for builder in (prefs, scores, pool)]
        prefs.add_pair(*ids[0])
        for identifier, vector in zip(ids[1], two, strict=True):
            vectors[identifier] = vector
            scores.add_attribute(identifier, "helpful", float(vector[0] + generator.normal()))
            scores.add_attribute(identifier, "terse", float(-vector[0] + generator.normal()))
        for identifier, gold in zip(ids[2], (number + 2.0, float(number)), strict=True):
            pool.add_gold(identifier, "exact", gold)
    for builder in (prefs, scores):
        write(tmp_path, builder)
    write_run(tmp_path, write(tmp_path, pool), "half", [True, False])
    matrix = np.array(list(vectors.values()), dtype=np.float32)
    Store(tmp_path).create_embeddings(SPEC).append(list(vectors), {"L2.last": matrix}, {})
    return tmp_path


def theory(
    run_cli: Callable[..., Any], store: Path, *arguments: object
) -> dict[tuple[str, str | None], dict[str, Any]]:
    result = run_cli("theory", *arguments, "--store", store, "--json", "--resamples", 50)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert all(row["equation"] for row in rows)
    return {(row["quantity"], row["of"]): row for row in rows}


def test_aligned_attributes_have_a_positive_sign_and_a_bound(run_cli: Callable[..., Any], store: Path) -> None:
    rows = theory(run_cli, store, "--pairs", "prefs", "--attributes", "scores", "--use", "helpful")
    assert rows["1^T alpha", None]["low"] > 0
    assert rows["draws with 1^T alpha > 0", None]["value"] == 1
    assert rows["draws with 1^T alpha > 0", None]["equation"].startswith("share of reflected draws")
    assert rows["|C_M|", "helpful"]["value"] > 0
    assert rows["identity", "training pairs"]["value"] < 1e-12
    trained = rows["c", "training pairs"]["n"]
    assert trained + rows["c", "test pairs"]["n"] == PROMPTS
    assert rows["c", "test pairs"]["low"] > 0
    assert rows["correlation", "test rows"]["value"] > 0.9
    assert rows["eps", "training rows"]["value"] < rows["eps without r_s", "training rows"]["value"] / 2
    assert rows["bound holds with eps for 95 %", "test rows"]["value"] > 0.8
    assert rows["eps for 95 %", "training rows"]["value"] <= rows["eps", "training rows"]["value"]


def test_misaligned_attributes_have_a_negative_sign(run_cli: Callable[..., Any], store: Path) -> None:
    rows = theory(run_cli, store, "--pairs", "prefs", "--attributes", "scores")
    assert rows["alpha", "helpful"]["low"] > 0 > rows["alpha", "terse"]["high"]
    total = rows["1^T alpha", None]
    assert total["value"] == pytest.approx(rows["alpha", "helpful"]["value"] + rows["alpha", "terse"]["value"])
    only = theory(run_cli, store, "--pairs", "prefs", "--attributes", "scores", "--use", "terse")
    assert only["1^T alpha", None]["high"] < 0
    assert only["c", "training pairs"]["value"] < 0


def test_a_pool_and_a_run(run_cli: Callable[..., Any], store: Path) -> None:
    rows = theory(run_cli, store, "--pool", "pool", "--beta", 2, "--beta", "inf", "--run", "half")
    assert rows["E|dr| same prompt", None]["value"] == pytest.approx(2)
    assert rows["E|dr| cross prompt", None]["value"] > 40  # prompts are numbers from 0 to 149
    assert rows["Q same prompt", "beta inf"]["value"] == 1
    assert rows["order consistency with gold", "half, beta 2"]["value"] == pytest.approx(0.5, abs=0.02)
    assert rows["scale", None]["value"] == pytest.approx(np.sqrt(2))
    xi = 1 / (1 + np.exp(-2 * 2 / np.sqrt(2)))
    assert rows["annotation quality", "half, beta 2"]["value"] == pytest.approx(xi)
    assert rows["bound on consistency with gold", "half, beta inf"]["value"] == pytest.approx(
        rows["order consistency with gold", "half, beta 2"]["value"]
    )
    assert rows["paper's form of the bound", "half, beta inf"]["value"] is None  # it disagrees on more than 3/20
    assert ("c", "training pairs") not in rows


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give --pairs and --attributes for Theorem 1, or --pool"),
        (("--pairs", "prefs"), "there are no attributes; give --attributes DATASET"),
        (("--pairs", "scores", "--attributes", "scores"), "dataset 'scores' has no pairs"),
        (("--pool", "prefs"), "dataset 'prefs' has no gold scores"),
        (("--pairs", "prefs", "--attributes", "scores", "--run", "half"), "give --pool DATASET"),
        (("--pool", "pool", "--run", "none"), "no run or group 'none'"),
    ],
)
def test_what_is_missing_is_one_sentence(
    run_cli: Callable[..., Any], store: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    result = run_cli("theory", *arguments, "--store", store)
    assert result.exit_code == 1
    assert sentence in result.output
    assert result.stdout == ""
