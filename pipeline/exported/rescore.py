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
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    custom = "auto_map" in json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=custom)
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(
        directory, trust_remote_code=custom, output_loading_info=True
    )
    model, info = loaded
    messages = asked["messages"]
    ids = [tokenizer.apply_chat_template(one, tokenize=True, return_dict=True)["input_ids"] for one in messages]
    texts = [tokenizer.apply_chat_template(one, tokenize=False) for one in messages]
    again = [tokenizer(text)["input_ids"] for text in texts]  # as those do who take text for an input
    return {
        **_score(model.eval(), tokenizer, ids, asked["starts"], sides=("right", "left") if custom else ("right",)),
        "other_ids": sum(one != other for one, other in zip(ids, asked["ids"], strict=True)),
        "other_ids_from_text": sum(one != other for one, other in zip(again, asked["ids"], strict=True)),
        "missing": sorted(info["missing_keys"]) + sorted(info["unexpected_keys"]),
        "model_class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_labels": model.config.num_labels,
        "problem_type": model.config.problem_type,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rooms": sorted(set(ROOMS) & set(sys.modules)),
    }


def _score(
    model: Any,  # noqa: ANN401 - of transformers, as the tokenizer
    tokenizer: Any,  # noqa: ANN401
    ids: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    sides: Sequence[str],
) -> dict[str, Any]:
    """Every row's logit, in batches that are padded on these sides in turn.

    Where the class looks for the responses' starts: also the logits that it gives by itself (`unaided`), and how many
    starts it finds. `logits` are then those with the true starts.
    """
    import torch

    looking = bool(getattr(model.config, "marker", None))
    logits, unaided, found = [0.0] * len(ids), [0.0] * len(ids), 0
    for number, rows in enumerate(_batches(ids)):
        inputs: dict[str, Any] = tokenizer.pad(
            {"input_ids": [ids[row] for row in rows]}, padding_side=sides[number % len(sides)], return_tensors="pt"
        )
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        alone = given = _logits(model, inputs)
        if looking:
            true = torch.tensor([starts[row] for row in rows])
            same = model.response_starts(**inputs) == true
            found += int(same.sum())
            given = alone if bool(same.all()) else _logits(model, {**inputs, "response_start": true})
        for row, value, own in zip(rows, given, alone, strict=True):
            logits[row], unaided[row] = value, own
    return {"logits": logits, "unaided": unaided if looking else None, "starts_found": found if looking else None}


def _logits(model: Any, inputs: dict[str, Any]) -> list[float]:  # noqa: ANN401 - a model of transformers
    """The reward of each row of a batch."""
    import torch

    with torch.inference_mode():
        out = model(**inputs).logits
    rows = len(inputs["input_ids"])
    if tuple(out.shape) != (rows, 1):
        raise ValueError(f"logits have shape {tuple(out.shape)}, expected ({rows}, 1)")
    found: list[float] = out[:, 0].float().tolist()
    return found


def _batches(ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Row numbers, shortest first, in two or more batches of at most BATCH_TOKENS tokens with padding, or one row."""
    batch: list[int] = []
    for row in sorted(range(len(ids)), key=lambda row: len(ids[row])):
        if batch and (len(ids[row]) * (len(batch) + 1) > BATCH_TOKENS or 2 * len(batch) >= len(ids)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


if __name__ == "__main__":
    main(*sys.argv[1:])
