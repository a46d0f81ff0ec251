"""What a backbone's LM head says of a response: how likely its tokens are, and whether the word after it is yes or no.

The head is one product with the vocabulary, which for a small backbone costs more than all its layers, so it is run
for the tokens that need it and in blocks that bound the memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.render import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}  # nats: how far batching and packing may move a scalar
_BLOCK_BYTES = 64 << 20  # of float32 logits held at once
_PROBE_TOKENS = 8


@dataclass(frozen=True)
class LMHead:
    """From final states to logits over the vocabulary: softcap(states weight^T + bias).

    Attributes:
        weight: shape (vocabulary, d).
        bias: shape (vocabulary,), or None.
        softcap: logits become softcap * tanh(logits / softcap); None leaves them.
        yes: token ids of the word yes: with and without a space before it, in its usual spellings.
        no: likewise.
    """

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> "LMHead":
        """Read the head of a causal language model, and hold its logits against the model's own.

        Raises: ValueError if the model has none, or does more to its logits than this class knows.
        """
        output: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        if not isinstance(output, torch.nn.Linear):
            raise ValueError(f"{type(model).__name__} has no linear LM head; leave out --scalars")
        head = cls(output.weight, output.bias, softcap, _word(tokenizer, "yes"), _word(tokenizer, "no"))
        with torch.inference_mode():
            ids = torch.arange(_PROBE_TOKENS, device=output.weight.device)[None]
            found = model(input_ids=ids, output_hidden_states=True)
            ours = head.logits(found.hidden_states[-1][0]).log_softmax(-1)
            worst = float((ours - found.logits[0].float().log_softmax(-1)).abs().max())
        dtype = str(output.weight.dtype).removeprefix("torch.")
        if not worst <= TOLERANCE[dtype]:
            raise ValueError(
                f"{type(model).__name__} does more to its logits than a product and a soft cap (they are {worst:.2g} "
                "nats off); leave out --scalars"
            )
        return head

    def logits(self, states: Tensor) -> Tensor:
        """(m, d) -> (m, vocabulary), float32."""
        logits = torch.nn.functional.linear(states, self.weight, self.bias).float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def log_probabilities(self, states: Tensor, following: Tensor) -> Tensor:
        """The log-probability, in nats, of each state's following token: (m, d) and (m,) -> (m,)."""
        found = []
        for block, tokens in self.blocks(states, following):
            logits = self.logits(block)
            found.append(logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1))
        return torch.cat(found)

    def blocks(self, states: Tensor, following: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The states and their following tokens, as many at a time as bound the memory of their logits."""
        size = max(1, _BLOCK_BYTES // (4 * len(self.weight)))
        return zip(torch.split(states, size), torch.split(following, size), strict=True)

    def to(self, device: torch.device) -> "LMHead":
        """The head on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)

    def log_odds(self, states: Tensor) -> Tensor:
        """The log-odds: log P(yes) - log P(no) as the next word, in nats: (m, d) -> (m,)."""
        words = [*self.yes, *self.no]
        bias = None if self.bias is None else self.bias[words]
        logits = LMHead(self.weight[words], bias, self.softcap, (), ()).logits(states)
        yes, no = torch.split(logits, [len(self.yes), len(self.no)], dim=1)
        return yes.logsumexp(1) - no.logsumexp(1)


def likelihoods(
    head: LMHead,
    names: Sequence[str],
    states: Tensor,
    rows: Sequence[TokenRow],
    at: Callable[[int, range], NDArray[np.int64]],
) -> dict[str, Tensor]:
    """The scalars of some rows.

    Args:
        head: the LM head.
        names: of `cache.spec.SCALARS`.
        states: final states; shape (tokens, d).
        rows: the token rows.
        at: where in `states` some tokens of a row (by number) are.

    Returns: for each name (rows, 1), float32. "logprob" is the mean over the tokens that pooling "mean" averages; NaN
        for a row of one token, which nothing predicts.
    """
    found = {}
    if "logprob" in names:
        spans = [row.predicted for row in rows]
        before = np.concatenate([at(number, range(s.start - 1, s.stop - 1)) for number, s in enumerate(spans)])
        following = np.concatenate([row.ids[s.start : s.stop] for row, s in zip(rows, spans, strict=True)])
        device = states.device
        each = head.log_probabilities(
            states[torch.from_numpy(before).to(device)], torch.from_numpy(following).long().to(device)
        )
        means = [part.mean() for part in torch.split(each, [len(s) for s in spans])]
        found["logprob"] = torch.stack(means)[:, None]
    if "yes_no" in names:
        ends = np.concatenate([at(number, row.pooled("suffix")) for number, row in enumerate(rows)])
        found["yes_no"] = head.log_odds(states[torch.from_numpy(ends).to(states.device)])[:, None]
    return found


def needed_tokens(names: Sequence[str], row: TokenRow) -> list[range]:
    """The tokens of a row whose final states `likelihoods` reads."""
    before = range(row.predicted.start - 1, row.predicted.stop - 1)
    return [*([before] if "logprob" in names else []), *([row.pooled("suffix")] if "yes_no" in names else [])]


def _word(tokenizer: "PreTrainedTokenizerBase", word: str) -> tuple[int, ...]:
    """The tokens that are this word; a spelling that takes two tokens is left out."""
    spellings = [space + form for space in ("", " ") for form in (word, word.capitalize(), word.upper())]
    tokens = [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings]
    return tuple(sorted({ids[0] for ids in tokens if len(ids) == 1}))
