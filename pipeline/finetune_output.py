"""The directory of a fine-tune: that it is one, that one run at a time writes it, and whether it is complete."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cache.embeddings import SEEN, TRAINING
from cache.files import held, read_json
from pipeline.checkpoints import find_checkpoints

CURVES = "curves.jsonl"
CHECKPOINTS = "checkpoints"
# Of a plan, what a hash beside it says better: the same directory goes by many paths.
NAMES = {"backbone", "template", "pairs_dataset", "attributes_dataset"}


def check_ours(output: Path) -> None:
    """Raise ValueError if a directory holds something, and that no fine-tune: files in it would be replaced."""
    if not output.is_dir() or any((output / name).is_file() for name in (CURVES, TRAINING)):
        return
    others = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    if others:
        raise ValueError(f"{output} holds {others[0]}, which no fine-tune left there; give another --output")


def check_whole(directory: Path) -> None:
    """Raise ValueError for what a killed fine-tune left: a backbone whose seen prompts nobody would leave out."""
    left = [name for name in (CURVES, CHECKPOINTS, SEEN) if (directory / name).exists()]
    if left and not (directory / TRAINING).is_file():
        raise ValueError(
            f"{directory} holds {left[0]} but no {TRAINING}: a fine-tune that did not end; run its command again, or "
            "give a copy of its weights, config.json and tokenizer alone"
        )


def held_for_writing(output: Path) -> AbstractContextManager[None]:
    """Hold the directory for writing; ValueError if another process does."""
    return held(output, f"another process is fine-tuning into {output}; wait for it or give another --output")


def finished(output: Path, plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """finetune.json of this very fine-tune when it is complete; None if there is something left to do.

    Raises: ValueError if the directory has another one.
    """
    record = read_json(output / TRAINING) if (output / TRAINING).is_file() else None
    checkpoints = find_checkpoints(output / CHECKPOINTS)
    before = [record["plan"]] if record else [checkpoints[-1].content["plan"]] if checkpoints else []
    for old in before:
        different = [name for name in plan if name not in NAMES and old.get(name) != plan[name]]
        if different:
            name = different[0]
            raise ValueError(
                f"{output} holds a fine-tune with {name} {old.get(name)}, not {plan[name]}; "
                "give another --output, or remove it to start again"
            )
    return record
