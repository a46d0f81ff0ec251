"""Where a study's cells run: processes of this machine that share its matrices, or actors of a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.fit_pool import processes
from pipeline.study_cell import CellRunner, Row
from pipeline.study_data import StudyData
from pipeline.study_spec import Cell, Study

Run = Callable[[Sequence[Cell]], Iterator[tuple[Cell, list[Row]]]]  # each cell with its rows, as soon as it is done

_runners: list[CellRunner] = []  # a worker's own


@dataclass(frozen=True)
class Work:
    """What workers are given."""

    data: StudyData
    study: Study

    def runner(self) -> CellRunner:
        """What runs cells."""
        return CellRunner(self.data, self.study.heads, self.study.evaluate, self.study.split.valid_share)


@contextmanager
def process_engine(work: Work, *, jobs: int) -> Iterator[Run]:
    """What runs cells in processes with one thread each.

    Also one job is a process: a fit with several threads may differ from one with a single thread in its last bits.
    """
    with TemporaryDirectory(prefix="rewardheads-study-") as folder:
        shared = Work(work.data.in_files(Path(folder)), work.study)
        with processes(jobs, _begin, shared, folder) as executor:
            yield partial(_run_in, executor)


def _run_in(executor: ProcessPoolExecutor, cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Row]]]:
    futures = {executor.submit(_run, cell): cell for cell in cells}
    try:
        for future in as_completed(futures):
            yield futures.pop(future), future.result()  # held on to, all results of the study would be in memory
    except BrokenProcessPool as error:
        raise ValueError(
            "a process of the study died, perhaps for want of memory; what was finished is in the store: give the same "
            "command again, with fewer --jobs"
        ) from error


@contextmanager
def ray_engine(work: Work, *, jobs: int | None, address: str | None) -> Iterator[Run]:
    """What runs cells in actors of a Ray cluster, a CPU each; matrices lie in its object store, once on each node.

    Args:
        work: what cells share.
        jobs: actors; None takes one for each CPU of the cluster.
        address: of the cluster, such as "auto"; None starts one on this machine.

    Raises: ValueError if ray is not installed, there is no cluster, or an actor dies.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("--engine ray needs the package ray: pip install 'rewardheads[ray]'") from error
    try:
        ray.init(address=address, num_cpus=None if address else jobs, log_to_driver=False, include_dashboard=False)
    except ConnectionError as error:
        raise ValueError(f"no Ray cluster at {address}: {error}; start one with `ray start --head`") from error
    try:
        shared = ray.put(work)
        actor: Any = ray.remote(num_cpus=1)(RayWorker)
        yield partial(_run_on, [actor.remote(shared) for _ in range(jobs or int(ray.cluster_resources()["CPU"]))])
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"a Ray worker failed ({type(error).__name__}); what was finished is in the store: give the same command "
            "again"
        ) from error
    finally:
        ray.shutdown()


def _run_on(workers: Sequence[Any], cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Row]]]:
    import ray

    waiting, idle = iter(cells), list(workers)
    running: dict[Any, tuple[Cell, Any]] = {}
    while True:
        for worker, cell in zip(tuple(idle), waiting, strict=False):  # idle first: it must not cost a cell to find none
            running[worker.run.remote(cell)] = cell, worker
            idle.remove(worker)
        if not running:
            return
        for done in ray.wait(list(running))[0]:
            cell, worker = running.pop(done)
            idle.append(worker)
            yield cell, ray.get(done)


class RayWorker:
    """An actor that runs cells with one thread."""

    def __init__(self, work: Work) -> None:
        """Take what cells share; its arrays stay in Ray's object store."""
        import torch

        torch.set_num_threads(1)
        self.runner = work.runner()

    def run(self, cell: Cell) -> list[Row]:
        """The cell's rows."""
        return self.runner.run(cell)


def _begin(work: Work) -> None:
    _runners.append(work.runner())


def _run(cell: Cell) -> list[Row]:
    return _runners[0].run(cell)
