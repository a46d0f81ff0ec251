"""The attribute scores of a study's pool that heads are fitted on, and the refusal of those that are gold.

A pool's gold may be one of its attributes, or made of them. A head that is fitted on it is told the answers without the
annotator's errors, on every training response, and what it gains is no merit of its own.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cache.store import Store
from pipeline.study_spec import PoolSpec

LEAK = 1 - 1e-6  # R2 of gold on attributes from which on they are gold in other words


def attribute_scores(
    store: Store, pool: str, spec: PoolSpec, ids: Sequence[str], gold: NDArray[np.float64]
) -> tuple[NDArray[np.float32], tuple[str, ...]] | None:
    """(n, k) mean scores of the pool's responses, NaN where there is none, and the attributes' names.

    Raises: ValueError if an attribute is not there, or gold can be read off them.
    """
    if spec.attributes is None:
        return None
    dataset = store.dataset(spec.attributes)
    table = dataset["attributes"].group_by(["response_id", "attribute"]).aggregate([("score", "mean")])
    known = sorted(table["attribute"].unique().to_pylist())
    names = tuple(spec.use or known)
    if lacking := [name for name in names if name not in known]:
        raise ValueError(f"pools.{pool}.use: dataset {dataset.name!r} has no attribute {lacking[0]!r}; "
                         f"there are {', '.join(known)}")  # fmt: skip
    scores = _scores(table.filter(pc.is_in(table["attribute"], value_set=pa.array(names))), names, ids)
    if not np.isfinite(scores).any():
        raise ValueError(f"pools.{pool}.attributes: dataset {dataset.name!r} has no attribute of the pool's responses")
    _refuse_gold(pool, names, scores, gold)
    return scores.astype(np.float32), names


def _scores(table: pa.Table, names: Sequence[str], ids: Sequence[str]) -> NDArray[np.float64]:
    place = {key: number for number, key in enumerate(ids)}
    scores = np.full((len(ids), len(names)), np.nan)
    for key, attribute, score in zip(*(table[column].to_pylist() for column in table.column_names), strict=True):
        if key in place:
            scores[place[key], names.index(attribute)] = score
    return scores


def _refuse_gold(pool: str, names: Sequence[str], scores: NDArray[np.float64], gold: NDArray[np.float64]) -> None:
    """ValueError if an attribute, or a weighted sum of all, is gold: a head fitted on it would be told the answers."""
    told = [*((f"attribute {name!r}", scores[:, [column]]) for column, name in enumerate(names)),
            (f"a weighted sum of {', '.join(names)}", scores)]  # fmt: skip
    for what, columns in told:
        rows = np.isfinite(columns).all(axis=1)
        if rows.sum() > 2 * (columns.shape[1] + 1) and _r2(columns[rows], gold[rows]) > LEAK:
            raise ValueError(
                f"pools.{pool}: {what} is gold itself, and heads would be fitted on the answers; name other "
                f"attributes with pools.{pool}.use, or another judge"
            )


def _r2(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Of the regression of y (n,) on x (n, k) and a constant."""
    design = np.column_stack([x - x.mean(axis=0), np.ones(len(x))])
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    spread = float(y.var())
    return 1 - float(residual.var()) / spread if spread else 0.0
