"""What a fine-tune says and refuses while it runs: its terminal, its directory, its numbers, its processes."""

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, write_jsonl

from pipeline.finetune import finetune
from pipeline.finetune_options import FinetuneOptions

RunCLI = Callable[..., Any]


@pytest.fixture
def options(tmp_path: Path, tiny_backbone: Path) -> FinetuneOptions:
    """A fine-tune of two steps with an evaluation after each."""
    rows = [
        {
            "prompt": f"why {WORDS[number % 20]} {number}",
            "chosen": f"red {WORDS[number % 13]}",
            "rejected": f"blue {WORDS[number % 13]}",
        }
        for number in range(40)
    ]
    return FinetuneOptions(
        backbone=str(tiny_backbone),
        output=tmp_path / "out",
        store=tmp_path / "store",
        pairs=str(write_jsonl(tmp_path / "pairs.jsonl", rows)),
        template="plain",
        device="cpu",
        steps=2,
        every=1,
        lr=1e-3,
    )


class Terminal(io.StringIO):
    """A stderr that somebody watches."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_no_line_is_written_into_another(
    options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("pipeline.progress._TERMINAL_PERIOD", -1.0)
    finetune(replace(options, token_budget=60))
    said = terminal.getvalue()
    assert "tokens/" in said and "responses/" in said  # both are under way
    written = [line for line in said.split("\n") if line]
    shown = [line.rsplit("\r\033[K", 1)[-1] for line in written]  # what is left to see of each
    assert sum(line.startswith("step ") for line in shown) == 3
    evaluations = [line for line in shown if line.startswith("evaluating on ")]
    assert len(evaluations) == 3 and len(set(evaluations)) == 1
    assert not [line for line in shown if "left" in line and ("step" in line or "evaluating" in line)]


def test_a_directory_that_is_not_ours_is_left_alone(options: FinetuneOptions) -> None:
    """`head/` is a name of ours and may be a folder of theirs."""
    own = options.output / "head" / "thesis.txt"
    own.parent.mkdir(parents=True)
    own.write_text("years of work")
    with pytest.raises(ValueError, match="holds head, which no fine-tune left there; give another --output"):
        finetune(options)
    assert own.read_text() == "years of work" and list(options.output.iterdir()) == [own.parent]


def test_two_runs_do_not_write_one_directory(options: FinetuneOptions) -> None:
    from pipeline.finetune_output import held_for_writing

    with (
        held_for_writing(options.output),
        pytest.raises(ValueError, match=r"another process is fine-tuning into .*out; wait for"),
    ):
        finetune(options)
    assert [path.name for path in options.output.iterdir()] == [".lock"]
    assert finetune(options) is not None


def test_what_a_kill_left_is_no_backbone(
    options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch, run_cli: RunCLI
) -> None:
    """Between the weights and finetune.json: their seen prompts would be forgotten. The same command ends it."""
    import pipeline.finetuned as written

    def killed(path: Path, content: object) -> None:
        raise KeyboardInterrupt

    whole = written.write_json
    monkeypatch.setattr(written, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune(options)
    assert (options.output / "config.json").is_file() and (options.output / "model.safetensors").is_file()
    words = ("--backbone", options.output, "--store", options.store, "--device", "cpu")
    refused = run_cli("embed", "pairs", *words)
    assert refused.exit_code == 1 and "no finetune.json: a fine-tune that did not end" in refused.stderr
    with pytest.raises(ValueError, match=r"no finetune\.json: a fine-tune that did not end; run its command again"):
        finetune(replace(options, backbone=str(options.output), output=options.output.parent / "next"))
    monkeypatch.setattr(written, "write_json", whole)
    finetune(options)
    assert run_cli("embed", "pairs", *words).exit_code == 0


def test_the_same_files_under_another_path_are_the_same_fine_tune(
    options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(options)
    backbone = Path(options.backbone)
    monkeypatch.chdir(backbone.parent)
    finetune(replace(options, backbone=backbone.name))
    assert "is complete; nothing is left to do" in capsys.readouterr().err


def full(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("where", ["pipeline.finetune_loop.Loop.step", "accelerate.Accelerator.prepare"])
def test_a_device_without_memory_is_told_what_takes_less(
    where: str, options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step, and when the weights are put onto it."""
    monkeypatch.setattr(where, full)
    with pytest.raises(ValueError, match="out of memory, with 300 tokens at once; lower --token-budget") as error:
        finetune(replace(options, token_budget=300))
    assert "--lora RANK) into another --output" in str(error.value) and "--recompute" in str(error.value)


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("pipeline.finetune_loop.Loop._score", torch.tensor([[float("nan")]]), "a held-out score became nan after"),
        (
            "accelerate.Accelerator.clip_grad_norm_",
            torch.tensor(float("inf")),
            "the gradient's norm became inf at step 1",
        ),
    ],
)
def test_numbers_that_overflow_end_the_run_in_a_sentence(
    where: str, value: torch.Tensor, said: str, options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, lambda *_: value)
    with pytest.raises(ValueError, match=f"{said}.*lower --lr .0.001., and give another --output"):
        finetune(options)


def test_a_seed_may_be_a_time_in_nanoseconds(options: FinetuneOptions) -> None:
    summary = finetune(replace(options, seed=1_700_000_000_000_000_000))
    assert summary is not None and summary.steps == 2


def test_accelerate_is_not_told_by_the_environment_what_a_gradient_is(
    options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it keep a dtype for the next call, or give up on a process that writes for long."""
    from pipeline.finetune_processes import shared_work

    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    for dtype in ("bfloat16", "float32"):
        with shared_work(replace(options, dtype=dtype)) as accelerator:
            weight = torch.ones(1, requires_grad=True)
            accelerator.backward(3 * weight.sum())
            assert weight.grad is not None and float(weight.grad) == 3.0
            assert accelerator.mixed_precision == {"bfloat16": "bf16", "float32": "no"}[dtype]
            assert accelerator.init_handler.timeout.total_seconds() > 3600


def test_a_gpu_that_is_not_there_is_a_sentence(options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda: torch sees no GPU here"):
        finetune(replace(options, device="cuda"))


def test_odin_says_which_reward_is_judged(options: FinetuneOptions, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(replace(options, objective="odin"))
    assert "held-out loss of q + l 0." in capsys.readouterr().err
