"""The proof of an export: plain transformers, in a process of its own, gets the head's scores out of what was written.

Two comparisons, because a cached vector is rounded. *Fresh*: against the head on features of the same texts run again
and not rounded; what differs is the order of float32 sums, so little is allowed. *Cached*: against the head on what the
store holds; float16 moves scores by more, and by how much is measured on the same rows by rounding the fresh features.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.metrics import spearman
from pipeline.exported import rescore
from pipeline.render import TokenRow

Scores = NDArray[np.float32]

# Of the scores' standard deviation over the rows, by what the backbone computes in.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}
LEAST_SPEARMAN = {"float32": 0.9999, "bfloat16": 0.98}
LEAST_CACHED_SPEARMAN = 0.98  # a head that float16's rounding moves by more than that is not told apart from another
LEAST_FOUND = 0.95  # share of the responses whose start a class that needs it must find by itself
ROUNDINGS = 2.0  # how many times what float16's rounding did to the rows in this run the store's may have done


@dataclass(frozen=True)
class Expected:
    """What the rows should score, all of them before the constant that a plain class leaves out.

    Attributes:
        fresh: the head on fresh features; shape (n,).
        rounded: the same after float16's rounding, where the store has it; shape (n,).
        cached: the head on the store's features; shape (n,).
        constant: what the written class leaves out.
    """

    fresh: Scores
    rounded: Scores
    cached: Scores
    constant: float


@dataclass(frozen=True)
class Agreement:
    """How far the written model's scores are from the head's.

    Attributes:
        rows: how many rows were scored.
        spread: standard deviation of their scores: what the differences are to be held against.
        fresh_difference: largest |written - fresh|.
        fresh_spearman: rank correlation of the two.
        cached_difference: largest |written - cached|.
        cached_spearman: rank correlation of the two.
        rounding: largest difference that float16's rounding alone makes on these rows.
        allowed_fresh: the most that `fresh_difference` may be.
        allowed_cached: the most that `cached_difference` may be.
        starts_found: share of rows whose response's start the class finds by itself; None where it need not.
        unaided_difference: largest |written - fresh| where the class is not told the starts; None likewise.
        model_class: what transformers made of the directory.
        dtype: what it loaded in.
        versions: of torch and transformers there.
    """

    rows: int
    spread: float
    fresh_difference: float
    fresh_spearman: float
    cached_difference: float
    cached_spearman: float
    rounding: float
    allowed_fresh: float
    allowed_cached: float
    starts_found: float | None
    unaided_difference: float | None
    model_class: str
    dtype: str
    versions: dict[str, str]

    def sentence(self) -> str:
        """What was found, in words."""
        return (
            f"{self.rows} rows by {self.model_class} in a fresh process: largest difference to fresh features "
            f"{self.fresh_difference:.1e} (Spearman {self.fresh_spearman:.6f}), to cached ones "
            f"{self.cached_difference:.1e} (Spearman {self.cached_spearman:.6f}); the scores' standard deviation is "
            f"{self.spread:.2g}{self._unaided()}"
        )

    def _unaided(self) -> str:
        if self.starts_found is None:
            return ""
        return (
            f"; by itself the class finds {self.starts_found:.1%} of the responses' starts, and its largest difference "
            f"is then {self.unaided_difference:.1e}"
        )


def rescore_elsewhere(
    directory: Path, messages: Sequence[Any], rows: Sequence[TokenRow], *, python: str = sys.executable
) -> dict[str, Any]:
    """What `pipeline.exported.rescore` finds in a fresh process, which imports nothing of this package.

    Args:
        directory: the exported directory.
        messages: the conversations.
        rows: their tokens as the renderer makes them.
        python: the interpreter; another one's environment need not have this package.

    Raises: ValueError with the process's last line if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.json", Path(folder) / "out.json"
        asked = {
            "messages": messages,
            "ids": [row.ids.tolist() for row in rows],
            "starts": [row.response_start for row in rows],
        }
        source.write_text(json.dumps(asked), encoding="utf-8")
        # -P, not -I: that would also hide packages that are installed for the user, or named by PYTHONPATH.
        command = [python, "-P", rescore.__file__, str(directory.resolve()), str(source), str(target)]
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, text=True, cwd=folder, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"plain transformers cannot use the exported model: {last}")
        found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return found


def compare(found: dict[str, Any], expected: Expected, *, dtype: str) -> Agreement:
    """Hold the written model's logits against the head's scores. Raises ValueError if anything is not as it must be."""
    _refuse(found)
    logits = np.array(found["logits"], dtype=np.float64) + expected.constant
    fresh, cached = expected.fresh.astype(np.float64), expected.cached.astype(np.float64)
    spread, rounding = float(fresh.std()), float(np.abs(expected.rounded - fresh).max())
    allowed = TOLERANCE[dtype] * spread
    agreement = Agreement(
        rows=len(fresh),
        spread=spread,
        fresh_difference=_largest(logits, fresh),
        fresh_spearman=_spearman(logits, fresh),
        cached_difference=_largest(logits, cached),
        cached_spearman=_spearman(logits, cached),
        rounding=rounding,
        allowed_fresh=allowed,
        allowed_cached=allowed + ROUNDINGS * rounding,
        starts_found=None if found["starts_found"] is None else found["starts_found"] / len(fresh),
        unaided_difference=None if found["unaided"] is None else _largest(found["unaided"], fresh - expected.constant),
        model_class=found["model_class"],
        dtype=found["dtype"],
        versions=found["versions"],
    )
    _refuse_disagreement(agreement, LEAST_SPEARMAN[dtype])
    return agreement


def _refuse_disagreement(agreement: Agreement, least: float) -> None:
    """Raise ValueError if the scores are not those of the head, or are only where the class is told the starts."""
    near = (
        agreement.fresh_difference <= agreement.allowed_fresh
        and agreement.cached_difference <= agreement.allowed_cached
    )
    if not (near and agreement.fresh_spearman >= least and agreement.cached_spearman >= LEAST_CACHED_SPEARMAN):
        raise ValueError(
            f"the exported model does not score as the head does: {agreement.sentence()}; allowed are "
            f"{agreement.allowed_fresh:.1e} and {agreement.allowed_cached:.1e}, and Spearmans of {least} and "
            f"{LEAST_CACHED_SPEARMAN}; nothing was kept"
        )
    if agreement.starts_found is not None and agreement.starts_found < LEAST_FOUND:
        raise ValueError(
            f"the class finds {agreement.starts_found:.1%} of the responses' starts by itself (it must find "
            f"{LEAST_FOUND:.0%}): many responses hold what the template writes before a response; fit on features of "
            "pool last, embed with a template that marks turns by tokens of their own, or score from Python "
            "(pipeline.Scorer); nothing was kept"
        )


def _largest(written: Sequence[float] | NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    return float(np.abs(np.asarray(written) - expected).max())


def _refuse(found: dict[str, Any]) -> None:
    """Raise ValueError for what no score would show on these rows and would on others."""
    for count in ("other_ids", "other_ids_from_text"):
        if found[count]:
            raise ValueError(
                f"the exported tokenizer gives {found[count]} of {len(found['logits'])} conversations other tokens "
                f"than the renderer ({count.replace('_', ' ')}); score from Python (pipeline.Scorer)"
            )
    if found["missing"]:
        raise ValueError(
            f"transformers lacks or does not know tensors of the export: {', '.join(found['missing'][:3])}"
        )
    if (found["num_labels"], found["problem_type"]) != (1, "regression"):
        raise ValueError(
            f"transformers reads {found['num_labels']} labels for {found['problem_type']}; expected one row"
        )
    assert not found["rooms"], f"the proof ran with {found['rooms']} loaded"


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return spearman(first, second, np.arange(len(first)), resamples=2).value
