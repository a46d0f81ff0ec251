"""The losses, as pure functions of tensors: no logging, no seeds, no devices.

Every loss is a mean, works on logits (a sigmoid in float32 has no gradient above 17), and is 0 with a valid gradient
when there is nothing to average: a batch may hold no pair or no annotated attribute. `reduction` "none" gives what the
mean is over, as in torch.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["mean", "none"]


def bt_loss(
    margin: Tensor, *, required: Tensor | None = None, smoothing: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    """Bradley-Terry negative log-likelihood, -log s(d) with d = r(chosen) - r(rejected).

    arXiv:2507.07375, eq. (1); arXiv:2411.04991, section 2. Equal rewards give log 2. Antisymmetric in the pair: a
    mirrored copy with the opposite label adds nothing.

    With a required margin, d is r(chosen) - r(rejected) - required (Llama 2, arXiv:2307.09288, eq. 2). With smoothing
    it is -(1 - smoothing) log s(d) - smoothing log s(-d), the likelihood where annotators err at that rate; it is least
    where s(d) = 1 - smoothing. The appendix of arXiv:2507.07375 prints the same sign of d in both terms, which would
    add up to -log s(d) and smooth nothing.

    Args:
        margin: r(chosen) - r(rejected) in nats; shape (m,), m may be 0.
        required: how much the chosen response should win by, in nats, NaN where nothing is known; shape (m,).
        smoothing: share of the annotations taken to be wrong; in [0, 1].
        reduction: "none" gives each pair's loss, (m,).
    Returns: scalar.
    Raises: ValueError if margin is not one-dimensional or required has another shape.
    """
    return _preference_loss(margin, F.logsigmoid, required, smoothing, reduction)


def thurstone_loss(
    margin: Tensor, *, required: Tensor | None = None, smoothing: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    """Thurstone negative log-likelihood (probit link), -log Phi(d) with Phi the normal distribution function.

    Thurstone 1927, case V; arXiv:2411.04991 names it as the alternative to Bradley-Terry. log Phi is computed as one
    function: Phi itself is 0 in float32 below -14. Grows with d^2 where Bradley-Terry grows with |d|, so a single wrong
    annotation of an easy pair weighs more. Equal rewards give log 2.

    Args:
        margin: r(chosen) - r(rejected) in standard deviations of the annotators' noise; shape (m,), m may be 0.
        required: how much the chosen response should win by, NaN where nothing is known; shape (m,).
        smoothing: share of the annotations taken to be wrong, as in `bt_loss`.
        reduction: "none" gives each pair's loss, (m,).
    Returns: scalar.
    Raises: ValueError if margin is not one-dimensional or required has another shape.
    """
    return _preference_loss(margin, torch.special.log_ndtr, required, smoothing, reduction)


def centring_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Reward centring: the mean of (r(chosen) + r(rejected))^2, which is least when a pair's rewards cancel.

    arXiv:2312.09244 (Eisenstein et al.), the term that TRL calls center_rewards. A preference loss leaves the constant
    in a reward free; this fixes it, so that rewards of different prompts and heads have the same zero.

    Args:
        chosen: rewards of the chosen responses; shape (m,), m may be 0.
        rejected: rewards of their rejected partners; shape (m,).
    Returns: scalar.
    Raises: ValueError if shapes disagree.
    """
    _one_dimensional(chosen, "chosen")
    _same_shape(chosen, rejected, "chosen", "rejected")
    total = chosen + rejected
    return total.square().mean() if len(total) else total.sum()


def clf_loss(logit: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Binary cross-entropy of each response by itself: how likely it is to be a chosen one.

    arXiv:2411.04991, section 4 (the order-consistent classification objective).

    Args:
        logit: log-odds that a response is chosen, which is its reward; shape (n,), n may be 0.
        target: 1 where chosen, 0 where rejected, anything between for a share of both; shape (n,).
        reduction: "none" gives each response's loss, (n,).
    Returns: scalar.
    Raises: ValueError if shapes disagree.
    """
    _one_dimensional(logit, "logit")
    _same_shape(logit, target, "logit", "target")
    return _reduced(F.binary_cross_entropy_with_logits(logit, target, reduction="none"), reduction)


def attribute_loss(predicted: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Squared error averaged over the annotated attribute scores.

    NaN targets are indexed out. torch.where would keep them out of the value but not out of the gradient, where
    0 * NaN is NaN.

    Args:
        predicted: attribute predictions in standardised units; shape (n, k).
        target: attribute scores in the same units; shape (n, k), NaN where not annotated.
        reduction: "none" gives the loss of each annotated score, (annotated,).
    Returns: scalar; 0 when nothing is annotated.
    Raises: ValueError if shapes disagree.
    """
    _same_shape(predicted, target, "predicted", "target")
    annotated = ~target.isnan()
    return _reduced((predicted[annotated] - target[annotated]).square(), reduction)


def pinball_loss(predicted: Tensor, target: Tensor, *, quantile: float, reduction: Reduction = "mean") -> Tensor:
    """Quantile regression: q e where the target is e > 0 above the prediction, (1 - q) |e| where it is below.

    Koenker and Bassett 1978. Its minimum over a constant is the targets' q-quantile; q = 0.5 is half the absolute
    error. NaN targets are indexed out as in `attribute_loss`.

    Args:
        predicted: predictions; shape (n, k).
        target: scores in the same units; shape (n, k), NaN where not annotated.
        quantile: q, in (0, 1).
        reduction: "none" gives the loss of each annotated score, (annotated,).
    Returns: scalar; 0 when nothing is annotated.
    Raises: ValueError if shapes disagree.
    """
    _same_shape(predicted, target, "predicted", "target")
    annotated = ~target.isnan()
    error = target[annotated] - predicted[annotated]
    return _reduced(torch.maximum(quantile * error, (quantile - 1) * error), reduction)


def odin_length_loss(quality: Tensor, length_reward: Tensor, length: Tensor) -> Tensor:
    """ODIN's length loss, |corr(quality, length)| - corr(length_reward, length), in [-1, 2].

    arXiv:2402.07319, L^L: Pearson correlations over the responses of a batch. Of the sum that the preferences
    determine, the length goes into the second reward and out of the first.

    Args:
        quality: rewards of the quality head; shape (n,), n may be 0.
        length_reward: rewards of the length head; shape (n,).
        length: lengths of the responses, in any unit; shape (n,).
    Returns: scalar; a correlation with something constant counts as 0.
    Raises: ValueError if shapes disagree.
    """
    return correlation(quality, length).abs() - correlation(length_reward, length)


def odin_orthogonality_loss(quality_weight: Tensor, length_weight: Tensor) -> Tensor:
    """ODIN's orthogonality loss: |cosine| of the angle between the two heads' weights, in [0, 1].

    arXiv:2402.07319, L^O = |W_Q W_L^T| with both weights of norm 1, as the paper asks for: of weights that may shrink,
    shrinking them would be the easiest way to a small product.

    Args:
        quality_weight: shape (d,).
        length_weight: shape (d,).
    Returns: scalar.
    Raises: ValueError if shapes disagree.
    """
    _same_shape(quality_weight, length_weight, "quality_weight", "length_weight")
    return F.cosine_similarity(quality_weight, length_weight, dim=0).abs()


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of two vectors (n,) that has a gradient; 0 if one of them is constant or empty."""
    _one_dimensional(first, "first")
    _same_shape(first, second, "first", "second")
    if len(first) < 2:
        return (first * 0).sum()
    # cosine_similarity divides by max(norm, eps): a constant gives 0 with a finite gradient, not 0/0.
    return F.cosine_similarity(first - first.mean(), second - second.mean(), dim=0)


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


def _preference_loss(
    margin: Tensor,
    log_probability: Callable[[Tensor], Tensor],
    required: Tensor | None,
    smoothing: float,
    reduction: Reduction,
) -> Tensor:
    _one_dimensional(margin, "margin")
    if required is not None:
        _same_shape(margin, required, "margin", "required")
        margin = margin - required.nan_to_num(0.0)
    loss = -log_probability(margin)
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * log_probability(-margin)
    return _reduced(loss, reduction)


def _reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """The mean, which of nothing is 0; or the losses as they are."""
    if reduction == "none":
        return losses
    return losses.mean() if len(losses) else losses.sum()


def _one_dimensional(tensor: Tensor, name: str) -> None:
    if tensor.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected one dimension; squeeze the last one")


def _same_shape(first: Tensor, second: Tensor, first_name: str, second_name: str) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"{first_name} has shape {tuple(first.shape)} and {second_name} {tuple(second.shape)}; they must be equal"
        )
