"""Sampling the demo backbone: short completions at several temperatures, many rows a step.

The backbone is a base model, so each prompt stands behind two worked examples with constraints of the same kinds.
Rows that are done leave the batch, and a prompt's examples are read once for all of its samples: on two cores that
is what keeps the whole within minutes (`generate` pads every row to the slowest one and took ten times as long).
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from bench.demo.constraints import Prompt
from bench.demo.edits import worked_answer
from bench.demo.prompts import shots_for

TEMPERATURES = (0.3, 0.7, 0.7, 0.7, 1.0, 1.0)
TOP_K = 40
NEW_TOKENS = 36
PROMPTS_A_BATCH = 16
COMMON = 60_000  # ids below this are the tokenizer's more frequent tokens


def frame(prompt: Prompt) -> str:
    """The text that the backbone continues: two worked examples, then the prompt."""
    shots = [f"User: {shot.text}\n\nAssistant: {worked_answer(shot)}\n\n" for shot in shots_for(prompt)]
    return "".join([*shots, f"User: {prompt.text}\n\nAssistant:"])


def sample(prompts: Sequence[Prompt], backbone: Path | str, *, threads: int) -> Iterator[dict[str, str | float]]:
    """Raw completions of all prompts, in prompt order; one row for each prompt and temperature.

    Args:
        prompts: what to answer.
        backbone: directory or hub id that transformers can load.
        threads: how many CPU threads to use.
    """
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(backbone, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
    model.eval()
    vocabulary = _plain_ids(tokenizer)
    started = time.monotonic()
    for first in range(0, len(prompts), PROMPTS_A_BATCH):
        batch = prompts[first : first + PROMPTS_A_BATCH]
        torch.manual_seed(first)
        inputs = tokenizer([frame(p) for p in batch], return_tensors="pt", padding=True)
        texts = tokenizer.batch_decode(_complete(model, inputs, *vocabulary), skip_special_tokens=True)
        for index, text in enumerate(texts):
            prompt, temperature = batch[index // len(TEMPERATURES)], TEMPERATURES[index % len(TEMPERATURES)]
            yield {"prompt_id": prompt.id, "prompt": prompt.text, "temperature": temperature, "response": text}
        print(f"{first + len(batch)}/{len(prompts)} prompts, {time.monotonic() - started:.0f} s", flush=True)


def _plain_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Ids that may be drawn, and which of them end a response, as (ids,) and a mask of the same shape.

    Only frequent tokens of printable ASCII: the output layer over all 262,144 costs more than the rest of the model.
    """
    texts = {index: token.replace("\u2581", " ") for token, index in tokenizer.get_vocab().items()}
    frequent = {i: text for i, text in texts.items() if i < COMMON or len(text) == 1}  # single characters come last
    plain = {i for i, text in frequent.items() if re.fullmatch(r"[ -;=?-~\n]+", text)}
    ids = sorted(plain | {tokenizer.eos_token_id})
    return torch.tensor(ids), torch.tensor([i == tokenizer.eos_token_id or "\n\n" in texts[i] for i in ids])


@torch.inference_mode()
def _complete(model: PreTrainedModel, inputs: Mapping[str, Tensor], ids: Tensor, stops: Tensor) -> list[list[int]]:
    """Token ids of one completion for each prompt and temperature, prompt by prompt, without the stop token."""
    copies = len(TEMPERATURES)
    output = model.get_output_embeddings().weight[ids]  # type: ignore[no-untyped-call]  # (vocabulary, width)
    mask = inputs["attention_mask"]
    cache = DynamicCache(config=model.config)
    hidden = _step(model, inputs["input_ids"], mask, cache).repeat_interleave(copies, dim=0)
    cache.batch_repeat_interleave(copies)
    mask = mask.repeat_interleave(copies, dim=0)
    heat = torch.tensor(TEMPERATURES).repeat(len(mask) // copies)
    alive = torch.arange(len(mask))
    rows: list[list[int]] = [[] for _ in alive]
    for _ in range(NEW_TOKENS):
        chosen = _draw(hidden @ output.T, heat[alive])
        going = ~stops[chosen]
        alive, chosen, mask = alive[going], ids[chosen[going]], mask[going]
        for row, token in zip(alive.tolist(), chosen.tolist(), strict=True):
            rows[row].append(token)
        if not len(alive):
            break
        if not going.all():
            cache.batch_select_indices(going.nonzero()[:, 0])
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        hidden = _step(model, chosen[:, None], mask, cache)
    return rows


def _step(model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """Last hidden states (rows, width) after feeding `ids`; left padding does not count as a position."""
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    out = model.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    hidden: Tensor = out.last_hidden_state[:, -1]
    return hidden


def _draw(logits: Tensor, temperature: Tensor) -> Tensor:
    """One column a row from the TOP_K likeliest; shapes (rows, vocabulary), (rows,) -> (rows,)."""
    top = logits.topk(TOP_K, dim=1)
    picked = torch.multinomial((top.values / temperature[:, None]).softmax(dim=1), 1)
    return top.indices.gather(1, picked)[:, 0]
