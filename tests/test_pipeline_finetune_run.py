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
from pipeline.finetune_loop import Loop
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
    from pipeline.finetune_output import held

    with held(options.output), pytest.raises(ValueError, match="another process is fine-tuning into .*out; wait for"):
        finetune(options)
    assert not list(options.output.iterdir())
    finetune(options)
    assert not (options.output / ".lock").exists()


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
