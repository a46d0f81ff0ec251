"""`pipeline study` on a small planted pool: what it checks, what it keeps, and how it goes on after a kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from test_cache_embeddings import SPEC

from bench.study_results import TIMES
from cache.records import Dataset, DatasetBuilder, content_hash
from cache.splits import is_test
from cache.store import Store
from pipeline.study import StudyOptions, finished, parts, run_study
from pipeline.study_data import load_study
from pipeline.study_spec import Cell, parse_study

PROMPTS, RESPONSES = 80, 6
STUDY: dict[str, Any] = {
    "study": "try",
    "seeds": 2,
    "pools": {"pool": {"dataset": "pool", "attributes": "pool", "use": ["helpful"]}},
    "features": {"z": {"columns": "L2.last"}},
    "heads": {"linear": None, "bt": {"options": {"epochs": 3}}, "smorm": {"options": {"epochs": 2}}},
    "grids": [
        {
            "pools": ["pool"], "features": ["z"], "heads": ["linear", "bt", "smorm"], "pairing": ["same", "cross"],
            "beta": [1, "inf"], "pairs": [40, 100],
        },
        {
            "pools": ["pool"], "features": ["z"], "heads": ["linear"], "pairing": ["same"], "beta": [2], "pairs": [60],
            "choice": ["uncertainty", "d-optimal"],
        },
    ],
    "evaluate": ["prefs"],
}  # fmt: skip
FITS = 2 * (3 * 2 * 2 * 2 + 2)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A pool whose gold is linear in the first of 8 channels, and pairs of other prompts with the same reward."""
    generator = np.random.default_rng(0)
    builders = {"pool": DatasetBuilder("pool"), "prefs": DatasetBuilder("prefs")}
    vectors = generator.standard_normal((PROMPTS * (RESPONSES + 2), 8)).astype(np.float32)
    noise = generator.standard_normal((PROMPTS, RESPONSES))
    rewards = iter(2 * vectors[:, 0] + 0.1 * vectors[:, 1])
    for number in range(PROMPTS):
        message = [{"role": "user", "content": f"why {number}"}]
        for response in range(RESPONSES):
            key = builders["pool"].add_response(message, f"answer {response}")
            reward = float(next(rewards))
            builders["pool"].add_gold(key, "oracle", reward)
            builders["pool"].add_attribute(key, "helpful", round(reward + 0.3 * float(noise[number, response]), 3))
            builders["pool"].add_attribute(key, "gold", -2 * reward + 1)
            builders["pool"].add_attribute(key, "a", float(noise[number, response]))
            builders["pool"].add_attribute(key, "b", reward - float(noise[number, response]))
    for number in range(PROMPTS):
        message = [{"role": "user", "content": f"what {number}"}]
        ids = [builders["prefs"].add_response(message, f"answer {side}") for side in (0, 1)]
        one, other = next(rewards), next(rewards)
        builders["prefs"].add_pair(*(ids if one > other else ids[::-1]))
    for builder in builders.values():
        tables = builder.tables()
        info = {
            "format": "test", "content_hash": content_hash(tables), "prompts": PROMPTS, "refused": [],
            "counts": {name: table.num_rows for name, table in tables.items()},
        }  # fmt: skip
        Store(tmp_path).write_dataset(Dataset(builder.name, tables, info))
    ids = [key for builder in builders.values() for key in builder.responses]
    lengths = np.full(len(ids), 9, dtype=np.int32)
    Store(tmp_path).create_embeddings(replace(SPEC, layers=(2,), pool=("last",), stored_dtype="float32")).append(
        ids, {"L2.last": vectors}, {"tokens": lengths, "response_tokens": lengths, "cut_tokens": 0 * lengths}
    )
    return tmp_path


def written(folder: Path, **changes: Any) -> Path:  # noqa: ANN401
    """A study file (JSON is YAML)."""
    file = folder / "study.yaml"
    file.write_text(json.dumps({**STUDY, **changes}))
    return file


def results(store: Path) -> pa.Table:
    from bench.results import connect, run_query

    columns = f"* EXCLUDE ({', '.join(TIMES)})"
    return run_query(connect(store), f"SELECT {columns} FROM studies ORDER BY cell, judged_on, scorer")


def test_a_study_runs_to_the_end_and_says_what_its_fits_came_to(run_cli: Callable[..., Any], store: Path) -> None:
    done = run_cli("study", written(store), "--jobs", 2, "--store", store, "--json")
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)[0]
    assert (row["fits"], row["made"], row["failed"], row["left"]) == (FITS, FITS, 0, 0)
    assert f"try: {FITS} fits, 0 in the store already" in done.stderr and "fits to make: about" in done.stderr
    table = results(store)
    rows = {(r["head"], r["pairing"], r["choice"], r["beta"], r["pairs"], r["seed"], r["judged_on"], r["scorer"]): r
            for r in table.to_pylist()}  # fmt: skip
    assert len(rows) == len(table) == FITS * 2 + 2 * 16 * 2  # smorm has three scores
    perfect = rows["linear", "same", "random", np.inf, 100, 0, "pool", "reward"]
    random_ = rows["linear", "same", "random", 1.0, 40, 0, "pool", "reward"]
    assert perfect["error_rate"] == 0 and perfect["accuracy"] > 0.95 > random_["accuracy"] > 0.6
    assert 0.9 * perfect["oracle"] < perfect["gain"] <= perfect["oracle"]
    assert perfect["gain"] == pytest.approx(np.mean(perfect["gains"]), rel=1e-5) and perfect["n"] == len(
        perfect["gains"]
    )
    assert perfect["best_of_n"][0] == pytest.approx(0) and perfect["best_of_n"][-1] == pytest.approx(perfect["gain"])
    assert rows["linear", "same", "random", np.inf, 100, 0, "prefs", "reward"]["accuracy"] > 0.95
    assert rows["linear", "same", "random", np.inf, 100, 0, "prefs", "reward"]["n"] == PROMPTS
    noisy = [r["error_rate"] for key, r in rows.items() if key[2:4] == ("random", 1.0)]
    assert 0.1 < np.mean(noisy) < 0.35
    again = run_cli("study", written(store), "--store", store, "--json")
    assert json.loads(again.stdout)[0]["before"] == FITS and json.loads(again.stdout)[0]["made"] == 0


KILLED = """
import sys, time
from pathlib import Path
import pipeline.study as stage
stage.BATCH_CELLS = 3
write = stage.write_table
def slow(path, table):
    write(path, table)
    print(path.name, flush=True)
    time.sleep(0.3)
stage.write_table = slow
stage.run_study(stage.StudyOptions(Path(sys.argv[1]), Path(sys.argv[2]), jobs=2))
"""


def test_kill_nine_at_a_random_point_and_the_same_command_again_give_the_same_table(
    store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file, folder = written(store, evaluate=[]), store / "studies" / "try"
    wait = random.SystemRandom().uniform(0, 0.4)
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(file), str(store)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=Path(__file__).parents[1],
    ) as process:  # fmt: skip
        assert process.stdout is not None
        while process.stdout.readline().strip() != "part-00002.parquet":
            assert process.poll() is None
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
    done = finished(folder)
    kept = {path.name: path.read_bytes() for path in parts(folder)}
    assert 0 < len(done) < FITS
    row = run_study(StudyOptions(file, store, jobs=2))
    assert (row["before"], row["made"], row["left"]) == (len(done), FITS - len(done), 0)
    assert all((folder / name).read_bytes() == content for name, content in kept.items())
    resumed = results(store)
    for path in folder.iterdir():
        path.unlink()
    run_study(StudyOptions(file, store, jobs=1))
    assert resumed.equals(results(store)), f"killed {wait:.3f} s after the third part"


def test_a_failed_fit_is_recorded_and_stops_no_other(store: Path) -> None:
    # RMS scaling and a learning rate that no network survives
    heads = {"linear": None, "wild": {"head": "bt", "options": {"lr": 1e30, "epochs": 5}}}
    grid = {**STUDY["grids"][0], "heads": ["wild", "linear"], "pairing": ["same"], "beta": [1], "pairs": [40]}
    file = written(store, heads=heads, grids=[grid], seeds=1)
    row = run_study(StudyOptions(file, store, jobs=1))
    assert (row["made"], row["failed"]) == (2, 1)
    table = results(store)
    failed = table.filter(pc.field("error").is_valid()).to_pylist()
    assert [one["cell"] for one in failed] == ["pool/z/wild/same/random/beta1/n40/s0"]
    assert "the loss became" in failed[0]["error"] and failed[0]["gain"] is None
    assert run_study(StudyOptions(file, store, jobs=1))["made"] == 0
    again = run_study(StudyOptions(file, store, jobs=1, retry_failed=True))
    assert (again["made"], again["failed"], len(results(store))) == (1, 1, len(table))


def test_a_plan_times_the_ends_of_each_head_and_stops(run_cli: Callable[..., Any], store: Path) -> None:
    done = run_cli("study", written(store), "--plan", "--store", store, "--json")
    row = json.loads(done.stdout)[0]
    assert row["made"] == 6 and row["left"] == FITS - 6
    assert "timing 6 fits" in done.stderr and f"{FITS - 6} fits to make: about" in done.stderr


def test_another_meaning_under_the_same_name_is_refused(store: Path) -> None:
    grid = {**STUDY["grids"][0], "heads": ["bt"], "pairing": ["same"], "beta": [1], "pairs": [40]}
    run_study(StudyOptions(written(store, grids=[grid], seeds=1), store, jobs=1))
    other = {"grids": [grid], "seeds": 1, "heads": {**STUDY["heads"], "bt": {"options": {"epochs": 4}}}}
    with pytest.raises(ValueError, match=r"has results with another heads\.bt"):
        run_study(StudyOptions(written(store, **other), store, jobs=1))
    with pytest.raises(ValueError, match="results judged on prefs; give the study another name"):
        run_study(StudyOptions(written(store, grids=[grid], seeds=1, evaluate=[]), store, jobs=1))
    more = run_study(StudyOptions(written(store, grids=[grid], seeds=2), store, jobs=1))
    assert (more["before"], more["made"]) == (1, 1)  # a level more is no other meaning
    fewer = {"heads": {"linear": None}, "grids": [{**grid, "heads": ["linear"]}], "seeds": 1}
    run_study(StudyOptions(written(store, **fewer), store, jobs=1))
    with pytest.raises(ValueError, match=r"has results with another heads\.bt"):  # also one that was left out since
        run_study(StudyOptions(written(store, **other), store, jobs=1))


def test_a_smaller_draw_is_the_beginning_of_a_larger_one(store: Path) -> None:
    """So a cell's annotations do not depend on the study's other cells."""
    grid = {**STUDY["grids"][0], "heads": ["linear"], "beta": [1], "pairs": [40]}
    run_study(StudyOptions(written(store, grids=[grid], seeds=1), store, jobs=1))
    alone = results(store)
    for path in (store / "studies" / "try").iterdir():
        path.unlink()
    run_study(StudyOptions(written(store, grids=[{**grid, "pairs": [40, 200]}], seeds=1), store, jobs=1))
    assert results(store).filter(pc.field("pairs") == 40).equals(alone)


def test_centred_features_take_off_what_a_prompt_s_responses_share(store: Path) -> None:
    centred = {"features": {"z": {"columns": "centred(L2.last)"}}, "evaluate": []}
    data = load_study(Store(store), parse_study({**STUDY, **centred}))
    pool = data.pools["pool"]
    matrix = data.features["z"].opened()[pool.rows]
    sums = np.stack([matrix[pool.prompts == number].sum(axis=0) for number in range(PROMPTS)])
    assert np.abs(sums).max() < 1e-5 < np.abs(matrix).max()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sseeds": 3}, "the study has no entry 'sseeds'; there are study, pools, features, heads, grids, seeds"),
        ({"study": "a/b"}, "study: 'a/b' cannot be a folder's name"),
        ({"seeds": 0}, "seeds has 0; give whole numbers from 1 on"),
        ({"split": {"test_share": 1.5}}, "split.test_share is 1.5; give a share between 0 and 1"),
        ({"heads": {"bt": {"options": {"hiden": 3}}}}, "heads.bt: head bt: no option 'hiden'; there are hidden=64"),
        ({"heads": {"mlp": None}}, "heads.mlp: no head 'mlp'; there are linear"),
        ({"heads": {"ridge": None}}, "heads.ridge: head ridge is not fitted on pairs"),
        ({"grids": [{**STUDY["grids"][0], "heads": ["clf"]}]}, "grids[0].heads names 'clf'; there are linear, bt"),
        ({"grids": [{**STUDY["grids"][0], "beta": [-1]}]}, "grids[0].beta has -1; give numbers from 0 (random) on"),
        ({"grids": [{**STUDY["grids"][0], "pairs": [40, 40]}]}, "grids[0].pairs names a level twice"),
        ({"grids": [{"pools": ["pool"]}]}, "grids[0] lacks the entry 'features'"),
        ({"grids": [{**STUDY["grids"][0], "pairing": ["best"]}]}, "grids[0].pairing names 'best'; there are same,"),
        ({"grids": [{**STUDY["grids"][0], "pairing": ["similar"]}]}, "100 similar pairs of pool pool are asked for"),
        ({"pools": {"pool": {"dataset": "pol"}}}, "no dataset 'pol'"),
        ({"pools": {"pool": {**STUDY["pools"]["pool"], "judge": "me"}}}, "pools.pool: no judge 'me'; dataset 'pool'"),
        ({"pools": {"pool": {**STUDY["pools"]["pool"], "use": ["kind"]}}}, "no attribute 'kind'; there are a, b, gold"),
        ({"pools": {"pool": {"dataset": "pool", "use": ["a"]}}}, "pools.pool.use names attributes, and"),
        ({"pools": {"pool": {**STUDY["pools"]["pool"], "use": ["a", "gold"]}}}, "attribute 'gold' is gold itself"),
        ({"pools": {"pool": {**STUDY["pools"]["pool"], "use": ["a", "b"]}}}, "a weighted sum of a, b is gold itself"),
        ({"pools": {"pool": {**STUDY["pools"]["pool"], "judge": "helpful"}}}, "attribute 'helpful' is gold"),
        ({"pools": {"pool": {"dataset": "pool"}}}, "head smorm is fitted on attributes too, and pool pool names none"),
        ({"features": {"z": {"columns": "L9.last"}}}, "features.z: no embedding in"),
        ({"features": {"z": {"columns": "L2.last", "backbone": "big"}}}, "has L2.last of backbone big"),
        ({"evaluate": ["nothing"]}, "no dataset 'nothing'"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_one_sentence_before_anything_runs(
    run_cli: Callable[..., Any], store: Path, changes: dict[str, Any], sentence: str
) -> None:
    result = run_cli("study", written(store, **changes), "--store", store)
    assert result.exit_code == 1 and sentence in result.stderr, result.output
    assert not list(store.glob("studies/*/part-*"))


def test_the_most_that_a_pool_carries_is_accepted(store: Path) -> None:
    grid = {**STUDY["grids"][0], "heads": ["linear"], "pairing": ["similar"], "beta": [1]}
    with pytest.raises(ValueError, match=r"carry [0-9]+ \(15%") as refused:
        run_study(StudyOptions(written(store, grids=[{**grid, "pairs": [100]}]), store))
    most = int(str(refused.value).split("carry ")[1].split(" ")[0])
    assert 20 < most < PROMPTS
    assert run_study(StudyOptions(written(store, grids=[{**grid, "pairs": [most]}]), store, jobs=1))["failed"] == 0
    with pytest.raises(ValueError, match=f"carry {most} "):
        run_study(StudyOptions(written(store, grids=[{**grid, "pairs": [most + 1]}]), store))


def test_cells_are_seed_by_seed_and_each_once() -> None:
    study = parse_study({**STUDY, "grids": [*STUDY["grids"], STUDY["grids"][0]]})
    cells = study.cells()
    assert len(cells) == FITS == len({cell.name for cell in cells})
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert cells[0] == Cell("pool", "z", "linear", "same", "random", 1.0, 40, 0)


def test_a_cluster_of_two_processes_gives_the_same_table(store: Path) -> None:
    pytest.importorskip("ray")
    grid = {**STUDY["grids"][0], "pairs": [40]}
    file = written(store, grids=[grid])
    run_study(StudyOptions(file, store, jobs=2, engine="ray"))
    on_ray = results(store)
    for path in (store / "studies" / "try").iterdir():
        path.unlink()
    run_study(StudyOptions(file, store, jobs=2))
    assert on_ray.equals(results(store))


def test_without_ray_the_engine_says_how_to_get_it(
    run_cli: Callable[..., Any], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run_cli("study", written(store), "--engine", "ray", "--store", store)
    assert result.exit_code == 1 and "pip install 'rewardheads[ray]'" in result.stderr
    assert run_cli("study", written(store), "--address", "auto", "--store", store).exit_code == 2


def test_features_of_a_backbone_that_has_seen_held_out_prompts_are_refused(store: Path) -> None:
    disk = Store(store)
    embeddings = disk.embeddings(disk.fingerprints()[0])
    prompts = sorted(set(disk.dataset("pool")["responses"]["prompt_id"].to_pylist()))
    study = parse_study(STUDY)
    held_out = is_test(prompts, share=study.split.test_share, seed=study.split.seed)
    embeddings.record_training({}, [prompt for prompt, out in zip(prompts, held_out, strict=True) if not out])
    load_study(disk, study)
    embeddings.record_training({}, prompts[: int(np.flatnonzero(held_out)[0]) + 1])
    with pytest.raises(ValueError, match=r"features\.z: the backbone was fine-tuned on 1 of the prompts"):
        load_study(disk, study)
