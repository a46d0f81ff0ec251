import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heads.objectives import attribute_loss, bt_loss, clf_loss, smorm_loss

NAN = math.nan
rewards = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=8)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


def test_equal_rewards_give_log_2() -> None:
    assert bt_loss(torch.zeros(5)).item() == pytest.approx(math.log(2))
    assert clf_loss(torch.zeros(4), torch.tensor([1.0, 0.0, 1.0, 0.0])).item() == pytest.approx(math.log(2))


def test_bt_loss_is_the_mean_negative_log_likelihood() -> None:
    margin = torch.tensor([math.log(3), -math.log(3)])  # s(log 3) = 3/4, s(-log 3) = 1/4
    expected = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    assert bt_loss(margin).item() == pytest.approx(expected, rel=1e-6)


def test_clf_loss_against_hand_computed_probabilities() -> None:
    logit = torch.tensor([math.log(3), math.log(3), 0.0])
    target = torch.tensor([1.0, 0.0, 0.25])
    expected = -(math.log(3 / 4) + math.log(1 / 4) + math.log(1 / 2)) / 3
    assert clf_loss(logit, target).item() == pytest.approx(expected, rel=1e-6)


def test_losses_keep_a_gradient_where_a_sigmoid_has_none() -> None:
    margin = torch.tensor([-100.0], requires_grad=True)
    assert bt_loss(margin).item() == pytest.approx(100.0)
    assert gradient(bt_loss(margin), margin).item() == pytest.approx(-1.0)


@given(rewards)
def test_swapping_a_pair_costs_exactly_its_margin(values: list[float]) -> None:
    margin = torch.tensor(values, dtype=torch.float64)
    assert (bt_loss(-margin) - bt_loss(margin)).item() == pytest.approx(margin.mean().item(), abs=1e-9)


def test_attribute_loss_averages_over_annotated_scores_only() -> None:
    predicted = torch.tensor([[1.0, 5.0], [2.0, 0.0]])
    target = torch.tensor([[0.0, NAN], [NAN, 3.0]])
    assert attribute_loss(predicted, target).item() == pytest.approx((1 + 9) / 2)


def test_missing_targets_leave_no_trace_in_the_gradient() -> None:
    predicted = torch.tensor([[1.0, 5.0], [2.0, 0.0]], requires_grad=True)
    target = torch.tensor([[0.0, NAN], [NAN, 3.0]])
    grad = gradient(attribute_loss(predicted, target), predicted)
    assert torch.equal(grad, torch.tensor([[1.0, 0.0], [0.0, -3.0]]))


def test_nothing_to_average_is_zero_with_a_zero_gradient() -> None:
    weight = torch.ones(3, requires_grad=True)
    no_pairs = torch.empty(0, 3) @ weight
    predicted = torch.ones(2, 1) * weight.sum()
    nothing = torch.full((2, 1), NAN)
    for loss in (bt_loss(no_pairs), clf_loss(no_pairs, torch.empty(0)), attribute_loss(predicted, nothing)):
        assert loss.item() == 0.0
    joint = smorm_loss(no_pairs, predicted, nothing, regression_weight=1.0)
    assert joint.item() == 0.0
    assert torch.equal(gradient(joint, weight), torch.zeros(3))


def test_smorm_loss_adds_the_weighted_terms() -> None:
    margin, predicted, target = torch.zeros(3), torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [NAN]])
    assert smorm_loss(margin, predicted, target, regression_weight=0.5).item() == pytest.approx(math.log(2) + 0.5)
    assert smorm_loss(margin, predicted, target, regression_weight=0.0) == bt_loss(margin)


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"margin has shape \(3, 1\)"):
        bt_loss(torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"logit has shape \(3,\) and target \(2,\)"):
        clf_loss(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"predicted has shape \(3, 2\) and target \(3, 1\)"):
        attribute_loss(torch.zeros(3, 2), torch.zeros(3, 1))
