"""What `pipeline bench embed` compares with: how others embed, rewritten here from what they do.

Each takes rendered texts and returns one vector per text; `one_at_a_time` is the truth that all are held against. None
is tuned: batch sizes, padding and order are those of the procedure it stands for. Only truncation is ours, so that
every procedure runs the same tokens.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbone import Backbone, hub_commit, resolve
from pipeline.render import TokenRow

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PUBLISHED_BATCH = 50
PLAIN_BATCH = 32


@dataclass(frozen=True)
class Embedded:
    """Vectors of n texts and what they cost.

    Attributes:
        vectors: as the procedure pools them; (n, d) float32.
        at_last_token: the same states pooled at each text's rightmost real token; None if the procedure has no
            other pooling.
        tokens_run: positions computed, padding included.
    """

    vectors: NDArray[np.float32]
    at_last_token: NDArray[np.float32] | None
    tokens_run: int


def load_classifier(
    name: str, revision: str | None, device: str, tokenizer: "PreTrainedTokenizerBase"
) -> "PreTrainedModel":
    """The backbone as the published code loads it: a sequence classifier with one output, in float32.

    Args:
        name: hub id, directory, or "gemma3-270m".
        revision: commit, tag or branch of a hub backbone.
        device: "cpu" or "cuda".
        tokenizer: says what pads; a classifier asks for it when it gets more than one row.

    Raises: ValueError if transformers has no such class for this architecture.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call] # the classifier's own weights are new: we know
    where = resolve(name)
    commit = None if isinstance(where, Path) else hub_commit(where, revision)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            where, revision=commit, num_labels=1, dtype=torch.float32
        )
    except ValueError as error:
        raise ValueError(f"{name} has no sequence classifier in transformers; leave (a) out: --only b,d") from error
    model.config.pad_token_id = tokenizer.pad_token_id
    loaded: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return loaded


def baseline_tokenizer(tokenizer: "PreTrainedTokenizerBase", *, truncation_side: str) -> "PreTrainedTokenizerBase":
    """A copy that cuts long texts on the given side and pads on its own side, with EOS if it has no padding token."""
    own = copy.deepcopy(tokenizer)
    own.truncation_side = truncation_side
    if own.pad_token is None:
        own.pad_token = own.eos_token
    return own


@torch.inference_mode()
def published(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str] | Sequence[tuple[str, str]],
    *,
    max_length: int,
    batch_size: int = PUBLISHED_BATCH,
) -> Embedded:
    """The embedding step of arXiv:2411.04991's code.

    A sequence classifier runs every text padded to `max_length` and keeps the hidden states of all layers; the vector
    is the last layer's at position -1, which is the last token only where the tokenizer pads on the left.

    Args:
        model: a sequence classifier.
        tokenizer: pads on its own side.
        texts: rendered conversations; or (prompt, response) pairs, which is how the published code tokenises.
        max_length: tokens of every row.
        batch_size: rows in a batch.
    """
    last_position, last_token = [], []
    for start in range(0, len(texts), batch_size):
        inputs = _tokens(
            tokenizer,
            texts[start : start + batch_size],
            max_length=max_length,
            padding="max_length",
            device=model.device,
        )
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
        last_position.append(states[:, -1].float().cpu())
        last_token.append(_at_last_token(states, inputs["attention_mask"]).float().cpu())
    return Embedded(torch.cat(last_position).numpy(), torch.cat(last_token).numpy(), len(texts) * max_length)


@torch.inference_mode()
def plain(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    max_length: int,
    batch_size: int = PLAIN_BATCH,
) -> Embedded:
    """The loop most would write: batches in data order, padded to their longest text, pooled at the last real token."""
    vectors, tokens_run = [], 0
    for start in range(0, len(texts), batch_size):
        inputs = _tokens(
            tokenizer, texts[start : start + batch_size], max_length=max_length, padding="longest", device=model.device
        )
        tokens_run += inputs["input_ids"].numel()
        states = model(**inputs).last_hidden_state
        vectors.append(_at_last_token(states, inputs["attention_mask"]).float().cpu())
    return Embedded(torch.cat(vectors).numpy(), None, tokens_run)


def load_sentence_encoder(directory: str, device: str, max_length: int) -> "SentenceTransformer":
    """A sentence-transformers model in float32 that cuts texts on the left. Raises: ImportError."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(directory, device=device, model_kwargs={"dtype": torch.float32})
    model.max_seq_length = max_length
    model.tokenizer.truncation_side = "left"
    return model


def sentence_transformer(model: "SentenceTransformer", texts: Sequence[str]) -> Embedded:
    """sentence-transformers' own `encode` at its defaults: sorted by length, batches of 32, the model's pooling."""
    run: list[int] = []
    hook = model[0].register_forward_pre_hook(lambda _, inputs: run.append(inputs[0]["input_ids"].numel()))
    vectors = model.encode(list(texts), show_progress_bar=False)
    hook.remove()
    return Embedded(np.asarray(vectors, dtype=np.float32), None, sum(run))


def one_at_a_time(backbone: Backbone, rows: Sequence[TokenRow]) -> NDArray[np.float32]:
    """The last token's final state of each row, run alone without padding; (n, d)."""
    backbone.model.set_attn_implementation(backbone.attention)
    with torch.inference_mode():
        ids = [torch.from_numpy(row.ids).long()[None].to(backbone.model.device) for row in rows]
        states = [backbone.model(input_ids=row, use_cache=False).last_hidden_state[0, -1] for row in ids]
    return np.stack([state.float().cpu().numpy() for state in states])


def lowest_cosine(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The lowest cosine between rows, in float64."""
    products = np.einsum("nd,nd->n", found.astype(np.float64), expected.astype(np.float64))
    lengths = np.linalg.norm(found.astype(np.float64), axis=1) * np.linalg.norm(expected.astype(np.float64), axis=1)
    return float(np.min(products / lengths))


def different_tokens(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], ids: Sequence[NDArray[np.int32]], *, max_length: int
) -> int:
    """How many texts the tokenizer's own call turns into other tokens than `ids`."""
    own = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return sum(list(found) != expected.tolist() for found, expected in zip(own, ids, strict=True))


def _tokens(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str] | Sequence[tuple[str, str]],
    *,
    max_length: int,
    padding: str,
    device: torch.device,
) -> Mapping[str, Tensor]:
    """A padded batch on the device."""
    inputs: Mapping[str, Tensor] = tokenizer(
        list(texts), padding=padding, truncation=True, max_length=max_length, return_tensors="pt"
    ).to(device)
    return inputs


def _at_last_token(states: Tensor, mask: Tensor) -> Tensor:
    """(rows, d) states at the rightmost attended position, whichever side is padded."""
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), last]
