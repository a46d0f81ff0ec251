import math

import numpy as np
import pytest

from bench import differences as module
from bench.annotate import Annotator
from bench.annotation_quality import gaussian_mean_gap
from bench.differences import Difference, differences, gaussian_quality


def gaussian_pool(prompts: int, n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    mean, sigma = generator.normal(size=prompts) * 2, generator.uniform(0.2, 1.5, size=prompts)
    gold = (mean[:, None] + sigma[:, None] * generator.normal(size=(prompts, n))).reshape(-1)
    return gold, np.repeat(np.arange(prompts), n)


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_every_pair_by_hand() -> None:
    gold, prompts = np.array([0.0, 10.0, 1.0, 3.0, 2.0]), np.array(["a", "b", "a", "a", "b"])
    # a: 0, 1, 3; b: 10, 2
    size, q = differences(gold, prompts, [Annotator(0.5, 2.0)])
    assert size.same.value == pytest.approx(((1 + 3 + 2) / 3 + 8) / 2)
    assert size.cross.value == pytest.approx((10 + 9 + 7 + 2 + 1 + 1) / 6)
    assert (size.same.n, size.cross.n, size.gain.n) == (4, 6, 2)
    assert size.gain.value == pytest.approx(size.cross.value - size.same.value)
    assert q.beta == 0.5
    assert q.same.value == pytest.approx(((s(0.25) + s(0.75) + s(0.5)) / 3 + s(2)) / 2)
    assert q.cross.value == pytest.approx(np.mean([s(0.25 * dr) for dr in (10, 9, 7, 2, 1, 1)]))


def test_blocks_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    gold, prompts = gaussian_pool(20, 3, seed=0)
    gold, prompts = np.append(gold, [0.0, 1.0, 2.0]), np.append(prompts, [3, 3, 77])  # uneven, and one alone
    whole = differences(gold, prompts, [Annotator(1.0, 1.0)], resamples=10)
    monkeypatch.setattr(module, "_CELLS", 700)
    assert differences(gold, prompts, [Annotator(1.0, 1.0)], resamples=10) == whole


def test_formulas_against_draws() -> None:
    generator = np.random.default_rng(1)
    z = generator.normal(size=(2, 400_000))
    for m, s1, s2 in ((0.0, 1.0, 0.3), (1.5, 0.4, 0.8), (-3.0, 1.0, 1.0)):
        dr = np.abs(m + s1 * z[0] - s2 * z[1])
        spread = np.array(math.hypot(s1, s2))
        assert gaussian_mean_gap(np.array(m), spread) == pytest.approx(dr.mean(), abs=0.006)
        for beta in (0.5, 5.0):
            annotator = Annotator(beta, 1.0)
            drawn = annotator.quality(dr).mean()
            assert gaussian_quality(np.array(m), spread, annotator) == pytest.approx(drawn, abs=0.002)


def test_published_annotation_qualities() -> None:
    # arXiv:2411.04991 as quoted by readers: E s(beta |dr|) for beta^2 Var(dr) = 1, 2, 4, 10
    found = [float(gaussian_quality(np.array(0.0), np.array(math.sqrt(v)), Annotator(1.0, 1.0))) for v in (1, 2, 4, 10)]
    assert found == pytest.approx([0.6749, 0.7251, 0.7781, 0.8428], abs=0.0006)


def test_gaussian_gold_gives_what_the_formulas_say_with_few_responses_too() -> None:
    gold, prompts = gaussian_pool(400, 4, seed=2)
    size, q = differences(gold, prompts, [Annotator(1.0, 1.0)], resamples=200)
    assert size.same_gaussian.value == pytest.approx(size.same.value, rel=0.02)
    assert size.cross_gaussian.value == pytest.approx(size.cross.value, rel=0.01)
    assert q.same_gaussian.value == pytest.approx(q.same.value, abs=0.01)
    assert q.cross_gaussian.value == pytest.approx(q.cross.value, abs=0.005)
    assert size.gain.low > 0  # prompts differ in level
    assert q.gain.low > 0


def test_intervals_cover_the_truth() -> None:
    mean_sigma = (0.2 + 1.5) / 2
    truth = 2 * mean_sigma / math.sqrt(math.pi)
    found: list[Difference] = [
        differences(*gaussian_pool(100, 6, seed=seed), [], resamples=200)[0] for seed in range(40)
    ]
    assert sum(one.same.low <= truth <= one.same.high for one in found) >= 34
    big = differences(*gaussian_pool(1500, 6, seed=100), [], resamples=2)[0].cross.value
    assert sum(one.cross.low <= big <= one.cross.high for one in found) >= 34


def test_extreme_annotators() -> None:
    dr = np.array([0.0, 0.1, -3.0])
    assert Annotator(math.inf, 2.0).quality(dr).tolist() == [0.5, 1.0, 1.0]
    assert Annotator(0.0, 2.0).quality(dr).tolist() == [0.5, 0.5, 0.5]
    assert Annotator(4.0, 2.0).quality(dr)[2] == pytest.approx(s(6))


def test_many_prompts_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROMPTS", 30)
    size = differences(*gaussian_pool(50, 4, seed=3), [], resamples=2)[0]
    assert (size.gain.n, size.same.n, size.cross.n) == (30, 30 * 6, 30 * 29 // 2 * 16)


def test_pools_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(ValueError, match="1 prompts have two responses"):
        differences(np.arange(4.0), np.array([0, 0, 1, 2]), [])
