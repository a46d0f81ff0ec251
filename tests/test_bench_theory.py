import numpy as np
import pytest

from bench.theory import Ridged, Theorem, theorem, tight_eps
from cache.views import TrainingView

NAMES = ("first", "second")


def by_hand() -> TrainingView:
    """Four annotated rows at (+-1, +-1), one prompt each, and three pairs of them."""
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=np.float32)
    scores = np.column_stack([corners[:, 0], -corners[:, 1]])  # each attribute is a channel, the second turned round
    return TrainingView.of(
        corners, pairs=np.array([[0, 1], [0, 2], [0, 3]]), attributes=scores.astype(np.float32), attribute_names=NAMES
    )


def planted(n: int, *, sign: float, seed: int, d: int = 6) -> TrainingView:
    """Pairs that follow a weight, and two noisy attributes that follow it too (sign 1) or its reverse (-1)."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(2 * n, d)) + 5
    weight = np.arange(1, d + 1) / d
    rows = np.arange(2 * n).reshape(n, 2)
    better = generator.random(n) < 1 / (1 + np.exp(-(features[rows[:, 0]] - features[rows[:, 1]]) @ weight))
    attributes = np.full((2 * n, 2), np.nan)
    attributes[::2] = (sign * features[::2] @ weight)[:, None] + generator.normal(size=(n, 2))
    return TrainingView.of(
        features.astype(np.float32),
        prompts=np.repeat(np.arange(n), 2),
        pairs=np.where(better[:, None], rows, rows[:, ::-1]),
        attributes=attributes.astype(np.float32),
        attribute_names=NAMES,
    )


def test_two_channels_by_hand() -> None:
    # differences (0, 2), (2, 0), (2, 2): mu_S = (4, 4) / 3, Sigma_S = [[8, 4], [4, 8]] / 3, w_S = (1, 1) / 3
    # Sigma_M = I, C_M = diag(1, -1), so alpha = (4, -4) / 3 and 1^T alpha = c = 0
    found = theorem(by_hand(), ridge=1e-12, resamples=5)
    assert found.mu_s == pytest.approx([4 / 3, 4 / 3])
    assert found.sigma_s.sigma.tolist() == pytest.approx(np.array([[8, 4], [4, 8]]) / 3)
    assert found.sigma_m.sigma.tolist() == pytest.approx(np.eye(2))
    assert found.c_m.tolist() == pytest.approx(np.diag([1.0, -1.0]))
    assert found.w_s == pytest.approx([1 / 3, 1 / 3])
    assert found.w_m.tolist() == pytest.approx(np.diag([1.0, -1.0]))
    assert [one.value for one in found.alpha] == pytest.approx([4 / 3, -4 / 3])
    assert [one.n for one in found.alpha] == [4, 4]
    assert found.separation == pytest.approx(8 / 9)
    assert found.total.value == pytest.approx(0)
    assert found.c == pytest.approx(0)


def test_one_attribute_by_hand_with_a_ridge() -> None:
    view = by_hand()
    first = TrainingView.of(
        view.features, pairs=view.pairs, attributes=view.attributes[:, :1], attribute_names=NAMES[:1]
    )
    found = theorem(first, ridge=0.5, resamples=5)
    # lambda_M = 1/2, lambda_S = 1/2 x 8/3: (Sigma_S + 4/3)^-1 (4/3, 4/3) = (1/4, 1/4) x ... 8/3 + 4/3 + 4/3 = 16/3
    assert (found.sigma_s.strength, found.sigma_m.strength) == pytest.approx((4 / 3, 1 / 2))
    assert found.w_s == pytest.approx([1 / 4, 1 / 4])
    assert found.total.value == pytest.approx(4 / 3 / 1.5)
    assert found.c == pytest.approx((4 / 3 / 1.5) / (2 / 3))
    assert found.sigma_m.rank == pytest.approx(2 / 1.5)


@pytest.mark.parametrize("ridge", [1e-9, 0.1, 10.0])
def test_the_plug_in_theorem_is_an_identity_on_its_own_pairs(ridge: float) -> None:
    view = planted(200, sign=1, seed=0)
    found = theorem(view, ridge=ridge, resamples=2)
    assert found.identity_gap == pytest.approx(0, abs=1e-12)
    (chosen_s, chosen_m), (rejected_s, rejected_m) = (
        found.rewards(np.asarray(view.features)[rows]) for rows in view.pairs.T
    )
    assert found.c * (chosen_s - rejected_s).mean() == pytest.approx((chosen_m - rejected_m).mean())
    assert found.c_on(view).value == pytest.approx(found.c)


def test_an_offset_and_a_unit_of_features_and_attributes_change_nothing() -> None:
    view = planted(100, sign=1, seed=1)
    moved = TrainingView.of(
        (np.asarray(view.features) * [1, 2, 4, 8, 16, 32] + 7).astype(np.float32),
        prompts=view.prompts,
        pairs=view.pairs,
        attributes=view.attributes * np.float32(3) + np.float32(11),
        attribute_names=NAMES,
    )
    one, other = theorem(view, resamples=20), theorem(moved, resamples=20)
    assert other.c == pytest.approx(one.c, rel=1e-4)
    assert (other.total.low, other.total.high) == pytest.approx((one.total.low, one.total.high), rel=1e-4)


def test_aligned_and_misaligned_attributes_have_opposite_signs() -> None:
    aligned, against = (theorem(planted(300, sign=sign, seed=2), resamples=100) for sign in (1, -1))
    assert aligned.total.low > 0
    assert aligned.positive == 1
    assert against.total.high < 0
    assert against.positive == 0
    assert against.c < 0 < aligned.c


def truth() -> Theorem:
    return theorem(planted(50_000, sign=1, seed=99), resamples=2)


def test_the_interval_covers_the_truth() -> None:
    exact = truth().total.value
    found = [theorem(planted(300, sign=1, seed=seed), resamples=200) for seed in range(40)]
    covered = sum(one.total.low <= exact <= one.total.high for one in found)
    assert covered >= 34  # of 40, at 95 %: less happens once in 3,000
    assert min(one.total.high - one.total.low for one in found) > 0


def shared_noise(n: int, seed: int, d: int = 60) -> TrainingView:
    """The attribute chooses in every pair, so its noise is in mu_S and in C_M."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(2 * n, d))
    scores = features[:, 0] / 2 + generator.normal(size=2 * n)
    rows = np.arange(2 * n).reshape(n, 2)
    return TrainingView.of(
        features.astype(np.float32),
        prompts=np.repeat(np.arange(n), 2),
        pairs=np.where((scores[rows[:, 0]] > scores[rows[:, 1]])[:, None], rows, rows[:, ::-1]),
        attributes=scores[:, None].astype(np.float32),
        attribute_names=NAMES[:1],
    )


def test_the_interval_makes_up_for_noise_that_pairs_and_attributes_share() -> None:
    exact = theorem(shared_noise(50_000, seed=999), resamples=2).total.value
    found = [theorem(shared_noise(150, seed), resamples=100).total for seed in range(20)]
    assert np.mean([one.value for one in found]) > 1.5 * exact
    assert sum(one.low <= exact <= one.high for one in found) >= 16


def test_c_on_unseen_pairs_is_without_what_was_overfitted() -> None:
    exact, unseen = truth(), planted(2000, sign=1, seed=500)
    small = [theorem(planted(40, sign=1, seed=seed), resamples=2) for seed in range(30)]
    overfitted = np.mean([one.separation for one in small]) / exact.separation
    assert 1.05 < overfitted < 1.6  # rank / m = 0.15, of a separation of 0.36
    assert np.mean([one.c for one in small]) < 0.95 * exact.c
    estimates = [one.c_on(unseen) for one in small]
    assert np.mean([one.value for one in estimates]) == pytest.approx(exact.c, rel=0.1)
    assert all(one.low < one.value < one.high and one.n == 2000 for one in estimates)
    assert small[0].c_on(unseen.subset(np.zeros(4000, dtype=np.bool_))).n == 0


def test_rows_without_an_attribute_do_not_count_for_it() -> None:
    view = planted(200, sign=1, seed=3)
    attributes = view.attributes.copy()
    attributes[::4, 1] = np.nan
    found = theorem(
        TrainingView.of(
            view.features, prompts=view.prompts, pairs=view.pairs, attributes=attributes, attribute_names=NAMES
        ),
        resamples=2,
    )
    assert [one.n for one in found.alpha] == [200, 100]
    assert found.alpha[1].value == pytest.approx(theorem(view, resamples=2).alpha[1].value, rel=0.3)


def test_the_tight_eps_by_hand() -> None:
    r_s, r_m = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.5, 0.0, 0.0, 3.0])
    # c r_s - r_m for c = 1/2: -0.5, 0.5, 1, -1.5
    assert tight_eps(r_s, r_m, 0.5) == 1.0
    assert tight_eps(r_s, r_m, 0.5, share=0.75) == 0.5
    assert ((r_m >= 0.5 * r_s - 0.5).mean(), (r_m >= 0.5 * r_s - 0.499).mean()) == (0.75, 0.5)


def test_the_rank_of_a_ridge() -> None:
    assert Ridged(np.diag([4.0, 1.0, 0.0]), 1.0).rank == pytest.approx(4 / 5 + 1 / 2)


def test_what_cannot_be_measured_is_refused() -> None:
    view = by_hand()
    flat = np.column_stack([view.attributes[:, 0], np.ones(4)]).astype(np.float32)
    with pytest.raises(ValueError, match="attribute second has 1 different scores"):
        theorem(TrainingView.of(view.features, pairs=view.pairs, attributes=flat, attribute_names=NAMES))
    with pytest.raises(ValueError, match="needs pairs"):
        theorem(TrainingView.of(view.features, attributes=view.attributes, attribute_names=NAMES))
