"""The objectives of fine-tuning, put together from `heads.objectives`, in parts that add up over a batch.

A batch is run in parts, by several processes. What is a mean over pairs or over attribute scores is computed on each
part and weighted by its share, so that the sum over parts is the loss of the batch to rounding. ODIN's length loss, a
correlation over the batch, is no such sum: `coupled_loss` takes the rewards of all parts at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from heads.objectives import attribute_loss, bt_loss, centring_loss, odin_length_loss

ObjectiveName = Literal["bt", "smorm", "grm", "odin"]
Counted = Literal["pairs", "scores", "parts"]
NEEDS: Mapping[str, frozenset[str]] = {
    "bt": frozenset({"pairs"}),
    "smorm": frozenset({"pairs", "attributes"}),
    "grm": frozenset({"pairs"}),
    "odin": frozenset({"pairs"}),
}


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        name: "bt": Bradley-Terry (arXiv:2507.07375, eq. 1). "smorm": plus attribute regression (eq. 5). "grm": with the
            chosen response's likelihood under the frozen LM head as a regulariser (arXiv:2406.10216, the SFT variant).
            "odin": a quality and a length reward that fit the pairs together (arXiv:2402.07319).
        margin_weight: the chosen response must win by this times the pair's annotated margin.
        smoothing: share of the annotations taken to be wrong.
        centring: weight of (r(chosen) + r(rejected))^2.
        regression_weight: of the attributes' squared error (smorm).
        alpha: weight of the text term; the rest of 1 is that of the pairs (grm).
        beta: what the log-likelihood is multiplied by in the text term (grm).
        length_weight: of ODIN's length loss.
        orthogonality_weight: of ODIN's |cosine| of the two heads.
    """

    name: ObjectiveName
    margin_weight: float = 0.0
    smoothing: float = 0.0
    centring: float = 0.0
    regression_weight: float = 0.0
    alpha: float = 0.0
    beta: float = 0.0
    length_weight: float = 0.0
    orthogonality_weight: float = 0.0

    @property
    def rewards(self) -> int:
        """How many rewards a response gets; their sum fits the pairs, the first is the score."""
        return 2 if self.name == "odin" else 1


@dataclass(frozen=True)
class Outputs:
    """What the model says of r responses.

    Attributes:
        scores: rewards, then attributes in standardised units; shape (r, rewards + k).
        text: log-probability of each response's tokens in nats, summed; 0 where it was not asked for; shape (r,).
        cosine: |cosine| of the two reward heads; scalar; 0 where there is one.
    """

    scores: Tensor
    text: Tensor
    cosine: Tensor


@dataclass(frozen=True)
class Given:
    """What is known of the responses of a part.

    Attributes:
        pairs: positions of (chosen, rejected) among its responses; shape (m, 2).
        margins: annotated margins, NaN where there is none; shape (m,).
        annotated: positions of the responses whose attribute scores count; shape (a,).
        targets: their attribute scores in standardised units, NaN where not annotated; shape (a, k).
    """

    pairs: Tensor
    margins: Tensor
    annotated: Tensor
    targets: Tensor

    @property
    def counts(self) -> dict[Counted, int]:
        """How many pairs and attribute scores there are, and that this is one part."""
        return {"pairs": len(self.pairs), "scores": int(self.targets.isfinite().sum()), "parts": 1}


@dataclass(frozen=True)
class Term:
    """A weighted part of a loss: its name, weight, value, and what the value is a mean over."""

    name: str
    weight: float
    value: Tensor
    over: Counted


def loss_terms(objective: Objective, out: Outputs, given: Given) -> list[Term]:
    """The terms of the objective that are means over pairs or attribute scores; on a whole batch they add up to it.

    grm: L = (1 - alpha) L_pairs + alpha E[-log s(beta log p(chosen | prompt))], arXiv:2406.10216, section 3.2, log p
    summed over the response's tokens as in its authors' code. -log s(x) is the Bradley-Terry loss of x.
    """
    rewards = out.scores[:, : objective.rewards].sum(1)
    chosen, rejected = rewards[given.pairs].view(-1, 2).unbind(1)
    required = objective.margin_weight * given.margins if objective.margin_weight else None
    preference = bt_loss(chosen - rejected, required=required, smoothing=objective.smoothing)
    terms = [Term("preference", 1 - objective.alpha, preference, "pairs")]
    if objective.centring:
        terms.append(Term("centring", objective.centring, centring_loss(chosen, rejected), "pairs"))
    if objective.regression_weight:
        predicted = out.scores[given.annotated, objective.rewards :]
        value = attribute_loss(predicted, given.targets)
        terms.append(Term("attributes", objective.regression_weight, value, "scores"))
    if objective.alpha:
        likelihood = out.text[given.pairs[:, 0]]
        terms.append(Term("text", objective.alpha, bt_loss(objective.beta * likelihood), "pairs"))
    if objective.orthogonality_weight:
        terms.append(Term("orthogonality", objective.orthogonality_weight, out.cosine, "parts"))
    return terms


def coupled_loss(objective: Objective, scores: Tensor, lengths: Tensor) -> Tensor:
    """The part of the objective that takes a whole batch: ODIN's length loss, weighted.

    Args:
        objective: with a length_weight.
        scores: quality and length rewards of the batch's responses; shape (2m, 2).
        lengths: tokens of each response; shape (2m,).
    """
    return objective.length_weight * odin_length_loss(scores[:, 0], scores[:, 1], lengths)
