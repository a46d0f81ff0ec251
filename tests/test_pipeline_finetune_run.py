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
