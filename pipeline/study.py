"""The study stage: run a declared grid of fits, keep what is finished in batches, and go on from there.

A study's folder, `studies/<name>/`, holds `study.json` (what its levels mean) and parts of results. A part is written
whole; a kill loses the cells since the last one, and these are run again.
"""

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import bench
import cache
import heads
import pipeline
from bench.study_results import RESULTS
from cache.files import held, read_json, write_json, write_table
from cache.store import Store
from heads.training import compute_dtype
from pipeline.progress import Progress, clock, say
from pipeline.study_cell import Row
from pipeline.study_data import load_study
from pipeline.study_engines import Work, process_engine, ray_engine
from pipeline.study_spec import Cell, read_study

BATCH_CELLS = 500  # results are written after so many cells,
BATCH_SECONDS = 20.0  # or after so long: what a kill can lose
Seconds = Mapping[tuple[str, str], Sequence[tuple[int, float]]]  # of (head, features): pairs and seconds of cells


@dataclass(frozen=True)
class StudyOptions:
    """Options of `pipeline study`.

    Attributes:
        file: the study file.
        store: the store's folder.
        jobs: processes of one thread each; None takes one for each core (with ray, each CPU of the cluster).
        engine: "processes" or "ray".
        address: of the Ray cluster; None starts one on this machine.
        plan: stop after the probes, when the time that the rest takes is known.
        retry_failed: run cells again that have failed before.
    """

    file: Path
    store: Path
    jobs: int | None = None
    engine: str = "processes"
    address: str | None = None
    plan: bool = False
    retry_failed: bool = False


def run_study(options: StudyOptions) -> dict[str, Any]:
    """Run the cells of a study that the store has not.

    Returns: one row: how many fits there are, were there, were made, failed and are left, in how long.
    Raises: ValueError if the study cannot be run, before anything is; or if a process dies.
    """
    study, store = read_study(options.file), Store(options.store)
    work = Work(load_study(store, study), study)
    cells, folder = study.cells(), store.root / "studies" / study.name
    with held(folder, f"another process is running the study in {folder}; wait for it"):
        definitions = json.loads(json.dumps(work.data.definitions))  # as they are read back: lists for tuples
        known = _merged(folder, definitions)
        if options.retry_failed:
            _forget_failed(folder)
        done = finished(folder)
        left = [cell for cell in cells if cell.name not in done]
        makers = _makers(folder, made_with(), more=bool(left))
        write_json(folder / "study.json", {"cells": len(cells), **known, "made_with": makers})
        say(f"{study.name}: {len(cells):,} fits, {len(cells) - len(left):,} in the store already")
        recorder, started = Recorder(folder, timings(folder)), time.monotonic()
        if left:
            _run_left(left, recorder, work, options)
        seconds = time.monotonic() - started
    return {
        "study": study.name,
        "fits": len(cells),
        "before": len(cells) - len(left),
        "made": recorder.cells,
        "failed": recorder.failed,
        "left": len(left) - recorder.cells,
        "seconds": round(seconds, 1),
        "fits_per_minute": round(60 * recorder.cells / seconds, 1) if recorder.cells else 0.0,
    }


def _run_left(left: Sequence[Cell], recorder: "Recorder", work: Work, options: StudyOptions) -> None:
    """Time a few cells, say how long the others will take, and run them."""
    jobs = options.jobs or os.cpu_count() or 1
    engine = (
        ray_engine(work, jobs=options.jobs, address=options.address)
        if options.engine == "ray"
        else process_engine(work, jobs=min(jobs, len(left)))
    )
    with engine as run:
        if first := probes(left, recorder.seconds):
            say(f"timing {len(first)} fits: the fewest and the most pairs of each head on each features")
            recorder.record(run(first), Progress("fits", total=len(first)), {})
        probed = set(first)
        if rest := [cell for cell in left if cell not in probed]:
            expected = {cell: expected_seconds(cell, recorder.seconds) for cell in rest}
            whole = sum(expected.values()) / jobs
            say(f"{len(rest):,} fits to make: about {clock(whole)}, {60 * len(rest) / whole:,.0f} fits/min")
            if not options.plan:
                recorder.record(run(rest), Progress("fits", total=sum(expected.values())), expected)


@dataclass
class Recorder:
    """Writes results into a study's folder, a batch of cells at a time.

    Attributes:
        folder: the study's.
        seconds: how long cells took, those of earlier calls included.
        cells: how many were recorded.
        failed: how many of them failed.
    """

    folder: Path
    seconds: defaultdict[tuple[str, str], list[tuple[int, float]]]
    cells: int = 0
    failed: int = 0
    _rows: list[Row] = field(default_factory=list)
    _waiting: int = 0
    _written: float = field(default_factory=time.monotonic)

    def record(
        self, results: Iterable[tuple[Cell, list[Row]]], progress: Progress, expected: Mapping[Cell, float]
    ) -> None:
        """Take results as they come, also those that are there when something stops them."""
        try:
            for cell, rows in results:
                self._take(cell, rows)
                progress.advance(expected.get(cell, 1.0), 1)
        finally:
            self._write()
            progress.close()

    def _take(self, cell: Cell, rows: list[Row]) -> None:
        self._rows += rows
        self._waiting += 1
        self.cells += 1
        if rows[0].get("error") is None:
            self.seconds[cell.head, cell.features].append((cell.pairs, rows[0]["seconds"]))
        else:
            self.failed += 1
            say(f"{cell.name} failed: {rows[0]['error']}")
        if self._waiting >= BATCH_CELLS or time.monotonic() - self._written > BATCH_SECONDS:
            self._write()

    def _write(self) -> None:
        # First of all: stopped between the renaming of a part and here, they would be written again.
        rows, self._rows, self._waiting = self._rows, [], 0
        if rows:
            numbers = [int(path.stem.removeprefix("part-")) for path in parts(self.folder)]
            path = self.folder / f"part-{max(numbers, default=-1) + 1:05d}.parquet"
            write_table(path, pa.Table.from_pylist(rows, schema=RESULTS))
        self._written = time.monotonic()


def parts(folder: Path) -> list[Path]:
    """The files of results, in the order in which they were written."""
    return sorted(folder.glob("part-*.parquet"))


def finished(folder: Path) -> set[str]:
    """Names of the cells that have results, or have failed."""
    return {name for path in parts(folder) for name in pq.read_table(path, columns=["cell"])["cell"].to_pylist()}


def timings(folder: Path) -> defaultdict[tuple[str, str], list[tuple[int, float]]]:
    """How long the cells that did not fail took: pairs and seconds, by head and features."""
    found: defaultdict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    columns = ["cell", "head", "features", "pairs", "seconds", "error"]
    for path in parts(folder):
        table = pq.read_table(path, columns=columns).filter(pc.field("error").is_null())
        for cell in {row["cell"]: row for row in table.to_pylist()}.values():
            found[cell["head"], cell["features"]].append((cell["pairs"], cell["seconds"]))
    return found


def probes(cells: Sequence[Cell], known: Seconds) -> list[Cell]:
    """Of each head on each features, a cell with the fewest and one with the most pairs, where none was ever timed."""
    by_kind: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        by_kind.setdefault((cell.head, cell.features), []).append(cell)
    found = [
        end(some, key=lambda cell: cell.pairs)
        for kind, some in by_kind.items()
        if kind not in known
        for end in (min, max)
    ]
    return list(dict.fromkeys(found))


def expected_seconds(cell: Cell, known: Seconds) -> float:
    """How long a cell should take, by those of its head and features: linear in the pairs between their medians."""
    if (cell.head, cell.features) not in known:
        return 1.0  # its probes failed
    by_pairs: dict[int, list[float]] = {}
    for pairs, seconds in known[cell.head, cell.features]:
        by_pairs.setdefault(pairs, []).append(seconds)
    at = sorted(by_pairs)
    return float(np.interp(cell.pairs, at, [np.median(by_pairs[pairs]) for pairs in at]))


def _merged(folder: Path, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """What levels mean, those included that only earlier results have.

    Raises: ValueError if results were made from something else under the same name.
    """
    before = read_json(folder / "study.json") if (folder / "study.json").is_file() else {}
    if parts(folder) and not before:
        raise ValueError(
            f"{folder} has results, and no study.json that says what they are of; put it back, or remove the folder"
        )
    for kind, named in definitions.items():
        for name, meaning in named.items():
            if name in before.get(kind, {}) and before[kind][name] != meaning:
                raise ValueError(
                    f"{folder} has results with another {kind}.{name}: {before[kind][name]}, now {meaning}; "
                    "give the level or the study another name, or remove the folder"
                )
    if parts(folder) and before["evaluate"] != definitions["evaluate"]:
        raise ValueError(
            f"{folder} has results judged on {', '.join(before['evaluate']) or 'the pools alone'}; give the study "
            "another name to judge on something else, or remove the folder"
        )
    merged = {kind: {**before.get(kind, {}), **named} for kind, named in definitions.items()}
    return {**merged, "evaluate": definitions["evaluate"]}


def made_with() -> dict[str, Any]:
    """What results depend on beside the study: library versions, a hash of the code, and the dtype of products."""
    rooms = [Path(room.__file__ or "").parent for room in (cache, heads, bench, pipeline)]
    sources = [path.read_bytes() for room in rooms for path in sorted(room.rglob("*.py"))]
    return {
        "versions": {name: version(name) for name in ("rewardheads", "torch", "numpy", "scipy", "lightgbm")},
        "code": hashlib.sha256(b"".join(sources)).hexdigest()[:16],
        "precision": str(compute_dtype("auto")).removeprefix("torch."),
    }


def _makers(folder: Path, now: Mapping[str, Any], *, more: bool) -> list[Mapping[str, Any]]:
    """What the study's results were made with so far, and what `more` will be made with.

    Raises: ValueError if products were rounded otherwise before: one head would differ from another by the machine.
    """
    before = read_json(folder / "study.json").get("made_with", []) if parts(folder) else []
    if not more or now in before:
        return list(before)
    for one in before:
        if one["precision"] != now["precision"]:
            raise ValueError(
                f"{folder} has results of a machine that multiplies in {one['precision']}, and this one does in "
                f"{now['precision']}; go on there, or give the study another name"
            )
    if before:
        say(f"{folder} has results of other code or libraries; study.json tells which, and results are mixed from here")
    return [*before, now]


def _forget_failed(folder: Path) -> None:
    for path in parts(folder):
        table = pq.read_table(path)
        kept = table.filter(pc.field("error").is_null())
        if len(kept) < len(table):
            write_table(path, kept)
