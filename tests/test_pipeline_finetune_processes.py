"""A fine-tune by two processes, whole weights and sharded ones, killed and resumed: the steps of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import WORDS, write_jsonl

# `pipeline` that is gone, as if killed, before a step, in every process.
KILLED = """
import os
from pipeline.finetune_loop import Loop

step = Loop.step
Loop.step = lambda self, number: os._exit(7) if str(number) == os.environ["KILL_AT"] else step(self, number)
"""
# Sharded as accelerate shards under `--use_fsdp` alone, which it does on GPUs only; of torch, what fails on a CPU is
# that weights are moved off their device. Four layers and the rest are sharded, and gradients meet after every part.
SHARDED = """
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FullyShardedDataParallel
import pipeline.checkpoints as checkpoints
import pipeline.finetune_processes as processes

made, options_of = processes._accelerator, checkpoints.StateDictOptions
checkpoints.StateDictOptions = lambda **options: options_of(**{**options, "cpu_offload": False})
FullyShardedDataParallel.no_sync = None  # it would keep whole gradients


def sharding(options):
    accelerator, plugin = made(options), FullyShardedDataParallelPlugin(fsdp_version=1)
    processes.shard_layers_in_float32(plugin)

    def prepare(model, optimizer):
        plugin.set_auto_wrap_policy(model)
        sharded = FullyShardedDataParallel(
            model, auto_wrap_policy=plugin.auto_wrap_policy, mixed_precision=plugin.mixed_precision_policy,
            use_orig_params=True, device_id=torch.device("cpu"),
        )
        assert len(FullyShardedDataParallel.fsdp_modules(sharded)) == 1 + 4
        accelerator._models.append(sharded)
        type(accelerator).distributed_type, type(accelerator).is_fsdp2 = DistributedType.FSDP, False
        return sharded, accelerator.prepare_optimizer(optimizer)

    accelerator.prepare = prepare
    return accelerator


processes._accelerator = sharding
"""
MAIN = """
from pipeline.cli import main

main()
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {
            "prompt": f"why {WORDS[number % 20]} {number}",
            "chosen": f"red {WORDS[number % 13]} cat",
            "rejected": f"blue {WORDS[number % 7]}",
        }
        for number in range(120)
    ]
    return write_jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", rows)


def arguments(backbone: Path, pairs: Path, output: Path) -> list[str]:
    """ODIN's length loss takes all pairs of a batch at once; batches of five do not divide by two."""
    fixed = ["finetune", "--backbone", backbone, "--template", "plain", "--pairs", pairs, "--device", "cpu"]
    more = ["--objective", "odin", "--steps", 6, "--lr", "1e-3", "--batch-size", 5, "--token-budget", 60, "--every", 3]
    return [str(word) for word in [*fixed, "--output", output, "--store", output.parent / "store", *more, "--json"]]


def by_two(script: Path, words: list[str], *, kill_at: int) -> "subprocess.CompletedProcess[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    env = {**os.environ, "KILL_AT": str(kill_at)}
    return subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=300, check=False, env=env)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, pairs: Path) -> Path:
    """The output of a single process."""
    from click.testing import CliRunner

    from pipeline.cli import main

    output = tmp_path_factory.mktemp("one") / "out"
    done = CliRunner().invoke(main, arguments(tiny_backbone, pairs, output))
    assert done.exit_code == 0, done.output
    return output


@pytest.mark.parametrize("how", ["", SHARDED], ids=["whole", "sharded"])
def test_two_processes_take_the_steps_of_one(
    how: str, tiny_backbone: Path, pairs: Path, one: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    two, script = tmp_path / "out", tmp_path / "killed.py"
    script.write_text(KILLED + how + MAIN)
    words = arguments(tiny_backbone, pairs, two)
    killed = by_two(script, words, kill_at=4)
    assert killed.returncode != 0 and not (two / "finetune.json").exists()
    assert "to train it on cpu in" in killed.stderr and " by 2 processes" in killed.stderr
    done = by_two(script, words, kill_at=-1)
    assert done.returncode == 0, done.stderr
    assert "going on from step 3 of 6" in done.stderr
    assert done.stderr.count("step 6 of 6") == 1  # one of them speaks
    assert len(json.loads(done.stdout)) == 1  # and prints
    records = [json.loads((output / "finetune.json").read_text()) for output in (one, two)]
    assert [record["processes"] for record in records] == [1, 2]
    weights = [load_file(output / "model.safetensors") for output in (one, two)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name].float(), weight.float(), rtol=1e-2, atol=2e-4)
    single, double = (
        [json.loads(line) for line in (output / "curves.jsonl").read_text().splitlines()] for output in (one, two)
    )
    assert [line["step"] for line in single] == [line["step"] for line in double]
    for ours, theirs in zip(single, double, strict=True):
        for name in set(ours) & {"loss", "preference", "length", "orthogonality", "grad_norm", "tokens", "lr"}:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-5), name
        if "valid" in ours:
            assert theirs["valid"]["loss"] == pytest.approx(ours["valid"]["loss"], rel=1e-4)
