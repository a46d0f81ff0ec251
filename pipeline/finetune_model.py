"""The backbone with trainable heads on the state at a response's last token, all of it or its LoRA adapters.

States are read at the last attended token, found by the row's length and not by its padding token, which may be the
row's own last token. Heads compute in float32 whatever the backbone computes in.
"""

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heads.attributes import AttributeScale
from heads.given import given_bt, given_linear, given_odin, given_smorm
from heads.objectives import odin_orthogonality_loss
from heads.protocol import Head
from pipeline.finetune_loss import Objective
from pipeline.forward import right_padded
from pipeline.likelihood import LMHead
from pipeline.render import TokenRow

if TYPE_CHECKING:
    from pipeline.backbone import Backbone

EXTRA = "pip install 'rewardheads[finetune]'"


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on every linear layer of the backbone (arXiv:2106.09685), in place of training its weights.

    Attributes:
        rank: of the adapters.
        alpha: their output is multiplied by alpha / rank.
    """

    rank: int
    alpha: int


class RewardHeads(nn.Module):
    """Rewards, and attributes in standardised units, from states: (r, d) -> (r, rewards + k)."""

    def __init__(self, dim: int, *, rewards: int, hidden: int, attributes: int) -> None:
        """Start at 0, as there is nothing to unlearn then; an MLP's layers and two rewards start as nn.Linear's.

        A correlation and a cosine of rewards that are all 0 have gradients of 1 / eps, beside which cutting the norm
        leaves nothing of any other term.

        Args:
            dim: d.
            rewards: how many; with a hidden layer, one.
            hidden: width of a hidden layer under the reward (GRM, arXiv:2406.10216); 0 leaves it out.
            attributes: k.
        """
        super().__init__()
        assert rewards == 1 or not hidden, "only a single reward has a hidden layer"
        self.reward: nn.Module = nn.Linear(dim, rewards, bias=False)
        if hidden:
            self.reward = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        elif rewards == 1:
            nn.init.zeros_(self.rows)
        self.attributes = nn.Linear(dim, attributes) if attributes else None
        if self.attributes is not None:
            nn.init.zeros_(self.attributes.weight)
            nn.init.zeros_(self.attributes.bias)

    @property
    def rows(self) -> Tensor:
        """The weight of linear rewards: (rewards, d)."""
        assert isinstance(self.reward, nn.Linear), "the reward has a hidden layer"
        return self.reward.weight

    def forward(self, states: Tensor) -> Tensor:
        """(r, d) -> (r, rewards + k)."""
        rewards: Tensor = self.reward(states)
        return rewards if self.attributes is None else torch.cat([rewards, self.attributes(states)], dim=1)

    def start_from(self, row: Tensor) -> None:
        """Take a reward's weight (d,) on the state as it is for the first reward's."""
        with torch.no_grad():
            self.rows[0].copy_(row)

    def as_head(self, objective: Objective, scale: AttributeScale | None, spread: Tensor) -> Head:
        """What was trained as a head on the backbone's final state; scale and spread as in `given_smorm`."""
        if isinstance(self.reward, nn.Sequential):
            given = dict(self.reward.named_parameters())
            return given_bt((given["0.weight"], given["2.weight"]), (given["0.bias"], given["2.bias"]))
        if self.attributes is not None:
            assert scale is not None, "attributes without their scale"
            weight = torch.cat([self.rows, self.attributes.weight])
            bias = torch.cat([torch.zeros(1), self.attributes.bias])
            weights = {"regression_weight": objective.regression_weight}
            return given_smorm(weight.detach(), bias.detach(), scale, spread, **weights)
        return given_odin(self.rows.detach()) if objective.rewards == 2 else given_linear(self.rows[0])


class RewardModel(nn.Module):
    """A backbone and its heads; with an LM head, which is not trained, also how likely responses are.

    Attributes:
        base: the backbone, or it in adapters.
        heads: on its final state.
        lm_head: what the text term reads; None without one.
    """

    def __init__(self, base: nn.Module, heads: RewardHeads, lm_head: LMHead | None) -> None:
        """Take the parts. The LM head is no parameter: it stays as it was."""
        super().__init__()
        self.base, self.heads, self.lm_head = base, heads, lm_head
        # What is sharded by itself (FSDP): accelerate wants a class for each name, which text models have not for all.
        self._no_split_modules = sorted(
            {type(part).__name__ for part in base.modules()} & set(getattr(base, "_no_split_modules", None) or ())
        )

    def forward(
        self, ids: Tensor, mask: Tensor, last: Tensor, text_at: Tensor, text_ids: Tensor, text_rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (r, rewards + k), log-probabilities (r,) and |cosine| of two reward heads, as `Outputs` has them.

        Args: as `Inputs` has them.
        """
        states: Tensor = self.base(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        pooled = states[torch.arange(len(ids), device=ids.device), last]
        with torch.autocast(ids.device.type, enabled=False):
            scores = self.heads(pooled.float())
        cosine = scores.new_zeros(())
        if isinstance(self.heads.reward, nn.Linear) and len(self.heads.rows) == 2:
            cosine = odin_orthogonality_loss(self.heads.rows[0], self.heads.rows[1])
        text = scores.new_zeros(len(ids))
        if self.lm_head is not None and len(text_at):
            found = _log_probabilities(self.lm_head, states.flatten(0, 1)[text_at], text_ids)
            text = text.index_add(0, text_rows, found)
        return scores, text, cosine


@dataclass(frozen=True)
class Inputs:
    """What the model is given of r rows, padded on the right.

    Attributes:
        ids: token ids; shape (r, longest).
        mask: 1 where there is a token; shape (r, longest).
        last: position of each row's last token; shape (r,).
        text_at: of the t tokens whose likelihood is wanted, where the state that predicts them is among r * longest.
        text_ids: the tokens; shape (t,).
        text_rows: the row of each; shape (t,).
    """

    ids: Tensor
    mask: Tensor
    last: Tensor
    text_at: Tensor
    text_ids: Tensor
    text_rows: Tensor

    @classmethod
    def of(cls, rows: Sequence[TokenRow], pad: int, device: torch.device, *, texts: Sequence[int] = ()) -> "Inputs":
        """Put rows together; `texts` are the positions of those whose responses' likelihood is wanted."""
        ids, mask = right_padded(rows, pad)
        width = ids.shape[1]
        tokens = [np.array(rows[number].predicted, dtype=np.int64) for number in texts]
        at = [number * width + positions - 1 for number, positions in zip(texts, tokens, strict=True)]
        following = [rows[number].ids[positions] for number, positions in zip(texts, tokens, strict=True)]
        owner = [np.full(len(positions), number) for number, positions in zip(texts, tokens, strict=True)]
        text = [torch.from_numpy(np.concatenate([[], *part]).astype(np.int64)) for part in (at, following, owner)]
        last = torch.tensor([len(row) - 1 for row in rows])
        return cls(*(tensor.to(device) for tensor in (ids, mask, last, *text)))

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The fields in order, as `RewardModel.forward` takes them."""
        return self.ids, self.mask, self.last, self.text_at, self.text_ids, self.text_rows


def build_model(
    backbone: "Backbone",
    objective: Objective,
    *,
    attributes: int,
    hidden: int,
    lora: LoRA | None,
    recompute: bool,
    seed: int,
) -> RewardModel:
    """Make a frozen backbone trainable and put heads on it. The same seed gives the same weights.

    Parts of the backbone that text does not go through, such as a vision tower, stay frozen: without a gradient AdamW
    keeps nothing of them that could be resumed, and other processes wait for their gradients.

    Args:
        backbone: in float32; its model is changed in place.
        objective: what will be minimised.
        attributes: how many to predict.
        hidden: width of the reward's hidden layer; 0 leaves it out.
        lora: None trains every weight.
        recompute: whether to keep only the states between layers and compute the rest again on the way back (gradient
            checkpointing).
        seed: draws what does not start at 0.

    Raises: ValueError if peft is needed and not installed.
    """
    base: Any = backbone.model
    lm_head = backbone.lm_head if objective.alpha else None
    if lm_head is not None:
        frozen = lm_head.weight.detach()
        # In many models this is the embedding too, which is trained: what the text is judged by must not move.
        lm_head = replace(lm_head, weight=frozen if lora else frozen.clone())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dim = base.config.get_text_config().hidden_size
        heads = RewardHeads(dim, rewards=objective.rewards, hidden=hidden, attributes=attributes)
        if lora is None:
            base.requires_grad_(True)
        else:
            base = _with_adapters(base, lora)
        _freeze_unread(base, _read_for_text(base))
    if recompute:
        _keep_less(backbone.model)
    return RewardModel(base, heads, lm_head)


def weight_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What is trained, for AdamW: only matrices decay, as `heads.training` has it; norms and biases set a scale."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    matrices, others = ([weight for weight in trained if (weight.ndim >= 2) is decays] for decays in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def merged(model: RewardModel) -> nn.Module:
    """The backbone with its adapters, if it has any, multiplied out into its weights."""
    base: Any = model.base
    merge: Callable[..., nn.Module] | None = getattr(base, "merge_and_unload", None)
    return base if merge is None else merge(safe_merge=True)


def _with_adapters(base: Any, lora: LoRA) -> Any:  # noqa: ANN401 - models of transformers and peft
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError(f"--lora needs peft, which is not installed; run: {EXTRA}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for what is going to be renamed
        return get_peft_model(base, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear"))


def _read_for_text(base: Any) -> set[Tensor]:  # noqa: ANN401 - a model of transformers
    """The trainable weights that a text's final state depends on, by autograd's graph: no gradient takes memory."""
    ids = torch.tensor([[0, 1]])
    state = base(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    found, seen, left = set[Tensor](), set[Any](), [state.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        left.extend(following for following, _ in node.next_functions)
    return found


def _freeze_unread(module: nn.Module, read: Collection[Tensor]) -> None:
    """Freeze the parts of which no weight is read; of a list's items, such as experts, other rows may read others."""
    if not any(weight in read for weight in module.parameters()):
        module.requires_grad_(False)
    elif not isinstance(module, nn.ModuleList):
        for part in module.children():
            _freeze_unread(part, read)


def _keep_less(base: Any) -> None:  # noqa: ANN401 - a model of transformers
    """Turn gradient checkpointing on; transformers 5.2x has a new name for it."""
    how = {"use_reentrant": False}
    if hasattr(base, "activation_checkpointing_enable"):
        base.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def _log_probabilities(head: LMHead, states: Tensor, following: Tensor) -> Tensor:
    """As `LMHead.log_probabilities`, computed again on the way back: the logits of a batch may be gigabytes."""
    found = [
        checkpoint(head.log_probabilities, block, tokens, use_reentrant=False)
        for block, tokens in head.blocks(states, following)
    ]
    return torch.cat(found)
