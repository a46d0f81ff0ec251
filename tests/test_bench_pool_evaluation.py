"""A pool judged with what was worked out once gives what the metrics give."""

import numpy as np
import pytest

from bench.best_of_n import prompt_curves
from bench.metrics import spearman_within
from bench.ordering import order_consistency
from bench.pool_evaluation import PoolEvaluator


def test_by_hand() -> None:
    gold = np.array([0.0, 1.0, 5.0, 2.0, 4.0, 9.0])
    prompts = np.array([1, 1, 1, 0, 0, 2])  # the last has one response
    found = PoolEvaluator.of(gold, prompts).judge(np.array([0.1, 0.3, 0.2, 7.0, 7.0, 0.0]))
    assert found.gains[:2] == pytest.approx([0.0, 1.0 - 2.0]) and np.isnan(found.gains[2])
    assert found.curve == pytest.approx([0, ((1 + 5 + 1) / 3 - 2) / 2])  # both prompts have best of 2, one of 3
    assert found.accuracy == pytest.approx((2 + 0.5) / 4)  # 0<1, 0<5 right, 1<5 wrong, 2 and 4 tied
    assert found.accuracies[:2] == pytest.approx([0.5, 2 / 3]) and np.isnan(found.accuracies[2])
    assert found.spearman == pytest.approx(0.5)  # of the one prompt that has one


def test_it_agrees_with_the_metrics_on_ragged_pools_with_ties() -> None:
    generator = np.random.default_rng(0)
    prompts = generator.integers(0, 30, 200)
    gold, scores = generator.integers(0, 4, 200).astype(float), generator.integers(0, 6, 200).astype(float)
    found = PoolEvaluator.of(gold, prompts).judge(scores)
    assert found.spearman == pytest.approx(spearman_within(scores, gold, prompts).value)
    assert found.accuracy == pytest.approx(order_consistency(scores, gold, prompts).value)
    curves = prompt_curves(scores, gold, prompts)
    curves -= curves[:, :1]
    assert found.gains == pytest.approx([row[np.isfinite(row)][-1] for row in curves], nan_ok=True)
    assert len(found.curve) < curves.shape[1]
    whole = curves[np.isfinite(curves[:, len(found.curve) - 1])]
    assert found.curve == pytest.approx(whole[:, : len(found.curve)].mean(axis=0))
    assert 0.9 <= len(whole) / np.isfinite(curves[:, 1]).sum() < 1


def test_other_than_one_finite_score_each_is_refused() -> None:
    with pytest.raises(ValueError, match="no prompt has several responses"):
        PoolEvaluator.of(np.arange(2.0), np.array([0, 1]))
    evaluator = PoolEvaluator.of(np.arange(4.0), np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="3 scores for a pool of 4 responses"):
        evaluator.judge(np.zeros(3))
    with pytest.raises(ValueError, match="scores has 1 values that are not finite"):
        evaluator.judge(np.array([0.0, np.nan, 1.0, 2.0]))
