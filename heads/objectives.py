"""The losses, as pure functions of tensors: no logging, no seeds, no devices.

Every loss is a mean, works on logits (a sigmoid in float32 has no gradient above 17), and is 0 with a valid gradient
when there is nothing to average: a batch may hold no pair or no annotated attribute.
"""

import torch.nn.functional as F
from torch import Tensor


def bt_loss(margin: Tensor) -> Tensor:
    """Bradley-Terry negative log-likelihood, -log s(r(chosen) - r(rejected)).

    arXiv:2507.07375, eq. (1); arXiv:2411.04991, section 2. Equal rewards give log 2. Antisymmetric in the pair: a
    mirrored copy with the opposite label adds nothing.

    Args:
        margin: r(chosen) - r(rejected) in nats; shape (m,), m may be 0.
    Returns: scalar.
    Raises: ValueError if margin is not one-dimensional.
    """
    _one_dimensional(margin, "margin")
    return F.softplus(-margin).mean() if len(margin) else margin.sum()


def clf_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of each response by itself: how likely it is to be a chosen one.

    arXiv:2411.04991, section 4 (the order-consistent classification objective).

    Args:
        logit: log-odds that a response is chosen, which is its reward; shape (n,), n may be 0.
        target: 1 where chosen, 0 where rejected, anything between for a share of both; shape (n,).
    Returns: scalar.
    Raises: ValueError if shapes disagree.
    """
    _one_dimensional(logit, "logit")
    _same_shape(logit, target, "logit", "target")
    return F.binary_cross_entropy_with_logits(logit, target) if len(logit) else logit.sum()


def attribute_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared error averaged over the annotated attribute scores.

    NaN targets are indexed out. torch.where would keep them out of the value but not out of the gradient, where
    0 * NaN is NaN.

    Args:
        predicted: attribute predictions in standardised units; shape (n, k).
        target: attribute scores in the same units; shape (n, k), NaN where not annotated.
    Returns: scalar; 0 when nothing is annotated.
    Raises: ValueError if shapes disagree.
    """
    _same_shape(predicted, target, "predicted", "target")
    annotated = ~target.isnan()
    error = predicted[annotated] - target[annotated]
    return error.square().mean() if len(error) else error.sum()


def smorm_loss(margin: Tensor, predicted: Tensor, target: Tensor, *, regression_weight: float) -> Tensor:
    """Joint Bradley-Terry and multi-attribute regression loss.

    arXiv:2507.07375, eq. (5), averaged over annotated attributes instead of summed.

    Args:
        margin: r(chosen) - r(rejected) in nats; shape (m,).
        predicted: attribute predictions in standardised units; shape (n, k). Its rows need not be those of the pairs.
        target: attribute scores in the same units; shape (n, k), NaN where not annotated.
        regression_weight: weight of the regression term; 0 gives bt_loss.
    Returns: scalar.
    Raises: ValueError if shapes disagree.
    """
    return bt_loss(margin) + regression_weight * attribute_loss(predicted, target)


def _one_dimensional(tensor: Tensor, name: str) -> None:
    if tensor.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected one dimension; squeeze the last one")


def _same_shape(first: Tensor, second: Tensor, first_name: str, second_name: str) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"{first_name} has shape {tuple(first.shape)} and {second_name} {tuple(second.shape)}; they must be equal"
        )
