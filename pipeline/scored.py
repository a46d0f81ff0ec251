"""What a head says of responses and of pairs, and the tables that `pipeline score` makes of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.records import Dataset

SIDES = ("chosen", "rejected")
LABELS = ("generator", "subset", "source")
# Columns that a table has, or gets by putting chosen_ or rejected_ in front of one: an attribute is none of them.
TAKEN = frozenset(
    ["row", "prompt", "response", *LABELS, "reward", "sd", "cached", "id", "response_id", "prompt_id", "pair_id"]
).union([*SIDES, "chosen_id", "rejected_id", "margin", "margin_sd", "p_win"])


@dataclass(frozen=True)
class Scored:
    """What a head says of n responses. Values are NaN for a response that the over-long policy leaves out.

    Attributes:
        response_ids: whose; n of them.
        rewards: every reward by name, the head's own choice first; each (n,), float32, in the head's own
            units: `Scorer.win` makes probabilities of them.
        attributes: attribute predictions in their own units, by name; each (n,), float32.
        sd: standard deviation of the reward, in its units; (n,), float32. None where the head has none.
        features: what the head has read; (n, d), float32.
        cached: whether the embedding had the response; (n,), bool.
    """

    response_ids: list[str]
    rewards: dict[str, NDArray[np.float32]]
    attributes: dict[str, NDArray[np.float32]]
    sd: NDArray[np.float32] | None
    features: NDArray[np.float32]
    cached: NDArray[np.bool_]

    @property
    def reward(self) -> NDArray[np.float32]:
        """The head's score of each response: (n,)."""
        return next(iter(self.rewards.values()))

    def take(self, rows: Sequence[int]) -> Self:
        """The responses of these row numbers, in their order; one may stand there several times."""
        at = np.array(rows, dtype=np.int64)
        return replace(
            self,
            response_ids=[self.response_ids[row] for row in rows],
            rewards={name: values[at] for name, values in self.rewards.items()},
            attributes={name: values[at] for name, values in self.attributes.items()},
            sd=None if self.sd is None else self.sd[at],
            features=self.features[at],
            cached=self.cached[at],
        )

    def columns(self) -> dict[str, NDArray[np.float32]]:
        """`reward`, then the rewards by their names, the standard deviation and the attributes; each (n,).

        An attribute whose name a table has for something else is `attribute_<name>`.
        """
        found = {"reward": self.reward, **(self.rewards if len(self.rewards) > 1 else {})}
        if self.sd is not None:
            found["sd"] = self.sd
        for attribute, values in self.attributes.items():
            name = attribute
            while name in TAKEN or name in found:
                name = f"attribute_{name}"
            found[name] = values
        return found


@dataclass(frozen=True)
class Margins:
    """What a head says of m pairs. Values are NaN where a side was left out.

    Attributes:
        rows: of both sides among the scored responses; (m, 2).
        margin: reward of the first less that of the second; (m,).
        sd: the margin's standard deviation; (m,). None where the head has none.
        p_win: P(the first wins) by each calibrated reward, by name; each (m,). {} where it was not judged on pairs.
    """

    rows: NDArray[np.int64]
    margin: NDArray[np.float32]
    sd: NDArray[np.float32] | None
    p_win: dict[str, NDArray[np.float64]]


def response_table(dataset: Dataset, scored: Scored, numbers: Sequence[int]) -> pa.Table:
    """A row for each response: where it stands, its texts and labels, all that the head says of it, its ids.

    Args:
        dataset: what was scored.
        scored: what was found, in the order of the dataset's responses.
        numbers: of the first row of the input that has it; (n,).
    """
    responses = dataset["responses"]
    table = pa.table({"row": pa.array(numbers, pa.int64()), "prompt": _prompts(responses)})
    table = _with_columns(table, responses, ["response", *_used(responses)])
    table = _with_values(table, scored.columns()).append_column("cached", pa.array(scored.cached))
    return _with_columns(table, responses, ["response_id", "prompt_id"])


def pair_table(dataset: Dataset, scored: Scored, margins: Margins, numbers: Sequence[int]) -> pa.Table:
    """A row for each pair: where it stands, texts, labels, P(win), the margin, what the head says of both sides, ids.

    Args:
        dataset: what was scored.
        scored: what was found of its responses.
        margins: of its pairs, in their order.
        numbers: of the row of the input; (m,).
    """
    pairs, responses = dataset["pairs"], dataset["responses"]
    rows = dict(zip(SIDES, margins.rows.T, strict=True))
    texts = {side: responses["response"].take(pa.array(rows[side])) for side in SIDES}
    prompts = _prompts(responses.take(pa.array(rows["chosen"])))
    table = pa.table({"row": pa.array(numbers, pa.int64()), "prompt": prompts, **texts})
    several = len(scored.rewards) > 1
    columns: dict[str, NDArray[np.floating]] = {
        f"p_win_{name}" if several else "p_win": values for name, values in margins.p_win.items()
    }
    columns["margin"] = margins.margin
    if margins.sd is not None:
        columns["margin_sd"] = margins.sd
    for side in SIDES:
        columns |= {f"{side}_{name}": values[rows[side]] for name, values in scored.columns().items()}
    table = _with_values(_with_columns(table, pairs, _used(pairs)), columns)
    return _with_columns(table, pairs, ["pair_id", "chosen_id", "rejected_id"])


def _prompts(responses: pa.Table) -> pa.Array:
    return pa.array([_in_short(prompt) for prompt in responses["prompt"].to_pylist()], pa.string())


def _in_short(prompt: str) -> str:
    """The user's text where the prompt is that alone, else the messages as they are stored, in JSON."""
    messages = json.loads(prompt)
    alone = len(messages) == 1 and messages[0]["role"] == "user"
    return str(messages[0]["content"]) if alone else prompt


def _used(table: pa.Table) -> list[str]:
    """The label columns of a table that hold anything."""
    return [name for name in LABELS if name in table.column_names and table[name].null_count < len(table)]


def _with_columns(table: pa.Table, other: pa.Table, names: Sequence[str]) -> pa.Table:
    for name in names:
        table = table.append_column(name, other[name])
    return table


def _with_values(table: pa.Table, columns: Mapping[str, NDArray[np.floating]]) -> pa.Table:
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, from_pandas=True))
    return table
