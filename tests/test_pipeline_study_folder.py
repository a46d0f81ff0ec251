"""What a study keeps, and what its cells share: nothing twice, nothing lost, nothing mixed unsaid."""

import gc
import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from test_pipeline_study import STUDY, written
from test_pipeline_study import store as store

import pipeline.study as stage
from bench.study_results import RESULTS
from cache.files import read_json, write_json, write_table
from cache.store import Store
from pipeline import study_data, study_engines
from pipeline.progress import Progress
from pipeline.study import Recorder, StudyOptions, parts, run_study
from pipeline.study_cell import CellRunner
from pipeline.study_data import load_study
from pipeline.study_spec import Cell, parse_study

GRID = {**STUDY["grids"][0], "heads": ["linear"], "pairing": ["same"], "beta": [1], "pairs": [40]}
ONE = {"grids": [GRID], "seeds": 1, "evaluate": []}


def runner(store: Path, **changes: Any) -> tuple[CellRunner, list[Cell]]:  # noqa: ANN401
    study = parse_study({**STUDY, **ONE, **changes})
    return CellRunner(load_study(Store(store), study), study.heads, study.evaluate, 0.15), study.cells()


def a_cell() -> Cell:
    return Cell("pool", "z", "bt", "same", "random", 1.0, 40, 0)


def test_a_part_is_written_once_though_ctrl_c_falls_between_its_renaming_and_the_next_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_be_stopped(path: Path, table: pa.Table) -> None:
        write_table(path, table)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "write_table", write_and_be_stopped)
    monkeypatch.setattr(stage, "BATCH_CELLS", 1)
    recorder = Recorder(tmp_path, defaultdict(list))
    with pytest.raises(KeyboardInterrupt):
        recorder.record([(a_cell(), [{"cell": "one", "seconds": 1.0}])], Progress("fits", total=1), {})
    assert [path.name for path in parts(tmp_path)] == ["part-00000.parquet"]


def test_results_without_their_meaning_are_one_sentence(store: Path) -> None:
    folder = store / "studies" / "try"
    write_table(folder / "part-00000.parquet", pa.Table.from_pylist([], schema=RESULTS))
    with pytest.raises(ValueError, match=r"has results, and no study\.json that says what they are of"):
        run_study(StudyOptions(written(store, **ONE), store, jobs=1))


def test_a_study_says_what_made_it_and_is_not_mixed_unsaid(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = written(store, **ONE), store / "studies" / "try"
    run_study(StudyOptions(file, store, jobs=1))
    known = read_json(folder / "study.json")
    (made,) = known["made_with"]
    assert set(made["versions"]) == {"rewardheads", "torch", "numpy", "scipy", "lightgbm"}
    assert made["precision"] in ("float32", "bfloat16") and len(made["code"]) == 16

    write_json(folder / "study.json", {**known, "made_with": [{**made, "code": "another"}]})
    run_study(StudyOptions(file, store, jobs=1))  # nothing is left to be made
    assert "other code" not in capsys.readouterr().err
    assert len(read_json(folder / "study.json")["made_with"]) == 1
    run_study(StudyOptions(written(store, **{**ONE, "seeds": 2}), store, jobs=1))
    assert "has results of other code or libraries" in capsys.readouterr().err
    assert [one["code"] for one in read_json(folder / "study.json")["made_with"]] == ["another", made["code"]]

    write_json(folder / "study.json", {**known, "made_with": [{**made, "precision": "float64"}]})
    with pytest.raises(ValueError, match=r"multiplies in float64, and this one does in (float32|bfloat16)"):
        run_study(StudyOptions(written(store, **{**ONE, "seeds": 3}), store, jobs=1))


def test_a_pool_of_other_responses_is_another_pool(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another set of features has no vectors for falls out of all cells, those already made included."""
    run_study(StudyOptions(written(store, **ONE), store, jobs=1))
    every: Callable[..., list[str]] = study_data._embedded
    monkeypatch.setattr(study_data, "_embedded", lambda *given: every(*given)[1:])
    with pytest.raises(ValueError, match=r"has results with another pools\.pool"):
        run_study(StudyOptions(written(store, **{**ONE, "seeds": 2}), store, jobs=1))


def test_pairs_are_chosen_once_for_all_heads(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = {**GRID, "heads": ["linear", "bt"], "choice": ["uncertainty"], "pairs": [40, 60]}
    runs, cells = runner(store, grids=[grid])
    asked: list[Cell] = []
    choose: Callable[..., Any] = CellRunner._chosen
    monkeypatch.setattr(
        CellRunner, "_chosen", lambda self, cell, *rest: asked.append(cell) or choose(self, cell, *rest)
    )
    rows = [runs.run(cell)[0] for cell in cells]
    assert [row.get("error") for row in rows] == [None] * 4
    assert [cell.pairs for cell in asked] == [40, 60]
    assert rows[0]["mean_gap"] == rows[2]["mean_gap"] != rows[1]["mean_gap"]


def test_a_head_may_be_judged_on_more_than_the_others(store: Path) -> None:
    heads = {"linear": None, "bt": {"options": {"epochs": 2}, "evaluate": ["prefs"]}}
    runs, cells = runner(store, heads=heads, grids=[{**GRID, "heads": ["linear", "bt"]}])
    judged = {cell.head: [row["judged_on"] for row in runs.run(cell)] for cell in cells}
    assert judged == {"linear": ["pool"], "bt": ["pool", "prefs"]}


def test_each_held_out_prompt_s_curve_is_kept_and_the_proxy_s_beside_gold_s(store: Path) -> None:
    runs, (cell,) = runner(store)
    (row,) = runs.run(cell)
    curves = np.array(row["curves"])
    assert curves.shape == (row["n"], 6)
    assert curves.mean(axis=0) == pytest.approx(row["best_of_n"])
    assert curves[:, -1] == pytest.approx(row["gains"])
    proxy = row["proxy_best_of_n"]
    assert proxy[0] == pytest.approx(0) and 1 < proxy[-1] < 2  # the most of six normal ones is at 1.27
    assert proxy == sorted(proxy)


def test_results_that_were_handed_on_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(list[Any]):
        """A list that can be referred to weakly."""

    monkeypatch.setattr(study_engines, "_run", lambda cell: Rows())
    cells, seen = [Cell("pool", "z", "bt", "same", "random", 1.0, 40, seed) for seed in range(9)], []
    with ThreadPoolExecutor(1) as executor:
        for _, rows in study_engines._run_in(cast("Any", executor), cells):
            seen.append(weakref.ref(rows))
            del rows
            gc.collect()
            assert sum(one() is not None for one in seen) <= 2
