"""The gold score of each response of a pool by a judge: one number for a text, however often it was sampled."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cache.records import Dataset

ALL_ATTRIBUTES = "attributes"  # the judge that is the mean of all attributes


@dataclass(frozen=True)
class GoldPool:
    """The responses of a dataset that have gold, each once.

    Attributes:
        response_ids: the n responses, in the dataset's order.
        prompt_ids: the prompt of each.
        prompts: its number; shape (n,).
        gold: mean gold score of each, in the judge's units; shape (n,).
        judge: whose gold it is.
    """

    response_ids: list[str]
    prompt_ids: list[str]
    prompts: NDArray[np.int64]
    gold: NDArray[np.float64]
    judge: str


def gold_pool(dataset: Dataset, judge: str | None = None) -> GoldPool:
    """The dataset's gold scores by one judge.

    Attributes can judge too: an attribute by its name, and "attributes" is the mean of all of them, each standardised
    over the dataset. A response that lacks one of them has no gold then. Several scores of one response are averaged.

    Raises: ValueError that lists the judges if there is none of that name, or none is named and it is not clear which.
    """
    chosen = _choose(dataset, judge)
    scores = _scores(dataset, chosen)
    responses = dataset["responses"]
    ids = responses["response_id"].to_pylist()
    found = [(identifier, prompt, scores[identifier])
             for identifier, prompt in zip(ids, responses["prompt_id"].to_pylist(), strict=True)
             if identifier in scores]  # fmt: skip
    prompts = [prompt for _, prompt, _ in found]
    return GoldPool(
        response_ids=[identifier for identifier, _, _ in found],
        prompt_ids=prompts,
        prompts=np.unique(prompts, return_inverse=True)[1].astype(np.int64),
        gold=np.array([score for _, _, score in found], dtype=np.float64),
        judge=chosen,
    )


def _choose(dataset: Dataset, judge: str | None) -> str:
    judges = sorted(dataset["gold"]["judge"].unique().to_pylist())
    attributes = sorted(dataset["attributes"]["attribute"].unique().to_pylist())
    known = [*judges, *attributes, *([ALL_ATTRIBUTES] if attributes else [])]
    if not known:
        raise ValueError(
            f"dataset {dataset.name!r} has no gold scores and no attributes; take a pool (`pipeline ls` shows what "
            "each dataset has)"
        )
    if judge is None and len(judges) == 1:
        return str(judges[0])
    if judge is None or judge not in known:
        what = "which judge?" if judge is None else f"no judge {judge!r};"
        raise ValueError(f"{what} dataset {dataset.name!r} can be judged by {', '.join(known)}")
    return judge


def _scores(dataset: Dataset, judge: str) -> dict[str, float]:
    gold = dataset["gold"].filter(pc.field("judge") == judge)
    if len(gold):
        return _means(gold["response_id"], gold["score"])
    table = dataset["attributes"]
    if judge != ALL_ATTRIBUTES:
        table = table.filter(pc.field("attribute") == judge)
        return _means(table["response_id"], table["score"])
    by_attribute = [
        _standardised(_means(rows["response_id"], rows["score"]))
        for name in table["attribute"].unique().to_pylist()
        for rows in [table.filter(pc.field("attribute") == name)]
    ]
    whole = set.intersection(*(set(scores) for scores in by_attribute))
    return {key: float(np.mean([scores[key] for scores in by_attribute])) for key in whole}


def _means(ids: pa.ChunkedArray, scores: pa.ChunkedArray) -> dict[str, float]:
    table = pa.table({"id": ids, "score": scores}).group_by("id").aggregate([("score", "mean")])
    return dict(zip(table["id"].to_pylist(), table["score_mean"].to_pylist(), strict=True))


def _standardised(scores: dict[str, float]) -> dict[str, float]:
    values = np.array(list(scores.values()))
    spread = float(values.std()) or 1.0
    return {key: (score - float(values.mean())) / spread for key, score in scores.items()}
