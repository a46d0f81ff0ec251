"""`pipeline bench fit`: how fast heads are fitted beside the published trainer, and what accuracy that costs.

Both sides get the same features in memory and the same annotated pairs, and are judged on the same pairs of other
prompts, whose better response is known because the reward is planted (`bench.planted`). Time runs from features to a
fitted head: splitting, copying, scaling and training.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.intervals import Estimate, bootstrap_mean
from bench.planted import Planted, plant
from cache.splits import is_valid
from heads.protocol import FitHistory
from heads.registry import make_head
from heads.training import compute_dtype
from pipeline import machine
from pipeline.progress import say
from pipeline.published_fit import BATCH, VALID_SHARE, Objective, layer_shapes, published_fit

TEST_PAIRS = 10_000
OUR_VALID_SHARE = 0.15  # what `pipeline fit` sets apart
PUBLISHED_NETWORK = (1024, 512)


@dataclass(frozen=True)
class BenchFitOptions:
    """Options of `pipeline bench fit`.

    Attributes:
        pairs: numbers of annotated pairs, one setting each.
        dims: dimensions of the features, one setting each.
        objectives: "bt", "clf".
        repeats: times that a fit of ours is repeated, with other seeds; the published one runs once.
        threads: torch's threads; None leaves them as they are.
        seed: of the data.
    """

    pairs: tuple[int, ...] = (10_000, 40_000)
    dims: tuple[int, ...] = (640, 2048)
    objectives: tuple[Objective, ...] = ("bt", "clf")
    repeats: int = 3
    threads: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """One procedure on one setting.

    Attributes:
        pairs: annotated pairs.
        dim: of the features.
        objective: "bt" or "clf".
        what: the procedure.
        seconds: of each repeat.
        epochs: of each repeat.
        accuracy: share of test pairs ordered as the planted reward orders them, first repeat.
        gain: accuracy less the published trainer's on the same pairs; None for that one itself.
        ratio: the published trainer's seconds for each of ours (median).
        gemm_share: rate of the training's matrix products by the machine's for the same shapes, first repeat.
        claimed: the accuracy that the published trainer's own validation split shows; None for ours.
    """

    pairs: int
    dim: int
    objective: str
    what: str
    seconds: tuple[float, ...]
    epochs: tuple[float, ...]
    accuracy: Estimate
    gain: Estimate | None
    ratio: float
    gemm_share: float
    claimed: float | None = None


@dataclass(frozen=True)
class _Run:
    """What one fit gave: seconds, epochs, floating-point operations, and how to score rows."""

    seconds: float
    epochs: float
    flops: float
    score: Callable[[NDArray[np.float32]], NDArray[np.float32]]


def bench_fit(options: BenchFitOptions) -> list[Fitted]:
    """Measure every setting. Raises: ValueError for settings that cannot be."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    found = []
    for dim in options.dims:
        test = plant(TEST_PAIRS, dim, seed=options.seed + 1, truthful=True)
        for pairs in options.pairs:
            train = plant(pairs, dim, seed=options.seed)
            for objective in options.objectives:
                found += _setting(options, train, test, objective)
    return found


def parse_numbers(text: str) -> tuple[int, ...]:
    """Positive integers joined by commas. Raises ValueError for anything else."""
    found = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in found):
        raise ValueError(f"{text!r} is not a list of positive integers; give such as 10000,40000")
    return tuple(map(int, found))


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """Objectives joined by commas. Raises ValueError for an unknown one."""
    known: tuple[Objective, ...] = ("bt", "clf")
    found = [part.strip() for part in text.split(",")]
    if unknown := [part for part in found if part not in known]:
        raise ValueError(f"objective {unknown[0]!r} is not one of {', '.join(known)}; give one or both")
    return tuple(name for name in known if name in found)


def as_dicts(rows: Sequence[Fitted]) -> list[dict[str, Any]]:
    """Every figure, as JSON takes it."""
    return [asdict(row) for row in rows]


def as_table(rows: Sequence[Fitted]) -> list[dict[str, Any]]:
    """A row for each procedure and setting, for eyes."""
    return [
        {
            "pairs": row.pairs,
            "dim": row.dim,
            "objective": row.objective,
            "what": row.what,
            "seconds": round(float(np.median(row.seconds)), 3),
            "epochs": float(np.median(row.epochs)),
            "x published": round(row.ratio, 1),
            "accuracy": _shown(row.accuracy),
            "less published": "" if row.gain is None else _shown(row.gain),
            "of GEMM rate": f"{row.gemm_share:.0%}",
            "by its own split": "" if row.claimed is None else f"{row.claimed:.4f}",
        }
        for row in rows
    ]


def _setting(options: BenchFitOptions, train: Planted, test: Planted, objective: Objective) -> list[Fitted]:
    pairs, dim = len(train.view.pairs), train.view.features.shape[1]
    shape = (pairs, dim, objective)
    say(f"{objective}, {pairs:,} pairs, {dim:,} dimensions: the published trainer")
    base, claimed = _published(train, objective, options.seed)
    right = _right(base, test)
    shapes = layer_shapes(dim)
    rate = _gemm_rate(shapes, BATCH, torch.float32)
    accuracy = bootstrap_mean(right, test.view.prompts[test.view.pairs[:, 0]])
    what = f"published: {_named(PUBLISHED_NETWORK)}, float32"
    share = base.flops / base.seconds / rate
    rows = [Fitted(*shape, what, (base.seconds,), (base.epochs,), accuracy, None, 1.0, share, claimed)]
    for hidden in (64, PUBLISHED_NETWORK):
        say(f"{objective}, {pairs:,} pairs, {dim:,} dimensions: ours, {hidden}")
        runs = [_ours(train, objective, hidden, options.seed + number) for number in range(options.repeats)]
        rows.append(_compared(shape, hidden, runs, base, right, test))
    return rows


def _compared(
    shape: tuple[int, int, str],
    hidden: int | tuple[int, ...],
    runs: Sequence[_Run],
    base: _Run,
    base_right: NDArray[np.float64],
    test: Planted,
) -> Fitted:
    prompts = test.view.prompts[test.view.pairs[:, 0]]
    right = _right(runs[0], test)
    widths = [shape[1], *((hidden,) if isinstance(hidden, int) else hidden), 1]
    dtype = compute_dtype("auto")
    rate = _gemm_rate(list(zip(widths[1:], widths[:-1], strict=True)), 1024, dtype)
    seconds = tuple(run.seconds for run in runs)
    return Fitted(
        *shape,
        what=f"ours: {_named(hidden)}, {str(dtype).removeprefix('torch.')}" + (" (default)" if hidden == 64 else ""),
        seconds=seconds,
        epochs=tuple(run.epochs for run in runs),
        accuracy=bootstrap_mean(right, prompts),
        gain=bootstrap_mean(right - base_right, prompts),
        ratio=base.seconds / float(np.median(seconds)),
        gemm_share=runs[0].flops / runs[0].seconds / rate,
    )


def _published(train: Planted, objective: Objective, seed: int) -> tuple[_Run, float]:
    view = train.view
    started = time.perf_counter()
    fitted = published_fit(view.matrix("the published trainer"), view.pairs, objective, seed=seed)
    seconds = time.perf_counter() - started
    rows = 2 * len(view.pairs) * (2 if objective == "bt" else 1)  # both orders of both sides
    flops = _flops(layer_shapes(view.features.shape[1]), fitted.epochs, rows * (1 - VALID_SHARE), rows * VALID_SHARE)
    return _Run(seconds, fitted.epochs, flops, fitted.score), fitted.own_accuracy


def _ours(train: Planted, objective: Objective, hidden: int | tuple[int, ...], seed: int) -> _Run:
    view = train.view
    head = make_head(objective, {"hidden": hidden})
    started = time.perf_counter()
    stop = is_valid([str(prompt) for prompt in view.prompts.tolist()], share=OUR_VALID_SHARE, seed=seed)
    fitting, stopping = view.subset(~stop), view.subset(stop)
    history: FitHistory = head.fit(fitting, stopping, seed=seed)
    seconds = time.perf_counter() - started
    widths = [view.features.shape[1], *((hidden,) if isinstance(hidden, int) else hidden), 1]
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    flops = _flops(shapes, history.epochs, 2 * len(fitting.pairs), 2 * len(stopping.pairs))
    return _Run(seconds, history.epochs, flops, head.score)


def _right(run: _Run, test: Planted) -> NDArray[np.float64]:
    """1 for each test pair whose truly better response scores higher; a tie counts half."""
    better, worse = run.score(test.view.matrix("judging"))[test.view.pairs].T
    return np.where(better == worse, 0.5, (better > worse).astype(np.float64))


def _flops(shapes: Sequence[tuple[int, int]], epochs: float, train_rows: float, valid_rows: float) -> float:
    """Of the matrix products: forward and two backward ones, but none for the gradient of the input; forward alone."""
    weights = [outputs * inputs for outputs, inputs in shapes]
    backward = 2 * sum(weights) - weights[0]
    return 2.0 * epochs * (train_rows * (sum(weights) + backward) + valid_rows * sum(weights))


def _gemm_rate(shapes: Sequence[tuple[int, int]], rows: int, dtype: torch.dtype) -> float:
    return machine.gemm_rate(Counter(shapes), rows, dtype=dtype, device="cpu")


def _named(hidden: int | tuple[int, ...]) -> str:
    return str(hidden) if isinstance(hidden, int) else "-".join(map(str, hidden))


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
