import math

import numpy as np
import pytest

from bench.judge import METRICS, MetricRow, judge_attributes, judge_pairs, judge_pool, to_table

SCORES = {"reward": np.array([3.0, 1.0, 2.0, 2.0, 0.0, 5.0], dtype=np.float32), "length": np.arange(6.0)}
PAIRS = np.array([[0, 1], [2, 3], [4, 5]])
PROMPTS = np.array([7, 7, 8, 8, 9, 9])


def value(rows: list[MetricRow], scorer: str, metric: str, subset: str | None = None, at: float | None = None) -> float:
    (found,) = [r for r in rows if (r.scorer, r.metric, r.subset, r.at) == (scorer, metric, subset, at)]
    return found.value


def test_pairs_are_judged_by_every_score() -> None:
    rows = judge_pairs(SCORES, PAIRS, PROMPTS)
    assert value(rows, "reward", "pair_accuracy") == 0.5  # right, tied, wrong
    assert value(rows, "reward", "pair_tie_share") == pytest.approx(1 / 3)
    assert value(rows, "reward", "pair_accuracy_ties_lost") == pytest.approx(1 / 3)
    assert value(rows, "length", "pair_accuracy") == 0.0
    assert len(rows) == 6


def test_pairs_are_judged_by_subset_when_there_are_several() -> None:
    rows = judge_pairs(SCORES, PAIRS, PROMPTS, ["easy", None, "hard"])
    assert value(rows, "reward", "pair_accuracy", "easy") == 1.0
    assert value(rows, "reward", "pair_accuracy", "hard") == 0.0
    assert {row.subset for row in judge_pairs(SCORES, PAIRS, PROMPTS, ["easy", None, "easy"])} == {None}


def test_pairs_of_one_prompt_are_one_cluster() -> None:
    pairs = np.array([[0, 1], [1, 0]])
    (row, *_) = judge_pairs({"reward": SCORES["reward"]}, pairs, np.zeros(6, dtype=int))
    assert row.n == 2
    assert math.isnan(row.low)


def test_no_pairs_and_subsets_that_do_not_match() -> None:
    assert judge_pairs(SCORES, np.empty((0, 2), dtype=int), PROMPTS, []) == []
    with pytest.raises(ValueError, match="2 subsets were given for 3 rows"):
        judge_pairs(SCORES, PAIRS, PROMPTS, ["a", "b"])


def test_attributes_that_are_both_predicted_and_annotated_are_judged() -> None:
    predicted = {"helpful": np.array([1.0, 2.0, 3.0]), "clear": np.zeros(3)}
    rows = judge_attributes(predicted, {"helpful": np.array([1.0, 2.0, 4.0]), "brief": np.ones(3)}, np.arange(3))
    assert {row.scorer for row in rows} == {"attribute:helpful"}
    assert value(rows, "attribute:helpful", "attribute_r2") == pytest.approx(1 - 1 / (14 / 3))
    assert value(rows, "attribute:helpful", "attribute_spearman") == pytest.approx(1.0)
    assert math.isnan(value(rows, "attribute:helpful", "attribute_spearman_within"))


def test_a_pool_is_judged_at_every_n_with_best_and_random_beside() -> None:
    gold = np.array([0.0, 1.0, np.nan, 4.0, 2.0])
    rows = judge_pool({"reward": np.array([1.0, 2.0, 9.0, 1.0, 3.0])}, gold, np.array([0, 0, 0, 1, 1]))
    assert value(rows, "reward", "best_of_n", at=2.0) == pytest.approx((1 + 2) / 2)
    assert value(rows, "oracle", "best_of_n", at=2.0) == pytest.approx((1 + 4) / 2)
    assert value(rows, "random", "best_of_n", at=2.0) == pytest.approx((0.5 + 3) / 2)
    assert value(rows, "reward", "best_of_n", at=1.0) == pytest.approx((0.5 + 3) / 2)
    assert value(rows, "reward", "gold_spearman_within") == pytest.approx(0.0)
    assert value(rows, "reward", "best_of_n_proxy", at=2.0) == pytest.approx((2 + 3) / 2)
    assert value(rows, "reward", "best_of_n_gain", at=1.0) == 0.0
    assert value(rows, "reward", "best_of_n_gain", at=2.0) == pytest.approx((0.5 - 1.0) / 2)
    assert value(rows, "reward", "best_of_n_proxy_gain", at=2.0) == pytest.approx((0.5 + 1.0) / 2)
    assert value(rows, "oracle", "best_of_n_gain", at=2.0) == pytest.approx((0.5 + 1.0) / 2)
    assert value(rows, "reward", "gold_kendall_within") == pytest.approx(0.0)
    assert value(rows, "reward", "gold_order_consistency") == 0.5
    assert max(row.at for row in rows if row.metric == "best_of_n" and row.at is not None) == 2.0
    assert math.isnan(value(rows, "reward", "best_of_n_alpha"))  # two responses are too few for a curve
    assert judge_pool(SCORES, np.full(6, np.nan), PROMPTS) == []


def test_a_pool_under_the_finite_pool_optimum() -> None:
    gold, prompts = np.array([0.0, 4.0, 1.0, 2.0]), np.array([0, 0, 1, 1])
    rows = judge_pool({"reward": np.array([0.0, 20.0, 0.0, -20.0])}, gold, prompts)  # spread 10: right, then wrong
    weight = 1 / (1 + np.exp(-2.0))  # at lambda = the spread, the two differ by 20 / 10
    expected = (4 * weight + (weight * 1 + (1 - weight) * 2)) / 2
    assert value(rows, "reward", "finite_pool_kl_rl_gold", at=1.0) == pytest.approx(expected)
    assert value(rows, "reward", "finite_pool_kl_rl_kl", at=0.05) == pytest.approx(math.log(2))
    assert value(rows, "reward", "finite_pool_kl_rl_effective_size", at=0.05) == pytest.approx(1.0)
    assert value(rows, "reward", "finite_pool_kl_rl_proxy", at=0.05) == pytest.approx((20 + 0) / 2)


def test_a_table_of_metrics_has_the_schema_and_null_for_nan() -> None:
    rows = judge_pairs({"reward": np.zeros(6)}, PAIRS, PROMPTS)
    table = to_table(rows, run_id="r", dataset="d", content_hash="c")
    assert table.schema == METRICS
    first = table.to_pylist()[0]
    assert first == {
        **{"run_id": "r", "dataset": "d", "subset": None, "scorer": "reward", "metric": "pair_accuracy"},
        **{"at": None, "value": None, "n": 0, "low": None, "high": None, "content_hash": "c"},
    }
