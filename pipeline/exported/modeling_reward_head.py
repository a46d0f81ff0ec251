"""A reward model: a backbone, features of its hidden states, and a head on them. `logits` (B, 1) is the reward.

Written by `pipeline export` of rewardheads; needs torch and transformers and nothing else. Conversations go in as the
tokenizer's chat template writes them:

    tokenizer = AutoTokenizer.from_pretrained(DIR, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(DIR, trust_remote_code=True)
    inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    reward = model(**inputs).logits

For inference: the head has no gradients, and labels are not read. It keeps to float32 whatever the backbone computes
in, because it takes a few channels' means off that are hundreds of times their spread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from .reward_heads import TINY, SavedHead

OF_RESPONSE = ("mean", "prompt", "response_tokens")  # what must know where the response begins


class RewardHeadConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """Backbone, features and head.

    Attributes:
        backbone_config: the backbone's own.
        features: what is read, side by side: {"layer", "pool", "norm"} or {"count"}.
        head: {"name", "options", "fitted", "shapes", "members"} of the saved head.
        score: which of the head's rewards is `logits`.
        reward_names: of the columns of `rewards`.
        attribute_names: of the columns of `attributes`.
        after: tokens after the conversation: an encoder's closing token, a suffix.
        marker: the token ids that stand before every response.
    """

    model_type = "reward_head"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 - as transformers declares it

    def __init__(
        self,
        backbone_config: Any = None,  # noqa: ANN401 - a config, or its JSON
        features: Sequence[Mapping[str, Any]] = (),
        head: Mapping[str, Any] | None = None,
        score: str = "reward",
        reward_names: Sequence[str] = (),
        attribute_names: Sequence[str] = (),
        after: int = 0,
        marker: Sequence[int] = (),
        **kwargs: Any,  # noqa: ANN401 - transformers' own
    ) -> None:
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config = backbone_config
        self.features = [dict(feature) for feature in features]
        self.head = dict(head or {})
        self.score = score
        self.reward_names = list(reward_names)
        self.attribute_names = list(attribute_names)
        self.after = after
        self.marker = list(marker)
        super().__init__(**kwargs)


@dataclass
class RewardOutput(ModelOutput):
    """What a forward pass gives.

    Attributes:
        logits: the reward; shape (B, 1).
        rewards: every reward of the head, `config.reward_names`; shape (B, r).
        attributes: predicted attributes in their own units, `config.attribute_names`; shape (B, k).
    """

    logits: Tensor | None = None
    rewards: Tensor | None = None
    attributes: Tensor | None = None


class RewardHeadModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """The backbone, and the head on features of its hidden states."""

    config_class = RewardHeadConfig
    base_model_prefix = "backbone"
    _keep_in_fp32_modules = ["head"]  # noqa: RUF012 - as transformers declares it
    _keep_in_fp32_modules_strict = ["head"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: RewardHeadConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config)  # type: ignore[no-untyped-call]
        self.head = SavedHead(config.head)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        response_start: Tensor | None = None,
        **ignored: Any,  # noqa: ANN401 - token types, labels: whatever a pipeline passes along
    ) -> RewardOutput:
        """Rewards of conversations.

        Args:
            input_ids: token ids; shape (B, T), padded on either side.
            attention_mask: 1 where a token is one, without gaps; shape (B, T). None: every token is one.
            response_start: number of tokens before each response, padding not counted; shape (B,). None looks for it,
                see `response_starts`. Only features of the response or the prompt need it.
            ignored: nothing else is read.

        Raises: ValueError if a response's start is needed and not found, or a mask is needed and not given.
        """
        mask = self._every_token(input_ids) if attention_mask is None else attention_mask
        input_ids, mask = _begun_at_once(input_ids, mask)
        length = mask.long().sum(1)
        start = response_start
        if start is None and any(_kind(feature) in OF_RESPONSE for feature in self.config.features):
            start = self.response_starts(input_ids, mask)
        outputs = self._states(input_ids, mask)
        columns = [self._feature(feature, outputs, length, start) for feature in self.config.features]
        with torch.autocast(input_ids.device.type, enabled=False):
            rewards, attributes = self.head(torch.cat(columns, dim=1))
        every = torch.stack([rewards[name] for name in self.config.reward_names], dim=1)
        told = [attributes[name] for name in self.config.attribute_names]
        return RewardOutput(
            logits=rewards[self.config.score][:, None],
            rewards=every,
            attributes=torch.stack(told, dim=1) if told else every.new_empty(len(every), 0),
        )

    def response_starts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Number of tokens before each response: those to the end of the last marker; shape (B,).

        The marker is what the chat template writes before every response. A response that holds the marker itself, as a
        text with turns of its own may, is taken to begin after it: pass `response_start` to be sure.

        Raises: ValueError if a row has no marker.
        """
        mask = self._every_token(input_ids) if attention_mask is None else attention_mask
        marker = torch.tensor(self.config.marker, device=input_ids.device)
        if not len(marker) or input_ids.shape[1] < len(marker):
            raise ValueError("where the responses begin is not known here; pass response_start")
        there = (input_ids.unfold(1, len(marker), 1) == marker).all(2) & mask.bool()[:, : 1 - len(marker) or None]
        if not bool(there.any(1).all()):
            row = int((~there.any(1)).nonzero()[0])
            raise ValueError(
                f"row {row} does not hold what the chat template writes before a response; use the template"
            )
        last = there.shape[1] - 1 - there.long().flip(1).argmax(1)
        return last + len(marker) - mask.long().argmax(1)

    def _every_token(self, input_ids: Tensor) -> Tensor:
        """The mask of rows that have none: (B, T). Padding tells itself from a token that is part of a row in no way.

        Raises: ValueError if there are several rows and padding tokens in them.
        """
        pad = self.config.pad_token_id
        if len(input_ids) > 1 and pad is not None and bool((input_ids == pad).any()):
            raise ValueError("several rows with padding tokens in them need attention_mask, which the tokenizer gives")
        return torch.ones_like(input_ids)

    def _states(self, input_ids: Tensor, mask: Tensor) -> dict[int, Tensor]:
        """The layers that features read: (B, T, d) each."""
        last: int = self.config.backbone_config.get_text_config().num_hidden_layers
        layers = {feature["layer"] for feature in self.config.features if "layer" in feature}
        output = self.backbone(
            input_ids=input_ids, attention_mask=mask, output_hidden_states=layers != {last}, use_cache=False
        )
        return {n: output.last_hidden_state if n == last else output.hidden_states[n] for n in layers}

    def _feature(
        self,
        feature: Mapping[str, Any],
        states: Mapping[int, Tensor],
        length: Tensor,
        start: Tensor | None,
    ) -> Tensor:
        """One feature of each row, float32: (B, d), or (B, 1) for a count."""
        kind = _kind(feature)
        end = length - self.config.after
        begin = torch.zeros_like(length) if start is None else start
        if "count" in feature:
            counted = length if kind == "tokens" else (end - begin).clamp(min=0)
            return counted.float()[:, None]
        low, high = {
            "last": (end - 1, end),
            "mean": (torch.minimum(begin, end - 1), end),
            "suffix": (length - 1, length),
            "prompt": ((begin - 1).clamp(min=0), (begin - 1).clamp(min=0) + 1),
            "all": (torch.zeros_like(length), length),
            "first": (torch.zeros_like(length), torch.ones_like(length)),
        }[kind]
        pooled = _mean(states[feature["layer"]], low, high)
        if feature["norm"] == "rms":
            return pooled / (pooled.square().mean(1, keepdim=True).sqrt() + TINY)
        return F.normalize(pooled, dim=1) if feature["norm"] == "unit" else pooled


def _begun_at_once(input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with their padding, if any, on the right: positions then count from the first token for every backbone."""
    first = mask.long().argmax(1, keepdim=True)
    if not bool(first.any()):
        return input_ids, mask
    order = (torch.arange(input_ids.shape[1], device=input_ids.device) + first) % input_ids.shape[1]
    return input_ids.gather(1, order), mask.gather(1, order)


def _kind(feature: Mapping[str, Any]) -> str:
    return str(feature["count"] if "count" in feature else feature["pool"])


def _mean(states: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The mean state of the tokens low <= t < high of each row: (B, T, d) -> (B, d), float32."""
    rows = torch.arange(len(states), device=states.device)
    if bool((high - low == 1).all()):
        return states[rows, low].float()
    t = torch.arange(states.shape[1], device=states.device)
    inside = (t >= low[:, None]) & (t < high[:, None])
    kept = states.float().masked_fill(~inside[:, :, None], 0.0)
    return torch.einsum("rt,rtd->rd", inside.float() / inside.sum(1, keepdim=True), kept)
