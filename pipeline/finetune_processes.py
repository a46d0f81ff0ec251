"""The processes of a fine-tune: how accelerate has them share devices, and which of them speaks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.backbone import choose_device, default_dtype
from pipeline.finetune_model import EXTRA
from pipeline.finetune_options import FinetuneOptions

if TYPE_CHECKING:
    from accelerate import Accelerator

# How long processes wait for each other: NCCL's ten minutes are less than one may need to write a checkpoint.
WRITING = timedelta(hours=6)


@contextmanager
def shared_work(options: FinetuneOptions) -> Iterator["Accelerator"]:
    """What shares the work among processes and devices, as `accelerate launch` or torchrun says, or alone."""
    accelerator = _accelerator(options)
    try:
        with _only_main_speaks(accelerator):
            yield accelerator
    finally:
        accelerator.end_training()
        # Accelerate keeps dtype and device for as long as the process lives; the next call may have others.
        type(accelerator.state)._reset_state(reset_partial_state=True)


@contextmanager
def memory_told(token_budget: int) -> Iterator[None]:
    """Turn a device without memory left into a ValueError that says what takes less.

    Args:
        token_budget: how many tokens are run at once.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"the device ran out of memory, with {token_budget:,} tokens at once; lower --token-budget and leave "
            "--recompute on: the same command then goes on from the last checkpoint. Full training takes 16 bytes a "
            "weight: where they alone are too much, train adapters (--lora RANK) into another --output, or shard over "
            "several GPUs (accelerate launch --use_fsdp)"
        ) from error


def shard_layers_in_float32(plugin: Any) -> None:  # noqa: ANN401 - a plugin of accelerate
    """Have the decoder's layers sharded one by one, and weights gathered and gradients added up in float32.

    `--use_fsdp` alone has accelerate make the whole model one unit, which every process then gathers whole; and gather
    in bfloat16, the heads too, which compute in float32. Autocast does the rest, as in one process.
    """
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    if plugin.auto_wrap_policy is None:  # its NO_WRAP, which nobody has to ask for
        plugin.auto_wrap_policy = transformer_auto_wrap_policy  # of `_no_split_modules`
    plugin.mixed_precision_policy = None


def _accelerator(options: FinetuneOptions) -> "Accelerator":
    try:
        from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
        from accelerate.utils import GradientAccumulationPlugin
    except ImportError as error:
        raise ValueError(f"fine-tuning needs accelerate, which is not installed; run: {EXTRA}") from error
    device = choose_device(options.device)
    dtype = options.dtype or default_dtype(device)
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision={"bfloat16": "bf16", "float32": "no"}[dtype],
        # Or a variable of the environment would have it divide the gradients: parts are weighted here.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WRITING)],
    )
    if accelerator.distributed_type == DistributedType.FSDP:
        shard_layers_in_float32(accelerator.state.fsdp_plugin)
    return accelerator


@contextmanager
def _only_main_speaks(accelerator: "Accelerator") -> Iterator[None]:
    """Of several processes one tells what is going on; all of them tell what goes wrong."""
    if accelerator.is_main_process:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        yield
