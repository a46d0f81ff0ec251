import math

import numpy as np
import pytest
import torch

from cache.views import TrainingView
from heads.bt import BT
from heads.clf import CLF
from heads.networks import MLP

FOUR = np.array([[1.0], [-1.0], [1.0], [-1.0]], dtype=np.float32)  # one channel, standardised as it is


def nothing(d: int) -> TrainingView:
    return TrainingView.of(np.empty((0, d), dtype=np.float32))


def network() -> MLP:
    made = MLP(2, (2,), activation="relu", dropout=0.5, input_dropout=0.5, generator=torch.Generator())
    with torch.no_grad():
        made.weights[0].copy_(torch.tensor([[1.0, -1.0], [0.0, 2.0]]))
        made.biases[0].copy_(torch.tensor([0.0, -1.0]))
        made.weights[1].copy_(torch.tensor([[3.0, 10.0]]))
        made.biases[1].fill_(0.25)
    return made


def test_the_network_by_hand() -> None:
    # (3, 1): h = relu(2, 1) -> 6 + 10 + 0.25;  (0, 0): h = relu(0, -1) -> 0.25
    assert network().finished()(torch.tensor([[3.0, 1.0], [0.0, 0.0]])).tolist() == [16.25, 0.25]


def test_dropout_keeps_the_mean_and_ends_with_training() -> None:
    made = network()
    h = torch.ones(200, 200)
    dropped = made.train().dropped(h, 0.25)
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(made.finished().dropped(h, 0.25), h)


def test_bt_learns_the_log_odds_of_a_pair() -> None:
    """Three of four annotators prefer the row with +1: the maximum likelihood margin is log 3."""
    view = TrainingView.of(FOUR, pairs=np.array([[0, 1], [0, 1], [2, 3], [1, 0]]))
    head = BT(hidden=(), epochs=800, lr=0.01, weight_decay=0.0)
    head.fit(view, nothing(1), seed=0)
    rewards = head.score(FOUR)
    assert rewards[0] - rewards[1] == pytest.approx(math.log(3), abs=0.01)


def test_clf_learns_the_log_odds_that_a_response_is_chosen() -> None:
    """A row that is chosen three times of four has the logit log 3, its opponent -log 3."""
    view = TrainingView.of(FOUR, pairs=np.array([[0, 1], [0, 1], [2, 3], [1, 0]]))
    head = CLF(hidden=(), epochs=800, lr=0.01, weight_decay=0.0)
    history = head.fit(view, nothing(1), seed=0)
    np.testing.assert_allclose(head.score(FOUR), [math.log(3), -math.log(3)] * 2, atol=0.02)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert history.train_loss[-1] == pytest.approx(entropy, abs=1e-3)


def test_validation_loss_is_that_of_the_whole_validation_set() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 3)).astype(np.float32)
    train = TrainingView.of(features, pairs=np.arange(100).reshape(50, 2))
    valid = TrainingView.of(features, pairs=np.arange(100, 200).reshape(50, 2))
    head = BT(epochs=5, batch_size=7)
    history = head.fit(train, valid, seed=0)
    rewards = head.score(features)
    margin = rewards[valid.pairs[:, 0]] - rewards[valid.pairs[:, 1]]
    assert np.log1p(np.exp(-margin)).mean() == pytest.approx(min(history.valid_loss), rel=1e-5)
    assert history.valid_loss[history.best_epoch - 1] == min(history.valid_loss)


def test_several_hidden_layers_are_a_tuple_of_widths() -> None:
    head = BT(hidden=(8, 4), epochs=1)
    head.fit(TrainingView.of(FOUR, pairs=np.array([[0, 1]])), nothing(1), seed=0)
    assert head._network is not None
    assert [tuple(weight.shape) for weight in head._network.weights] == [(8, 1), (4, 8), (1, 4)]
