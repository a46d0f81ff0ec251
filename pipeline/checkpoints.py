"""Checkpoints of a fine-tune on disk: safetensors and JSON, each whole or absent.

A checkpoint is a folder `step-<steps done>` with model.safetensors (what is trained), optimizer.safetensors and,
written last, checkpoint.json: a folder without it is not there. The state of random generators is not kept because
there is none: a step seeds them by its own number.
"""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from cache.files import read_json, write_json
from heads.saving import write_safetensors

SEPARATOR = "::"  # between a weight's name and the name of what the optimizer keeps of it


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its folder, the steps done before it, and what checkpoint.json says beside."""

    directory: Path
    step: int
    content: Mapping[str, Any]

    def load_model(self, model: nn.Module) -> None:
        """Put the trained weights into a model, wrapped for several processes or not.

        Raises: ValueError if damaged, or of another model: a weight that is trained is missing, or one is too many.
        """
        weights: dict[str, Any] = {**_read(self.directory / "model.safetensors")}
        # Not by `strict`, which would miss what is frozen, and so is not in the file, or else let any name pass.
        trained = get_model_state_dict(model, options=StateDictOptions(ignore_frozen_params=True))
        different = sorted(trained.keys() ^ weights.keys())
        if different:
            raise ValueError(
                f"{self.directory} has other weights than are trained here: {len(different)} names are in one alone, "
                f"first {different[0]}; give another --output, or remove it to start again"
            )
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, strict=False))

    def load_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put its state into an optimizer of the model. Raises ValueError if damaged."""
        kept = _read(self.directory / "optimizer.safetensors")
        if not kept:  # before the first step
            return
        state: dict[str, Any] = {}
        for key, tensor in kept.items():
            weight, _, name = key.rpartition(SEPARATOR)
            state.setdefault(weight, {})[name] = tensor
        content = get_optimizer_state_dict(model, optimizer)
        content["state"] = state
        set_optimizer_state_dict(model, optimizer, content, options=StateDictOptions(full_state_dict=True))


def gather_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The trained weights, and what the optimizer keeps of them, on the CPU; every process must call this.

    An optimizer that has not stepped has nothing: torch's own function would have it step on gradients of 0 first, and
    AdamW's bias corrections would be a step ahead ever after.

    Returns: both by name, whole on the main process and empty on others.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    if not optimizer.state:
        return weights, {}
    kept: Any = get_optimizer_state_dict(model, optimizer, options=options).get("state", {})
    flat = {f"{weight}{SEPARATOR}{name}": tensor for weight, state in kept.items() for name, tensor in state.items()}
    return weights, flat


def write_checkpoint(
    folder: Path, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], content: Mapping[str, Any]
) -> Checkpoint:
    """Write what `gather_state` gave after `step` steps."""
    directory = folder / f"step-{step:08d}"
    _write(directory / "model.safetensors", weights)
    _write(directory / "optimizer.safetensors", state)
    write_json(directory / "checkpoint.json", {"step": step, **content})
    return Checkpoint(directory, step, content)


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """The whole checkpoints of a folder, the earliest first."""
    found = []
    for path in sorted(folder.glob("step-*/checkpoint.json")):
        content = read_json(path)
        found.append(Checkpoint(path.parent, content["step"], content))
    return found


def prune_checkpoints(folder: Path, keep: Collection[int]) -> None:
    """Remove the checkpoints of all steps but these, and what a kill left of others."""
    for directory in folder.glob("step-*"):
        if int(directory.name.removeprefix("step-")) not in keep:
            (directory / "checkpoint.json").unlink(missing_ok=True)  # first: what is left of it is no checkpoint
            shutil.rmtree(directory)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_safetensors(path, {key: tensor.contiguous() for key, tensor in tensors.items()})


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return dict(safetensors.torch.load_file(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} is missing or damaged ({error}); remove the checkpoint's folder to go on from the one before"
        ) from error
