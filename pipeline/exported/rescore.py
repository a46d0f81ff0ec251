"""Scores conversations with an exported reward model by plain transformers: python rescore.py DIR IN.json OUT.json.

Run in a process of its own, so that nothing of the exporting one can help: no object, no cached module, no weight.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BATCH_TOKENS = 2048
ROOMS = ("pipeline", "heads", "cache", "bench")


def main(directory: str, source: str, target: str) -> None:
    """Score what `source` holds: {"messages": [...], "ids": [...], "starts": [...]}, one of each for every row."""
    asked = json.loads(Path(source).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as modules:
        os.environ.update(HF_MODULES_CACHE=modules, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        found = rescore(directory, asked)
    Path(target).write_text(json.dumps(found), encoding="utf-8")


def rescore(directory: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Logits of every row, and what was found on the way."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    custom = "auto_map" in json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(
        directory, trust_remote_code=custom, output_loading_info=True
    )
    model, info = loaded
    model.eval()
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in asked["messages"]]
    ids = [
        tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        for messages in asked["messages"]
    ]
    again = [tokenizer(text)["input_ids"] for text in texts]  # as those do who take text for an input
    logits, starts_found = [0.0] * len(ids), 0
    for rows in _batches(ids):
        inputs = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
        more = {}
        if hasattr(model, "response_starts") and model.config.marker:
            given = torch.tensor([asked["starts"][row] for row in rows])
            starts_found += int((model.response_starts(inputs["input_ids"], inputs["attention_mask"]) == given).sum())
            more["response_start"] = given
        with torch.inference_mode():
            out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **more).logits
        if tuple(out.shape) != (len(rows), 1):
            raise ValueError(f"logits have shape {tuple(out.shape)}, expected ({len(rows)}, 1)")
        for row, value in zip(rows, out[:, 0].float().tolist(), strict=True):
            logits[row] = value
    config: Any = AutoConfig.from_pretrained(directory, trust_remote_code=custom)
    return {
        "logits": logits,
        "other_ids": sum(one != other for one, other in zip(ids, asked["ids"], strict=True)),
        "other_ids_from_text": sum(one != other for one, other in zip(again, asked["ids"], strict=True)),
        "bos": sorted({one.count(tokenizer.bos_token_id) for one in ids}) if tokenizer.bos_token_id is not None else [],
        "starts_found": starts_found if getattr(config, "marker", None) else None,
        "missing": sorted(info["missing_keys"]) + sorted(info["unexpected_keys"]),
        "model_class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_labels": config.num_labels,
        "problem_type": config.problem_type,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rooms": sorted(set(ROOMS) & set(sys.modules)),
    }


def _batches(ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Row numbers in batches of at most BATCH_TOKENS tokens with padding, or one row, shortest first."""
    batch: list[int] = []
    for row in sorted(range(len(ids)), key=lambda row: len(ids[row])):
        if batch and len(ids[row]) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


if __name__ == "__main__":
    main(*sys.argv[1:])
