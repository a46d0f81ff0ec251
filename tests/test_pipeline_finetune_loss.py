"""Each objective is what heads.objectives make by hand, and its parts add up to it."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from heads.objectives import bt_loss, centring_loss, odin_length_loss, smorm_loss
from pipeline.finetune_loss import Given, Objective, Outputs, coupled_loss, loss_terms

NAN = float("nan")


def outputs(*, rewards: int = 1, attributes: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, rewards + attributes, generator=generator)
    return Outputs(scores, -10 * torch.rand(8, generator=generator), torch.tensor(0.25))


def given(attributes: int = 0) -> Given:
    targets = torch.randn(3, attributes, generator=torch.Generator().manual_seed(1))
    if attributes:
        targets[1, 0] = NAN
    return Given(
        pairs=torch.tensor([[0, 1], [2, 3], [5, 4]]),
        margins=torch.tensor([1.0, NAN, 0.5]),
        annotated=torch.tensor([1, 6, 7]),
        targets=targets,
    )


def total(objective: Objective, out: Outputs, known: Given) -> Tensor:
    return torch.stack([term.weight * term.value for term in loss_terms(objective, out, known)]).sum()


def test_bt_with_all_its_additions() -> None:
    out, known = outputs(), given()
    chosen, rejected = out.scores[known.pairs, 0].T
    expected = bt_loss(chosen - rejected, required=2 * known.margins, smoothing=0.1)
    expected = expected + 0.01 * centring_loss(chosen, rejected)
    found = total(Objective("bt", margin_weight=2.0, smoothing=0.1, centring=0.01), out, known)
    assert torch.equal(found, expected)


def test_smorm_is_smorm_loss() -> None:
    out, known = outputs(attributes=2), given(2)
    chosen, rejected = out.scores[known.pairs, 0].T
    expected = smorm_loss(chosen - rejected, out.scores[known.annotated, 1:], known.targets, regression_weight=0.5)
    assert total(Objective("smorm", regression_weight=0.5), out, known) == pytest.approx(float(expected), rel=1e-6)


def test_grm_by_hand() -> None:
    scores = torch.tensor([[2.0], [1.0]])
    out = Outputs(scores, torch.tensor([-20.0, -3.0]), torch.tensor(0.0))
    known = Given(torch.tensor([[0, 1]]), torch.tensor([NAN]), torch.empty(0, dtype=torch.long), torch.empty(0, 0))
    found = float(total(Objective("grm", alpha=0.01, beta=0.1), out, known))
    # 0.99 * -log s(2 - 1) + 0.01 * -log s(0.1 * -20), of the chosen response alone
    assert found == pytest.approx(0.99 * math.log1p(math.exp(-1)) + 0.01 * math.log1p(math.exp(2)), rel=1e-6)


def test_odin_fits_the_sum_and_adds_length_and_angle() -> None:
    objective = Objective("odin", length_weight=0.7, orthogonality_weight=0.3)
    out, known = outputs(rewards=2), given()
    lengths = torch.tensor([3.0, 9.0, 4.0, 1.0, 7.0, 2.0, 5.0, 5.0])
    both = out.scores.sum(1)
    chosen, rejected = both[known.pairs].T
    length = odin_length_loss(out.scores[:, 0], out.scores[:, 1], lengths)
    assert torch.equal(total(objective, out, known), bt_loss(chosen - rejected) + 0.3 * out.cosine)
    assert torch.equal(coupled_loss(objective, out.scores, lengths), 0.7 * length)


@pytest.mark.parametrize(
    "objective",
    [
        Objective("bt", margin_weight=1.0, smoothing=0.2, centring=0.1),
        Objective("smorm", regression_weight=2.0),
        Objective("grm", alpha=0.3, beta=0.5),
    ],
    ids=lambda objective: str(objective.name),
)
def test_parts_weighted_by_their_share_add_up_to_the_batch(objective: Objective) -> None:
    """The parts differ in size, and one of them has no attribute score."""
    out, known = outputs(attributes=2), given(2)
    parts = [
        replace(
            known,
            pairs=known.pairs[:1],
            margins=known.margins[:1],
            annotated=known.annotated[:0],
            targets=known.targets[:0],
        ),
        replace(known, pairs=known.pairs[1:], margins=known.margins[1:]),
    ]
    summed = 0.0
    for part in parts:
        for term in loss_terms(objective, out, part):
            summed += term.weight * float(term.value) * part.counts[term.over] / known.counts[term.over]
    assert summed == pytest.approx(float(total(objective, out, known)), rel=1e-5)


def test_a_part_in_which_nothing_counts_has_loss_0_and_gradient_0() -> None:
    scores = torch.randn(4, 3, requires_grad=True)
    nothing = torch.empty(0, dtype=torch.long)
    empty = Given(nothing.view(0, 2), torch.empty(0), nothing, torch.empty(0, 2))
    out = Outputs(scores, torch.zeros(4), torch.tensor(0.0))
    loss = total(Objective("smorm", regression_weight=1.0, centring=0.1), out, empty)
    loss.backward()
    assert float(loss.detach()) == 0
    assert scores.grad is not None and not scores.grad.any()
