"""The fits of a call: one after the other in this process, or in several that share each feature matrix.

A matrix is gathered once and written to a temporary folder; the processes map it into memory, where the operating
system keeps one copy for all of them. The folder goes with the pool, and if the process that made it is killed, the
others remove it and end.
"""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from cache.rows import StoredRows
from cache.views import TrainingView
from pipeline.fit_data import FitData, Source
from pipeline.progress import Progress

Task = TypeVar("Task")
Result = TypeVar("Result")
Given = TypeVar("Given")
Act = Callable[[FitData, Task], Result]

_data: dict[Source, FitData] = {}  # a worker's own


@dataclass(frozen=True)
class SharedData:
    """A `FitData` whose matrix is a file that any process can map, or stays in the store; pickles without it."""

    matrix: Path | StoredRows
    annotations: Mapping[str, Any]
    prompt_ids: tuple[str, ...]
    left_out: int

    @classmethod
    def of(cls, matrix: Path, data: FitData) -> Self:
        """The data with its matrix in that .npy file, which is written if it is not there."""
        features = data.view.features
        if not isinstance(features, StoredRows) and not matrix.is_file():
            np.save(matrix, features)
        kept = features if isinstance(features, StoredRows) else matrix
        names = [field.name for field in fields(TrainingView) if field.name != "features"]
        return cls(kept, {name: getattr(data.view, name) for name in names}, data.prompt_ids, data.left_out)

    def open(self) -> FitData:
        """The same data over the mapped matrix, which is read-only."""
        matrix = self.matrix
        features = np.asarray(np.load(matrix, mmap_mode="r")) if isinstance(matrix, Path) else matrix
        return FitData(TrainingView(features=features, **self.annotations), self.prompt_ids, self.left_out)


@dataclass(frozen=True)
class FitPool:
    """Where fits run.

    Attributes:
        data: what they are fitted on.
        executor: the processes; None means this one.
    """

    data: Mapping[Source, FitData]
    executor: ProcessPoolExecutor | None

    def run(
        self, act: Act[Task, Result], tasks: Sequence[tuple[Source, Task]], progress: Progress
    ) -> list[Result | Exception]:
        """The result of act(data, task) for every task in their order, or what it raised: one may fail alone.

        Raises: ValueError if a process dies.
        """
        try:
            return (
                self._run_here(act, tasks, progress) if self.executor is None else self._run_there(act, tasks, progress)
            )
        except BrokenProcessPool as error:
            raise ValueError(
                "a fitting process died, perhaps for want of memory; the runs that were finished are in the store: "
                "give the same command again with fewer --jobs"
            ) from error
        finally:
            progress.close()

    def _run_here(
        self, act: Act[Task, Result], tasks: Sequence[tuple[Source, Task]], progress: Progress
    ) -> list[Result | Exception]:
        results: list[Result | Exception] = []
        for source, task in tasks:
            try:
                results.append(act(self.data[source], task))
            except Exception as error:  # whatever it is, the other fits must not be lost for it
                results.append(error)
            progress.advance(1, 1)
        return results

    def _run_there(
        self, act: Act[Task, Result], tasks: Sequence[tuple[Source, Task]], progress: Progress
    ) -> list[Result | Exception]:
        assert self.executor is not None
        futures = [self.executor.submit(_run, act, source, task) for source, task in tasks]
        for future in as_completed(futures):
            if isinstance(error := future.exception(), BrokenProcessPool):
                raise error
            progress.advance(1, 1)
        errors = [future.exception() for future in futures]  # with the traceback from their own process
        return [
            error if isinstance(error, Exception) else future.result()
            for future, error in zip(futures, errors, strict=True)
        ]


@contextmanager
def fit_pool(sources: Sequence[Source], load: Callable[[Source], FitData], *, jobs: int) -> Iterator[FitPool]:
    """Gather every source, and offer `jobs` processes to fit on them; those of the same rows and columns share a file.

    One job on one source keeps the matrix in memory. Else the matrices lie in a folder of the system's temporary
    directory (TMPDIR names another) until the pool is left, for whatever reason.
    """
    if jobs == 1 and len(sources) == 1:
        yield FitPool({sources[0]: load(sources[0])}, None)
        return
    with TemporaryDirectory(prefix="rewardheads-fit-") as folder:
        matrices = list(dict.fromkeys(source.matrix for source in sources))
        files = {matrix: Path(folder) / f"features-{number}.npy" for number, matrix in enumerate(matrices)}
        shared = {source: SharedData.of(files[source.matrix], load(source)) for source in sources}
        data = {source: one.open() for source, one in shared.items()}
        if jobs == 1:
            yield FitPool(data, None)
        else:
            with processes(jobs, _open, shared, folder) as executor:
                yield FitPool(data, executor)


@contextmanager
def processes(jobs: int, begin: Callable[[Given], None], given: Given, folder: str) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each; what has not begun when they are left is not begun any more.

    Args:
        jobs: how many.
        begin: what each does first, with `given`.
        given: what they share; it is sent to each.
        folder: with their files; they remove it if the process that started them is killed.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share OpenMP's locks
    executor = ProcessPoolExecutor(jobs, context, _start, (begin, given, folder))
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start(begin: Callable[[Given], None], given: Given, folder: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole group; the parent alone speaks of it
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"  # for LightGBM, which is not loaded yet and brings its own OpenMP
    torch.set_num_threads(1)
    threadpool_limits(1)  # numpy's BLAS, which was loaded before this function was
    begin(given)


def _open(shared: Mapping[Source, SharedData]) -> None:
    _data.update({source: one.open() for source, one in shared.items()})


def _end_with_parent(folder: str) -> None:
    """A killed parent cleans nothing up, and an idle worker would wait for its next task for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _run(act: Act[Task, Result], source: Source, task: Task) -> Result:
    return act(_data[source], task)
