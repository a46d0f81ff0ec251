"""One cell of a study: annotate, fit, judge. What cells have in common is kept between them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.active import choose_pairs
from bench.annotate import Annotator, Pairing, draw_pairs, most_pairs
from bench.pool_evaluation import PoolEvaluator
from cache.views import TrainingView
from heads.linear import Linear, pair_differences
from heads.protocol import Head
from heads.registry import make_head
from pipeline.study_data import PoolData, Rows, StudyData, candidates, share_out
from pipeline.study_spec import Cell, HeadSpec

Row = dict[str, Any]

BATCHES = 8  # in which actively chosen pairs are annotated; the first is random


@dataclass(frozen=True)
class Annotations:
    """What an annotator said: (chosen, rejected) numbers of a pool's responses, |dr| and whether it was right."""

    pairs: Rows
    gaps: NDArray[np.float64]
    right: NDArray[np.bool_]

    def take(self, numbers: slice | Rows) -> "Annotations":
        """Some of them."""
        return Annotations(self.pairs[numbers], self.gaps[numbers], self.right[numbers])


@dataclass(frozen=True)
class Judged:
    """What fits are judged on: its rows of a matrix, contiguous, and how scores of them become numbers.

    Of a pool also what gold itself would gain, and gold's standard deviation within a prompt; NaN for pairs.
    """

    features: NDArray[np.float32]
    pool: PoolEvaluator | None
    pairs: Rows
    oracle: float
    scale: float

    def judge(self, scores: NDArray[np.float32]) -> Row:
        """The columns of the results that speak of these scores."""
        if self.pool is None:
            margins = scores[self.pairs[:, 0]].astype(np.float64) - scores[self.pairs[:, 1]]
            return {"accuracy": float(np.mean((margins > 0) + 0.5 * (margins == 0))), "n": len(margins)}
        found = self.pool.judge(scores)
        return {
            "gain": float(np.nanmean(found.gains)),
            "oracle": self.oracle,
            "scale": self.scale,
            "spearman": _known(found.spearman),
            "accuracy": _known(found.accuracy),
            "n": int(np.isfinite(found.gains).sum()),
            "best_of_n": found.curve.tolist(),
            "proxy_best_of_n": _list(found.proxy),
            "gains": _list(found.gains),
            "accuracies": _list(found.accuracies),
            "curves": [curve[np.isfinite(curve)].tolist() for curve in found.curves],
        }


@dataclass
class CellRunner:
    """Runs cells of one study, one after the other.

    Attributes:
        data: of the study.
        heads: of the study, by name; each may be judged on more.
        evaluate: what every fit is judged on beside its own pool.
        valid_share: share of the annotated pairs for early stopping.
    """

    data: StudyData
    heads: Mapping[str, HeadSpec]
    evaluate: tuple[str, ...]
    valid_share: float
    _matrices: dict[str, NDArray[np.float32]] = field(default_factory=dict, init=False)
    _judged: dict[tuple[str, str], Judged] = field(default_factory=dict, init=False)
    _choices: dict[Cell, Rows] = field(default_factory=dict, init=False)
    _drawn: dict[tuple[str, Pairing, int, bool], tuple[Rows, NDArray[np.float64]]] = field(
        default_factory=dict, init=False
    )

    def run(self, cell: Cell) -> list[Row]:
        """The cell's rows of the results; one that says why, if it fails."""
        place = {**vars(cell), "cell": cell.name}
        started = time.perf_counter()
        try:
            rows = self._rows(cell)
        except Exception as error:  # whatever it is, the other cells must not be lost for it
            rows = [{"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}]
        seconds = time.perf_counter() - started
        return [{**place, **row, "seconds": seconds} for row in rows]

    def _rows(self, cell: Cell) -> list[Row]:
        pool, spec = self.data.pools[cell.pool], self.heads[cell.head]
        head = make_head(spec.head, spec.options)
        fit, stop = self._annotations(cell)
        train = self._view(cell, fit, pool.side(cell.seed, stop=False), head)
        valid = self._view(cell, stop, pool.side(cell.seed, stop=True), head)
        history = head.fit(train, valid, seed=cell.seed)
        both = np.concatenate([fit.right, stop.right])
        told = {
            "error_rate": float(np.mean(~both)),
            "mean_gap": float(np.concatenate([fit.gaps, stop.gaps]).mean() / pool.scale),
            "epochs": history.epochs,
            "fit_seconds": history.seconds,
        }
        rows = []
        for target in dict.fromkeys((cell.pool, *self.evaluate, *spec.evaluate)):
            judged = self._target(cell.features, target)
            for scorer, scores in head.scores(judged.features).items():
                rows.append({**told, "judged_on": target, "scorer": scorer, **judged.judge(scores)})
        return rows

    def _view(self, cell: Cell, annotations: Annotations, side: Rows, head: Head) -> TrainingView:
        """The pairs, and where the head learns from attributes those of the side's responses, over the whole matrix."""
        pool, features = self.data.pools[cell.pool], self.data.features[cell.features]
        matrix = self._matrix(cell.features)
        scores: NDArray[np.float32] | None = None
        names: tuple[str, ...] = ()
        if "attributes" in head.needs:
            assert pool.attributes is not None
            known, names = pool.attributes
            scores = np.full((len(matrix), len(names)), np.nan, dtype=np.float32)
            scores[pool.rows[side]] = known[side]
        return TrainingView.of(
            matrix,
            pairs=pool.rows[annotations.pairs],
            attributes=scores,
            attribute_names=names,
            lengths=features.lengths,
            blocks=features.blocks,
        )

    def _annotations(self, cell: Cell) -> tuple[Annotations, Annotations]:
        """What is fitted on, and what stops early."""
        pool = self.data.pools[cell.pool]
        fit, stop = share_out(cell.pairs, self.valid_share)
        annotator = Annotator(cell.beta, pool.scale)
        held = self._annotated(cell, annotator, stop=True).take(slice(stop))
        could = self._annotated(cell, annotator, stop=False).take(slice(candidates(cell.choice, fit)))
        if cell.choice == "random":
            return could.take(slice(fit)), held
        asked = replace(cell, head="")  # whose fits they are for has no part in the choice, which takes seconds
        if asked not in self._choices:
            self._choices[asked] = self._chosen(cell, could, fit)
        return could.take(self._choices[asked]), held

    def _annotated(self, cell: Cell, annotator: Annotator, *, stop: bool) -> Annotations:
        """All pairs of the largest draw that any cell needs, annotated; smaller draws are its beginning."""
        pool = self.data.pools[cell.pool]
        key = (cell.pool, cell.pairing, cell.seed, stop)
        if key not in self._drawn:
            self._drawn[key] = self._draw(pool, cell, stop=stop)
        pairs, gaps = self._drawn[key]
        said, right = annotator.annotate(pairs, gaps, seed=2 * cell.seed + stop)
        return Annotations(said, gaps, right)

    def _draw(self, pool: PoolData, cell: Cell, *, stop: bool) -> tuple[Rows, NDArray[np.float64]]:
        side = pool.side(cell.seed, stop=stop)
        gold, prompts = pool.gold[side], pool.prompts[side]
        count = self.data.most[cell.pool, cell.pairing][stop]
        if not count:
            return np.empty((0, 2), dtype=np.int64), np.empty(0)
        count = min(count, most_pairs(gold, prompts, pairing=cell.pairing))  # candidates may be fewer than wanted
        pairs = draw_pairs(gold, prompts, pairing=cell.pairing, count=count, seed=2 * cell.seed + stop)
        return side[pairs], gold[pairs[:, 0]] - gold[pairs[:, 1]]

    def _chosen(self, cell: Cell, could: Annotations, count: int) -> Rows:
        """Numbers of the pairs to annotate, chosen batch by batch by a `linear` fitted on those before."""
        pool = self.data.pools[cell.pool]
        every = TrainingView.of(self._matrix(cell.features), pairs=pool.rows[could.pairs])
        annotated = np.arange(min(count, max(2, count // BATCHES)))  # pairs are in random order
        while len(annotated) < count:
            linear = Linear(l2=_CHOOSING_L2)
            linear.fit(TrainingView.of(every.features, pairs=every.pairs[annotated]))
            found = linear.solution
            batch = choose_pairs(
                pair_differences(every, found.scaler).numpy(),
                found.weight.numpy(),
                annotated,
                choice=cell.choice,
                count=min(-(-count // BATCHES), count - len(annotated)),
                l2=found.l2,
                seed=cell.seed,
            )
            annotated = np.concatenate([annotated, batch])
        return annotated

    def _target(self, features: str, target: str) -> Judged:
        key = (features, target)
        if key not in self._judged:
            self._judged[key] = self._prepare(self._matrix(features), target)
        return self._judged[key]

    def _prepare(self, matrix: NDArray[np.float32], target: str) -> Judged:
        if target not in self.data.pools:
            rows, inside = np.unique(self.data.pair_sets[target], return_inverse=True)
            return Judged(matrix[rows], None, inside.reshape(-1, 2), float("nan"), float("nan"))
        pool = self.data.pools[target]
        held = np.flatnonzero(pool.test)
        evaluator = PoolEvaluator.of(pool.gold[held], pool.prompts[held])
        oracle = float(np.nanmean(evaluator.judge(pool.gold[held]).gains))
        return Judged(matrix[pool.rows[held]], evaluator, np.empty((0, 2), dtype=np.int64), oracle, pool.scale)

    def _matrix(self, features: str) -> NDArray[np.float32]:
        if features not in self._matrices:
            self._matrices[features] = self.data.features[features].opened()
        return self._matrices[features]


_CHOOSING_L2 = 0.1  # of the linear reward that chooses; `linear`'s own strength where nothing validates it


def _list(values: NDArray[np.float64]) -> list[float | None]:
    return [_known(value) for value in values.tolist()]


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
