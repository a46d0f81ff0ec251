"""The processes of a fine-tune: how accelerate has them share devices, and which of them speaks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.backbone import default_dtype
from pipeline.finetune_model import EXTRA
from pipeline.finetune_options import FinetuneOptions

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def shared_work(options: FinetuneOptions) -> Iterator["Accelerator"]:
    """What shares the work among processes and devices, as `accelerate launch` or torchrun says, or alone."""
    accelerator = _accelerator(options)
    try:
        with _only_main_speaks(accelerator):
            yield accelerator
    finally:
        accelerator.end_training()


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
        from accelerate import Accelerator, DistributedType
    except ImportError as error:
        raise ValueError(f"fine-tuning needs accelerate, which is not installed; run: {EXTRA}") from error
    on_cpu = options.device == "cpu" or not torch.cuda.is_available()
    dtype = options.dtype or default_dtype("cpu" if on_cpu else "cuda")
    accelerator = Accelerator(cpu=on_cpu, mixed_precision={"bfloat16": "bf16", "float32": "no"}[dtype])
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
