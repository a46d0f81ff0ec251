"""Verdicts on made-up results in which the answers are planted, and the page made of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_bench_results import write_dataset, write_run

from bench.intervals import Floats
from bench.judge import METRICS
from bench.replication import findings, load_curves, load_results
from bench.replication_figures import figures
from bench.replication_page import write_replication
from bench.study_results import RESULTS
from bench.verdicts import FAILS, HOLDS, OPEN, Finding
from cache.files import write_json, write_table
from cache.store import Store

POOLS = {"one": 40, "two": 60}  # prompts
# What each adds to a gain, in standard deviations; every annotation level adds its own beside.
HEADS = {"linear": 0.5, "bt": 0.4, "clf": 0.6, "lgbm-fast": 0.4, "bt-published": 0.1, "clf-published": 0.4,
         "bt-standardised": 0.2, "clf-standardised": 0.4, "bt-long": 0.4, "clf-long": 0.4}  # fmt: skip
PAIRINGS = {"same": 0.0, "cross": 0.1, "similar": -0.5, "cross-similar": 0.1, "diversified": 0.3,
            "cross-diversified": 0.25}  # fmt: skip
GAPS = {"same": 1.0, "cross": 1.5, "similar": 0.1, "cross-similar": 1.4, "diversified": 3.0, "cross-diversified": 2.5}


WEIGHTS = {"smorm": 0.3, "smorm-0.01": -0.1, "smorm-0.1": 0.2, "smorm-10": -0.2, "baseline-sm": 0.0}
MADE = {"versions": {"torch": "9.9"}, "precision": "float32", "code": "abc"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator, rows = np.random.default_rng(0), []
    for seed, (pool, prompts) in product(range(4), POOLS.items()):
        hard = generator.normal(0, 0.5, prompts)  # what prompts differ in is in every fit
        for head, pairing, (beta, errors), pairs in product(HEADS, PAIRINGS, [(1.0, 0.3), (3.0, 0.06)], [200, 5000]):
            gains = HEADS[head] + PAIRINGS[pairing] + hard + generator.normal(0, 0.05, prompts)
            rows.append(result(pool, head, pairing, "random", beta, pairs, seed, 3 * gains, errors))
        for (choice, more), pairs in product((("uncertainty", 0.2), ("d-optimal", -0.2)), [200, 5000]):
            gains = HEADS["linear"] + hard + more
            rows.append(result(pool, "linear", "same", choice, 1.0, pairs, seed, 3 * gains, 0.3))
        for head, scorer, target in product(WEIGHTS, "FLM", POOLS):
            gains = WEIGHTS[head] + 0.02 * (scorer == "M") + generator.normal(0.5, 0.05, POOLS[target])
            one = result(pool, head, "same", "random", 1.0, 200, seed, 3 * gains, 0.3)
            rows.append({**one, "scorer": scorer, "judged_on": target})
    folder = tmp_path_factory.mktemp("replication")
    keep(folder, rows, cells=len({row["cell"] for row in rows}))
    return folder


def keep(folder: Path, rows: list[dict[str, Any]], *, cells: int) -> None:
    study = folder / "studies" / "made-up"
    write_table(study / "part-00000.parquet", pa.Table.from_pylist(rows, schema=RESULTS))
    write_json(study / "study.json", {"cells": cells, "made_with": [MADE]})


def result(
    pool: str, head: str, pairing: str, choice: str, beta: float, pairs: int, seed: int, gains: Floats, errors: float
) -> dict[str, Any]:
    cell = f"{pool}/z/{head}/{pairing}/{choice}/beta{beta:g}/n{pairs}/s{seed}"
    shares = np.array([0.0, 0.5, 0.8, 1.0])  # of the gain, at n = 1 to 4
    return {
        "cell": cell, "pool": pool, "features": "z", "head": head, "pairing": pairing, "choice": choice, "beta": beta,
        "pairs": pairs, "seed": seed, "judged_on": pool, "scorer": "reward", "gain": float(gains.mean()),
        "oracle": 4.0, "error_rate": errors, "mean_gap": GAPS[pairing], "scale": 3.0, "n": len(gains), "epochs": 1,
        "fit_seconds": 0.1, "seconds": 0.2, "gains": gains.tolist(), "accuracies": (0.5 + gains / 100).tolist(),
        "best_of_n": (shares * gains.mean()).tolist(), "proxy_best_of_n": (2 * shares).tolist(),
        "curves": np.outer(gains, shares).tolist(),
    }  # fmt: skip


def found_in(rows: list[dict[str, Any]], curves: list[dict[str, Any]]) -> Callable[[str, str], Finding]:
    found = {(one.claim, one.setup): one for one in findings(rows, curves)}
    return lambda claim, setup: next(found[key] for key in found if claim in key[0] and setup in key[1])


def test_planted_differences_get_their_verdicts(store: Path) -> None:
    one = found_in(load_results(store, "made-up"), load_curves(store, "made-up"))
    better = one("CLF is no worse than BT", "clf less bt")
    assert better.verdict == HOLDS and better.effects["all"].value == pytest.approx(0.2, abs=0.02)
    assert better.accuracy is not None and better.accuracy.value == pytest.approx(3 * 0.2 / 100, abs=0.001)
    assert one("CLF beats BT at 5,000", "clf less bt").verdict == HOLDS
    assert one("BT sometimes wins near 5 %", "").verdict == FAILS
    assert one("no worse", "lgbm less bt").verdict == OPEN and "no fits" in one("no worse", "lgbm less bt").why
    assert one("cross-prompt beats same-prompt annotation", "cross less same").verdict == HOLDS
    assert one("annotation of diversified", "").verdict == FAILS
    assert one("largest for similar", "").effects["all"].value == pytest.approx(0.5, abs=0.02)
    assert one("small for diversified", "").effects["all"].value == pytest.approx(0.15, abs=0.02)
    assert one("grows with mean |dr|", "").verdict == HOLDS  # -0.5, 0.5, 1.3 add -0.05, 0.1, 0.6
    assert one("control: CLF beats BT, linear BT", "clf less linear").verdict == HOLDS
    assert one("control: CLF beats BT, as published", "").effects["all"].value == pytest.approx(0.3, abs=0.02)
    assert one("the scaling's", "").effects["all"].value == pytest.approx(0.1, abs=0.02)
    assert one("the optimiser's", "").effects["all"].value == pytest.approx(0.2, abs=0.02)
    assert one("by uncertainty", "").verdict == HOLDS and one("by d-optimal", "").verdict == FAILS
    assert one("SMORM-F beats", "F of smorm").effects["all"].value == pytest.approx(0.3, abs=0.02)
    assert one("SMORM-L beats", "also figure 6").verdict == HOLDS
    assert one("ratio 0.1 beats the BT", "").effects["all"].value == pytest.approx(0.2, abs=0.02)
    assert one("at weight ratio 0.01 the attribute head falls", "L of baseline-sm").verdict == HOLDS
    assert one("at weight ratio 10 the BT head falls", "").effects["all"].value == pytest.approx(0.2, abs=0.02)
    assert one("as good as M", "").verdict == HOLDS
    rises, falls = one("gold best-of-n rises", ""), one("gold best-of-n falls", "sign turned")
    assert rises.verdict == HOLDS and rises.why.endswith("up to n = 4")
    assert rises.effects["all"].value == pytest.approx(0.5 * 0.8, abs=0.02)  # half of the gain of 0.3 + 0.5
    assert falls.verdict == OPEN and "still rises up to n = 4" in falls.why  # nothing is known of n = 405
    assert one("RM-Bench normal", "").verdict == OPEN


def test_only_conditions_with_all_six_pairings_say_where_cross_helps_most(store: Path) -> None:
    rows = load_results(store, "made-up")
    # Same-prompt pairs of which there is no similar twin would shift the comparison.
    more = [
        {**row, "pairs": 77, "gains": row["gains"] + (9 if row["pairing"] == "cross" else 0)}
        for row in rows
        if row["pairing"] in ("same", "cross") and row["choice"] == "random"
    ]
    largest = found_in([*rows, *more], [])("largest for similar", "")
    assert largest.effects["all"].value == pytest.approx(0.5, abs=0.02)


def test_the_page_says_what_the_findings_say_and_its_figures_are_xml(store: Path, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "replication.md"
    found = write_replication(store, "made-up", page)
    text = page.read_text()
    for one in found:
        assert one.claim.replace("|", "\\|") in text and f"**{one.verdict}**" in text
        if effect := one.effects.get("all"):
            assert f"| {effect.value:+.3f} | {effect.low:+.3f} | {effect.high:+.3f} |" in text
    figures = sorted((tmp_path / "docs" / "replication").iterdir())
    assert [figure.name for figure in figures] == [f"figure{n}.svg" for n in (1, 10, *range(2, 10))]
    for figure in figures:
        assert f"replication/{figure.name}" in text
        assert len(list(ElementTree.parse(figure).iter("{http://www.w3.org/2000/svg}circle"))) > 3
    assert "nan" not in text and "unfinished" not in text and "not finished" not in text
    assert "0 of them failed, 0 left." in text and "Made with torch 9.9; products in float32; code abc." in text
    assert "no head of SMORM's tables 1 and 2 judged on a benchmark and no attribute margins" in text
    assert "pipeline evaluate --on bench_rewardbench_llmbar_ifbench" in text and "Not computed: `make" in text


def test_a_study_without_results_is_named(store: Path) -> None:
    with pytest.raises(ValueError, match="has no results of a study 'another'; run `pipeline study`"):
        load_results(store, "another")


def test_conditions_that_not_all_heads_have_move_no_figure_and_no_control(store: Path) -> None:
    rows, curves = load_results(store, "made-up"), load_curves(store, "made-up")
    alone = [
        {**row, "beta": 9.0, "gains": row["gains"] + 5}
        for row in rows
        if row["head"] in ("clf", "linear") and row["choice"] == "random"
    ]
    centred = [{**row, "features": "gemma-centred", "gains": row["gains"] + 5} for row in rows if row["head"] == "bt"]
    before = figures(rows, curves)
    assert figures([*rows, *alone], curves)["figure1"] == before["figure1"]
    assert figures([*rows, *centred], curves) == before
    one, other = found_in(rows, curves), found_in([*rows, *alone, *centred], curves)
    for claim in ("CLF beats BT, small network, early", "CLF beats BT, linear BT solved", "the optimiser's"):
        assert one(f"control: {claim}" if "beats" in claim else claim, "").effects == other(claim, "").effects
    assert other("5,000-40,000", "clf less bt").conditions == one("5,000-40,000", "clf less bt").conditions


def test_five_thousand_annotations_are_no_fewer(store: Path) -> None:
    rows = [{**row, "pairs": 4000 if row["pairs"] == 5000 else row["pairs"]} for row in load_results(store, "made-up")]
    assert "no fits" in found_in(rows, [])("5,000-40,000", "clf less bt").why


def test_results_come_in_one_order_with_their_lists_as_arrays(store: Path) -> None:
    rows, curves = load_results(store, "made-up"), load_curves(store, "made-up")
    assert [row["cell"] for row in rows] == sorted(row["cell"] for row in rows)
    assert rows[0]["gains"].shape == rows[0]["accuracies"].shape == (POOLS[rows[0]["pool"]],)
    assert np.mean(rows[5]["gains"]) == pytest.approx(rows[5]["gain"] / 3)
    one = curves[7]
    assert one["curves"].shape == (POOLS[one["judged_on"]], 4) and one["proxy"].tolist() == [0.0, 1.0, 1.6, 2.0]
    assert one["curves"].mean(axis=0)[-1] == pytest.approx(one["gain"] / 3)


def test_an_unfinished_study_is_marked_at_every_verdict(store: Path, tmp_path: Path) -> None:
    row = result("one", "bt", "same", "random", 1.0, 200, 0, np.ones(5), 0.3)
    keep(tmp_path, [row, {**row, "cell": "other", "error": "ValueError: no"}], cells=5)
    found = write_replication(tmp_path, "made-up", tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "5 fits: 2 made, 1 of them failed, 3 left." in text
    assert text.count("3 of 5 fits are to be made") == 2
    assert text.count("(unfinished)") == len(found)


def test_benchmarks_and_theory_of_the_store_are_on_the_page(tmp_path: Path) -> None:
    store = tmp_path / "store"
    dataset = write_dataset(store, "rm", prompts=4)
    Store(store).write_dataset(replace(dataset, info={**dataset.info, "format": "rm-bench"}))
    run_id = write_run(store, dataset, "smorm", noise=1.0)
    path = store / "runs" / run_id / "metrics.parquet"
    shared = {"run_id": run_id, "dataset": "rm", "n": 9, "content_hash": dataset.info["content_hash"]}
    more = [
        {**shared, "scorer": "F", "metric": "rm_bench_partial", "subset": "hard", "value": 0.613},
        {**shared, "scorer": "F", "metric": "rm_bench_partial", "subset": "chat", "value": None, "n": 0},
        *({**shared, "scorer": "attribute:verbosity", "metric": f"attribute_margin_{kind}_correct", "subset": "hard",
           "value": value} for kind, value in (("mean", -0.25), ("variance", 1.5))),
    ]  # fmt: skip
    write_table(path, pa.Table.from_pylist([*pq.read_table(path).to_pylist(), *more], schema=METRICS))
    keep(store, [result("one", "bt", "same", "random", 1.0, 200, 0, np.ones(5), 0.3)], cells=1)
    theory = [{"quantity": "c", "of": None, "value": 0.5, "low": 0.25, "high": 0.75, "n": 9, "equation": "c = a / b"}]
    (store / "studies" / "made-up" / "theory-demo.json").write_text(json.dumps(theory))
    write_replication(store, "made-up", tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "rm, rm_bench_partial: per cent" in text and "| 61.3 |" in text and "chat" not in text
    assert "hard, correct" in text and "-0.25 (1.50)" in text and "verbosity" in text
    assert "### demo" in text and "c = a / b" in text
    assert "These commands make them" not in text
