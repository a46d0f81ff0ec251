"""Verdicts on made-up results in which the answers are planted, and the page made of them."""

from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from bench.intervals import Floats
from bench.replication import FAILS, HOLDS, OPEN, findings, load_results
from bench.replication_page import write_replication
from bench.study_results import RESULTS
from cache.files import write_table

POOLS = {"one": 40, "two": 60}  # prompts
# What each adds to a gain, in standard deviations; every annotation level adds its own beside.
HEADS = {"linear": 0.5, "bt": 0.4, "clf": 0.6, "lgbm-fast": 0.4, "bt-published": 0.1, "clf-published": 0.4,
         "bt-long": 0.4, "clf-long": 0.4}  # fmt: skip
PAIRINGS = {"same": 0.0, "cross": 0.1, "similar": -0.5, "cross-similar": 0.1, "diversified": 0.3,
            "cross-diversified": 0.25}  # fmt: skip
GAPS = {"same": 1.0, "cross": 1.5, "similar": 0.1, "cross-similar": 1.4, "diversified": 3.0, "cross-diversified": 2.5}


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
    folder = tmp_path_factory.mktemp("replication")
    write_table(folder / "studies" / "made-up" / "part-00000.parquet", pa.Table.from_pylist(rows, schema=RESULTS))
    return folder


def result(
    pool: str, head: str, pairing: str, choice: str, beta: float, pairs: int, seed: int, gains: Floats, errors: float
) -> dict[str, Any]:
    cell = f"{pool}/z/{head}/{pairing}/{choice}/beta{beta:g}/n{pairs}/s{seed}"
    return {
        "cell": cell, "pool": pool, "features": "z", "head": head, "pairing": pairing, "choice": choice, "beta": beta,
        "pairs": pairs, "seed": seed, "judged_on": pool, "scorer": "reward", "gain": float(gains.mean()),
        "oracle": 4.0, "error_rate": errors, "mean_gap": GAPS[pairing], "scale": 3.0, "n": len(gains), "epochs": 1,
        "fit_seconds": 0.1, "seconds": 0.2, "gains": gains.tolist(), "accuracies": (0.5 + gains / 100).tolist(),
    }  # fmt: skip


def test_planted_differences_get_their_verdicts(store: Path) -> None:
    found = {(one.claim, one.setup): one for one in findings(load_results(store, "made-up"))}

    def one(claim: str, setup: str) -> Any:  # noqa: ANN401
        return next(found[key] for key in found if claim in key[0] and setup in key[1])

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
    assert one("the optimiser's", "").effects["all"].value == pytest.approx(0.3, abs=0.02)
    assert one("by uncertainty", "").verdict == HOLDS and one("by d-optimal", "").verdict == FAILS
    assert one("SMORM-F beats", "").verdict == OPEN
    assert one("RM-Bench normal", "").verdict == OPEN


def test_only_conditions_with_all_six_pairings_say_where_cross_helps_most(store: Path) -> None:
    rows = load_results(store, "made-up")
    # Same-prompt pairs of which there is no similar twin would shift the comparison.
    more = [
        {**row, "pairs": 77, "gains": row["gains"] + (9 if row["pairing"] == "cross" else 0)}
        for row in rows
        if row["pairing"] in ("same", "cross") and row["choice"] == "random"
    ]
    largest = next(one for one in findings([*rows, *more]) if "largest for similar" in one.claim)
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
    assert [figure.name for figure in figures] == [f"figure{n}.svg" for n in range(1, 8)]  # no smorm: no figure 8
    for figure in figures:
        assert f"replication/{figure.name}" in text
        assert len(list(ElementTree.parse(figure).iter("{http://www.w3.org/2000/svg}circle"))) > 3
    assert "nan" not in text


def test_a_study_without_results_is_named(store: Path) -> None:
    with pytest.raises(ValueError, match="has no results of a study 'another'; run `pipeline study`"):
        load_results(store, "another")
