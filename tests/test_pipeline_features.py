"""`--features`: columns, `centred(...)` ones beside them, at fitting and wherever the head scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_pipeline_fit_jobs import planted_store

from cache.store import Store
from pipeline.features import assemble_features, choose_features


def test_centred_columns_stand_beside_others_and_sum_to_zero_in_each_prompt(tmp_path: Path) -> None:
    store = Store(planted_store(tmp_path, prompts=6))
    embeddings = store.embeddings(store.fingerprints()[0])
    names = choose_features("L2.mean+centred(L2.last)", embeddings)
    data = assemble_features(embeddings, names, pairs=store.dataset("prefs"))
    assert data.view.blocks == (("L2.mean", 8), ("centred(L2.last)", 8))
    plain = assemble_features(embeddings, ["L2.mean", "L2.last"], pairs=store.dataset("prefs")).view.features
    features = data.view.features
    np.testing.assert_array_equal(features[:, :8], plain[:, :8])
    for prompt in range(6):
        rows = data.view.prompts == prompt
        np.testing.assert_allclose(features[rows, 8:], plain[rows, 8:] - plain[rows, 8:].mean(axis=0), atol=1e-6)


def test_features_that_stay_on_disk_are_not_centred(tmp_path: Path) -> None:
    store = Store(planted_store(tmp_path, prompts=6))
    embeddings = store.embeddings(store.fingerprints()[0])
    with pytest.raises(ValueError, match="needs all features in memory"):
        assemble_features(embeddings, ["centred(L2.last)"], pairs=store.dataset("prefs"), in_memory=10)


def test_a_head_is_judged_on_features_centred_as_it_was_fitted(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    store = planted_store(tmp_path)
    for features in ("L2.last", "centred(L2.last)"):
        asked = ["--features", features, "--no-control", "--store", store]
        result = run_cli("fit", "--head", "linear", "--head", "clf", "--pairs", "prefs", *asked)
        assert result.exit_code == 0, result.output
    assert run_cli("evaluate", "--on", "prefs", "--store", store).exit_code == 0
    runs = [Store(store).run(name) for name in Store(store).run_names()]
    margins = {}
    for run in runs:
        scores = pq.read_table(store / "runs" / run["run_id"] / "scores.parquet")
        by_id = dict(zip(scores["response_id"].to_pylist(), scores["score"].to_pylist(), strict=True))
        pairs = Store(store).dataset("prefs")["pairs"].to_pylist()
        margins[run["head"], run["features"][0]] = np.array(
            [by_id[p["chosen_id"]] - by_id[p["rejected_id"]] for p in pairs if p["chosen_id"] in by_id]
        )
    # A difference within a prompt does not see what both responses lose.
    centred = margins["linear", "centred(L2.last)"]
    assert np.corrcoef(margins["linear", "L2.last"], centred)[0, 1] > 0.99
    # The rewards of a prompt's two centred rows mirror each other.
    assert np.abs(margins["clf", "L2.last"] - margins["clf", "centred(L2.last)"]).max() > 0.1
    groups = {run["group"] for run in runs}
    assert len(groups) == 4


def test_an_unknown_feature_lists_those_there_are(tmp_path: Path) -> None:
    store = Store(planted_store(tmp_path, prompts=6))
    embeddings = store.embeddings(store.fingerprints()[0])
    for asked in ("L9.last", "centred(L9.last)", "centred(L2.last"):
        with pytest.raises(ValueError, match=r"has no feature .*; it has L2\.last, L2\.mean"):
            choose_features(asked, embeddings)
    with pytest.raises(ValueError, match=r"names L2\.last twice"):
        choose_features("L2.last+L2.last", embeddings)
