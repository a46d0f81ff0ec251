"""The comparing stage: scores of judged runs against a reference, on the rows that none of them was fitted on.

Controls stand beside: the length of the response, a coin, and the same heads fitted on shuffled labels. A head that
sees the prompt alone is the coin here: it gives all answers to a prompt one score, so every pair ties (credit one half)
and every choice among a prompt's responses is random.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bench.best_of_n import prompt_curves
from bench.comparison import Compared, benjamini_hochberg, compare, pair_credits
from bench.intervals import Floats
from cache.records import Dataset
from cache.store import Store
from pipeline.evaluate import attribute_column
from pipeline.fit_data import trained_prompts
from pipeline.judged import Contender, contender_of, judged_as, scores_of

Row = dict[str, Any]
RANDOM = "random"
MEAN = "mean"
_JSON_ONLY = ("seed_values", "control")
_SHARED = ("dataset", "metric", "at", "attribute", "reference", "rows", "prompts")  # of every row of the JSON


@dataclass(frozen=True)
class CompareOptions:
    """Options of `pipeline compare`.

    Attributes:
        runs: runs or groups, the reference first; NAME:SCORER takes another score than the head's first one.
        on: dataset to compare on.
        store: the store's folder.
        best_of: compare the expected gold of best-of-N, not pair accuracy; for a dataset without pairs the default is
            the number of samples that most responses' prompts have.
        judge: whose gold scores, where a dataset has several judges'.
        attribute: compare the R2 of this attribute's predictions, not pair accuracy.
    """

    runs: tuple[str, ...]
    on: str
    store: Path
    best_of: int | None = None
    judge: str | None = None
    attribute: str | None = None


@dataclass(frozen=True)
class Comparison:
    """The answer of `pipeline compare`.

    Attributes:
        dataset: what it was compared on.
        metric: pair_accuracy, best_of_n or attribute_r2.
        at: n of best-of-n.
        attribute: of attribute_r2.
        reference: the first score named.
        rows: pairs, prompts of a pool, or annotated responses.
        prompts: of those rows.
        left_out: pairs or samples of other prompts that a score lacks (dropped as over-long).
        scores: one row for each score: the reference, the others, then controls.
    """

    dataset: str
    metric: str
    at: int | None
    attribute: str | None
    reference: str
    rows: int
    prompts: int
    left_out: int
    scores: tuple[Row, ...]

    def sentence(self) -> str:
        """What was compared on what."""
        what, rows = {
            "pair_accuracy": ("pair accuracy, a tie as one half", f"{self.rows:,} pairs of {self.prompts:,} prompts"),
            "best_of_n": (f"expected gold of best of {self.at}", f"{self.rows:,} prompts"),
            "attribute_r2": (f"R2 of {self.attribute}", f"{self.rows:,} responses to {self.prompts:,} prompts"),
        }[self.metric]
        without = f"; {self.left_out:,} rows without a score left out" if self.left_out else ""
        return f"{self.dataset}: {what}, on {rows} that none was fitted on{without}; differences to {self.reference}"

    def as_table(self) -> list[Row]:
        """The rows to print."""
        return [{name: cell for name, cell in row.items() if name not in _JSON_ONLY} for row in self.scores]

    def as_dicts(self) -> list[Row]:
        """All of it, one object for each score."""
        shared = {key: getattr(self, key) for key in _SHARED}
        return [{**row, **shared} for row in self.scores]


@dataclass(frozen=True)
class _Rows:
    """What is compared: for each score one number per row and seed, (n, seeds), and the rows' prompts, (n,)."""

    values: Mapping[str, Floats]
    prompts: NDArray[np.int64]
    ties: Mapping[str, float]
    left_out: int


def compare_runs(options: CompareOptions) -> Comparison:
    """Compare every run or group with the first, and controls with it.

    Raises: ValueError with what, got and fix: an unknown run, score or dataset, a run that was not evaluated on the
        dataset as it is, nothing that no run was fitted on.
    """
    store = Store(options.store)
    dataset = store.dataset(options.on)
    named = _contenders(store, options.runs, options.attribute)
    contenders = [*named, *_shuffled(store, named, dataset)]
    scores = {one.name: scores_of(store, one, dataset) for one in contenders}
    metric, at, rows = _compared_rows(dataset, scores, _unseen(store, named, dataset), options)
    reference, *others = rows.values
    compared = compare(rows.values[reference], {name: rows.values[name] for name in others}, rows.prompts)
    challengers = [one.name for one in named[1:]]
    adjusted = benjamini_hochberg(np.array([compared[name].swap_p for name in challengers]))
    p_of = dict(zip(challengers, map(float, adjusted), strict=True))
    return Comparison(
        dataset=dataset.name,
        metric=metric,
        at=at,
        attribute=options.attribute,
        reference=reference,
        rows=len(rows.prompts),
        prompts=len(np.unique(rows.prompts)),
        left_out=rows.left_out,
        scores=(
            _row(reference, rows, None, None),
            *(_row(name, rows, found, p_of.get(name)) for name, found in compared.items()),
        ),
    )


def _compared_rows(
    dataset: Dataset, scores: Mapping[str, Floats], keep: NDArray[np.bool_], options: CompareOptions
) -> tuple[str, int | None, _Rows]:
    """The metric, n of best-of-n, and the rows; response length stands beside rewards as a control."""
    if options.attribute is not None:
        return "attribute_r2", None, _attribute_rows(dataset, scores, keep, options.attribute)
    lengths = pc.utf8_length(dataset["responses"]["response"]).to_numpy().astype(np.float64)
    beside = {**scores, "length": lengths[:, None]}
    if options.best_of is None and len(dataset["pairs"]):
        return "pair_accuracy", None, _pair_rows(dataset, beside, keep)
    at, rows = _pool_rows(dataset, beside, keep, options.best_of, options.judge)
    return "best_of_n", at, rows


def _row(name: str, rows: _Rows, found: Compared | None, adjusted: float | None) -> Row:
    """One row of the answer; what compares with the reference is None in the reference's own, and NaN becomes None."""
    by_seed = rows.values[name].mean(axis=0)
    row = {
        "score": name,
        "seeds": len(by_seed),
        "value": float(by_seed.mean()),
        "seed_sd": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
        "ties": rows.ties.get(name),
        "difference": found and found.difference.value,
        "low": found and found.difference.low,
        "high": found and found.difference.high,
        "seeds_low": found and found.over_seeds[0],
        "seeds_high": found and found.over_seeds[1],
        "better": found and found.better,
        "worse": found and found.worse,
        "mcnemar_p": found and found.sign_p,
        "swap_p": found and found.swap_p,
        "adjusted_p": adjusted,
        "detectable": found and found.detectable,
        "seed_values": by_seed.tolist(),
        "control": found is not None and adjusted is None,
    }
    return {key: None if isinstance(cell, float) and math.isnan(cell) else cell for key, cell in row.items()}


def _contenders(store: Store, names: Sequence[str], attribute: str | None) -> list[Contender]:
    if len(names) < 2:
        raise ValueError(f"comparing takes two runs or groups or more, got {len(names)}; see `pipeline ls`")
    if len(set(names)) < len(names):
        raise ValueError(f"{max(names, key=list(names).count)} is named twice; name each run or group once")
    found = [contender_of(store, name) for name in names]
    if attribute is None:
        return found
    if any(one.scorer for one in found):
        raise ValueError("--attribute compares predictions of that attribute; name runs or groups without a score")
    return [replace(one, scorer=attribute_column(attribute)) for one in found]


def _shuffled(store: Store, named: Sequence[Contender], dataset: Dataset) -> list[Contender]:
    """The fits on shuffled labels of each group named, as far as they were judged on the dataset."""
    found: dict[tuple[str, str | None], Contender] = {}
    for one in named:
        group = store.run(one.runs[0])["group"]
        controls = [
            run["run_id"]
            for run in store.matching_runs(group)
            if run["control"] is not None and run["run_id"] not in one.runs
        ]
        judged = tuple(
            run_id for run_id in controls if dataset.info["content_hash"] in judged_as(store, run_id, dataset)
        )
        if judged:
            name = f"{group}:{one.scorer} shuffled" if one.scorer else f"{group} shuffled"
            found.setdefault((group, one.scorer), Contender(name, judged, one.scorer))
    return list(found.values())


def _unseen(store: Store, named: Sequence[Contender], dataset: Dataset) -> NDArray[np.bool_]:
    """Responses whose prompt none of the runs was fitted on or stopped by: (responses,)."""
    seen: dict[str, set[str]] = {}
    for run_id in {run_id for one in named for run_id in one.runs}:
        run = store.run(run_id)
        key = str([run[name] for name in ("pairs_dataset", "pairs_hash", "attributes_dataset", "attributes_hash")])
        key += str((run["split"], run["embedding"]))
        if key not in seen:
            seen[key] = trained_prompts(store, run)
    fitted = pa.array(sorted(set().union(*seen.values())), pa.string())
    unseen = pc.invert(pc.is_in(dataset["responses"]["prompt_id"], value_set=fitted))
    found = np.asarray(unseen.to_numpy(), dtype=np.bool_)
    if not found.any():
        raise ValueError(
            f"every prompt of {dataset.name!r} was fitted on by one of the runs; compare on another dataset"
        )
    return found


def _pair_rows(dataset: Dataset, scores: Mapping[str, Floats], keep: NDArray[np.bool_]) -> _Rows:
    responses = dataset["responses"]
    ends = [
        pc.index_in(dataset["pairs"][end], value_set=responses["response_id"].combine_chunks()).to_numpy()
        for end in ("chosen_id", "rejected_id")
    ]
    chosen, rejected = (np.asarray(rows, dtype=np.int64) for rows in ends)
    inside = keep[chosen] & keep[rejected]
    whole = inside & np.all([_whole(score)[chosen] & _whole(score)[rejected] for score in scores.values()], axis=0)
    if not whole.any():
        raise ValueError(
            f"no pair of {dataset.name!r} is left that all of the runs have scores of and none was fitted on; "
            "compare on another dataset, or fewer runs"
        )
    margins = {name: score[chosen[whole]] - score[rejected[whole]] for name, score in scores.items()}
    values = {name: pair_credits(margin) for name, margin in margins.items()}
    values[RANDOM] = np.full((int(whole.sum()), 1), 0.5)
    ties = {name: float((margin == 0).sum(axis=0).mean()) for name, margin in margins.items()}
    return _Rows(values, _prompt_numbers(dataset)[chosen[whole]], ties, int(inside.sum() - whole.sum()))


def _pool_rows(
    dataset: Dataset, scores: Mapping[str, Floats], keep: NDArray[np.bool_], at: int | None, judge: str | None
) -> tuple[int, _Rows]:
    """`at`, and the expected gold of best of `at` on each prompt with as many samples; None takes the usual number."""
    table = _gold_of(dataset, judge)
    ids = dataset["responses"]["response_id"].combine_chunks()
    rows = np.asarray(pc.index_in(table["response_id"], value_set=ids).to_numpy(), dtype=np.int64)
    whole = keep[rows] & np.all([_whole(score)[rows] for score in scores.values()], axis=0)
    left_out = int((keep[rows] & ~whole).sum())
    rows, gold = rows[whole], table["score"].to_numpy()[whole]
    prompts = _prompt_numbers(dataset)[rows]
    size = np.bincount(prompts)[prompts]
    n = at or int(np.bincount(size).argmax())
    rows, gold, prompts = rows[size >= n], gold[size >= n], prompts[size >= n]
    if not len(rows):
        raise ValueError(f"no prompt of {dataset.name!r} that is new to all runs has {n} responses with scores")
    values = {
        name: np.stack([prompt_curves(column, gold, prompts)[:, n - 1] for column in score[rows].T], axis=1)
        for name, score in scores.items()
    }
    values[RANDOM] = prompt_curves(np.zeros(len(gold)), gold, prompts)[:, [n - 1]]
    return n, _Rows(values, np.unique(prompts), {}, left_out)


def _attribute_rows(dataset: Dataset, scores: Mapping[str, Floats], keep: NDArray[np.bool_], attribute: str) -> _Rows:
    """1 - (prediction - annotation)^2 / variance of the annotations, whose mean over rows is R2.

    The control predicts the annotations' mean. Several annotations of a response are averaged first.
    """
    table = dataset["attributes"].filter(pc.field("attribute") == attribute)
    known = dataset["attributes"]["attribute"].unique().to_pylist()
    if attribute not in known:
        raise ValueError(
            f"{dataset.name!r} has no annotated {attribute!r}; it has {', '.join(known) or 'no attributes'}"
        )
    table = table.group_by("response_id").aggregate([("score", "mean")])
    ids = dataset["responses"]["response_id"].combine_chunks()
    rows = np.asarray(pc.index_in(table["response_id"], value_set=ids).to_numpy(), dtype=np.int64)
    whole = keep[rows] & np.all([_whole(score)[rows] for score in scores.values()], axis=0)
    left_out = int((keep[rows] & ~whole).sum())
    rows, target = rows[whole], table["score_mean"].to_numpy()[whole]
    variance = float(np.var(target)) if len(target) else 0.0
    if variance == 0:
        raise ValueError(
            f"{len(target)} responses of {dataset.name!r} that none of the runs was fitted on have {attribute!r}, "
            "and it does not vary there; compare on another dataset or attribute"
        )
    predictions = {
        **{name: score[rows] for name, score in scores.items()},
        MEAN: np.full((len(rows), 1), target.mean()),
    }
    values = {name: 1 - np.square(score - target[:, None]) / variance for name, score in predictions.items()}
    return _Rows(values, _prompt_numbers(dataset)[rows], {}, left_out)


def _gold_of(dataset: Dataset, judge: str | None) -> pa.Table:
    if not len(dataset["gold"]):
        raise ValueError(f"dataset {dataset.name!r} has no gold scores for best-of-n; `pipeline ls` shows what has")
    judges = dataset["gold"]["judge"].unique().to_pylist()
    if judge is None and len(judges) > 1:
        raise ValueError(f"{dataset.name!r} has gold scores of {', '.join(judges)}; choose one with --judge")
    if judge is not None and judge not in judges:
        raise ValueError(f"{dataset.name!r} has no gold scores of {judge!r}; it has {', '.join(judges)}")
    return dataset["gold"].filter(pc.field("judge") == (judge or judges[0]))


def _whole(score: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(score).all(axis=1), dtype=np.bool_)


def _prompt_numbers(dataset: Dataset) -> NDArray[np.int64]:
    encoded = dataset["responses"]["prompt_id"].combine_chunks().dictionary_encode()
    return np.asarray(encoded.indices.to_numpy(), dtype=np.int64)
