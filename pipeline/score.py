"""Rewards of new conversations by a run's head, through the renderer and spec of the embedding that it was fitted on.

Texts that the embedding has are not run again: a response is known by the hash of its content. The backbone is loaded
when the first text that it lacks is asked for.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cache.records import Dataset, DatasetBuilder, Message
from cache.store import Store
from heads.protocol import Head, Uncertain
from heads.registry import load_head
from pipeline.features import centre_columns, stored
from pipeline.progress import say
from pipeline.readers import read_source
from pipeline.rerun import Rerun
from pipeline.sources import show_dataset
from pipeline.windows import pending_responses

Prompt = str | Sequence[Message]
SIDES = ("chosen", "rejected")
LABELS = ("generator", "subset", "source")
Each = Literal["response", "pair"]


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `pipeline score`.

    Attributes:
        run: a run's id, or a group with one run that is no control.
        source: a file, "-" for standard input (JSON or JSON lines), or the name of a dataset in the store.
        store: the store's folder.
        format: force a format instead of recognising it from the columns.
        each: a row for each "response" or "pair"; None takes pairs where the source has them.
        calibrate: the evaluated dataset whose temperature makes P(win) of a margin; None takes the run's own pairs.
        backbone: where the backbone is now; None takes the name in the spec.
        template: the chat template; None takes the name in the spec.
        device: "cpu" or "cuda"; None takes the GPU if there is one.
        dtype: compute dtype; None takes the spec's.
    """

    run: str
    source: str
    store: Path
    format: str | None = None
    each: Each | None = None
    calibrate: str | None = None
    backbone: str | None = None
    template: str | None = None
    device: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Scored:
    """What a head says of n responses. Values are NaN for a response that the over-long policy leaves out.

    Attributes:
        response_ids: whose; n of them.
        rewards: every reward by name, the head's own choice first; each (n,).
        attributes: attribute predictions in their own units, by name; each (n,).
        sd: standard deviation of the reward, where the head has one; (n,).
        features: what the head has read; (n, d).
        cached: whether the embedding had the response; (n,).
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

    def columns(self) -> dict[str, NDArray[np.float32]]:
        """`reward`, then the rewards by their names, the standard deviation and the attributes; each (n,)."""
        found = {"reward": self.reward, **(self.rewards if len(self.rewards) > 1 else {})}
        if self.sd is not None:
            found["sd"] = self.sd
        for name, values in self.attributes.items():
            found[f"attribute_{name}" if name in found else name] = values
        return found


class Scorer:
    """A run as a function from conversations to rewards.

    Attributes:
        run: the run's run.json.
        head: its head.
    """

    def __init__(
        self,
        run: str,
        *,
        store: Path | str = "store",
        calibrate: str | None = None,
        backbone: str | None = None,
        template: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        """Open a run; the arguments are those of `ScoreOptions`. Raises ValueError if it or its embedding is gone."""
        self._store = Store(Path(store))
        self.run = one_run(self._store, run)
        directory = self._store.run_directory(self.run["run_id"])
        self.head: Head = load_head(directory)
        self._embeddings = self._store.embeddings(self.run["embedding"])
        self._slopes = _slopes(directory / "metrics.parquet", calibrate or self.run["pairs_dataset"])
        if calibrate is not None and not self._slopes:
            raise ValueError(
                f"run {self.run['run_id']} was not judged on pairs of {calibrate!r}; "
                f"run `pipeline evaluate {self.run['run_id']} --on {calibrate}` first"
            )
        self._where = {"backbone": backbone, "template": template, "device": device, "dtype": dtype}
        self._loaded: Rerun | None = None

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> NDArray[np.float32]:
        """The reward of each response to its prompt, a text or messages: (n,).

        NaN for one that the spec's over-long policy leaves out.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts for {len(responses)} responses; give one prompt for each")
        builder = DatasetBuilder("conversations")
        ids = [builder.add_response(_messages(p), response) for p, response in zip(prompts, responses, strict=True)]
        scored = self.score_dataset(Dataset(builder.name, builder.tables(), {}))
        row_of = {identifier: row for row, identifier in enumerate(scored.response_ids)}
        return scored.reward[[row_of[identifier] for identifier in ids]]

    def score_dataset(self, dataset: Dataset) -> Scored:
        """What the head says of every response of a dataset, in its order."""
        ids = dataset["responses"]["response_id"].to_pylist()
        cached = np.array([key in self._embeddings for key in ids], dtype=bool)
        features, there = self._features(dataset, ids, cached)
        features[there] = kept = self._centred(features[there], dataset["responses"]["prompt_id"].filter(there))

        def spread(values: NDArray[np.float32]) -> NDArray[np.float32]:
            out = np.full(len(ids), np.nan, dtype=np.float32)
            out[there] = values
            return out

        return Scored(
            ids,
            rewards={name: spread(values) for name, values in self.head.scores(kept).items()},
            attributes={name: spread(values) for name, values in self.head.predict_attributes(kept).items()},
            sd=spread(self.head.sd(kept)) if isinstance(self.head, Uncertain) else None,
            features=features,
            cached=cached,
        )

    def win_probability(self, scored: Scored, pairs: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """P(the first wins) by each calibrated reward, for row numbers (m, 2): s(margin / temperature), each (m,).

        The temperature is the one that `pipeline evaluate` fitted on held-out pairs; {} where it has not.
        """
        margins = {name: values[pairs[:, 0]] - values[pairs[:, 1]] for name, values in scored.rewards.items()}
        slopes = {name: slope for name, slope in self._slopes.items() if name in margins}
        return {name: 0.5 * (1 + np.tanh(slope * margins[name].astype(float) / 2)) for name, slope in slopes.items()}

    def response_table(self, dataset: Dataset, scored: Scored) -> pa.Table:
        """A row for each response: its text and labels, all that the head says of it, its ids."""
        responses = dataset["responses"]
        table = responses.select(["response", *_used(responses)])
        for name, values in scored.columns().items():
            table = table.append_column(name, pa.array(values, from_pandas=True))
        table = table.append_column("cached", pa.array(scored.cached))
        return _with_columns(table, responses, ["response_id", "prompt_id"])

    def pair_table(self, dataset: Dataset, scored: Scored) -> pa.Table:
        """A row for each pair: both texts and labels, P(win), the margin, what the head says of both sides, ids."""
        pairs, row_of = dataset["pairs"], {key: row for row, key in enumerate(scored.response_ids)}
        rows = {side: np.array([row_of[key] for key in pairs[f"{side}_id"].to_pylist()], np.int64) for side in SIDES}
        numbers = np.column_stack([rows[side] for side in SIDES])
        p, several = self.win_probability(scored, numbers), len(scored.rewards) > 1
        columns: dict[str, NDArray[np.floating]] = {f"p_win_{name}" if several else "p_win": p[name] for name in p}
        columns["margin"] = scored.reward[numbers[:, 0]] - scored.reward[numbers[:, 1]]
        if isinstance(self.head, Uncertain):
            margin_sd = self.head.margin_sd(*(scored.features[rows[side]] for side in SIDES))
            columns["margin_sd"] = np.where(np.isnan(columns["margin"]), np.nan, margin_sd)  # a side that was dropped
        for side in SIDES:
            columns |= {f"{side}_{name}": values[rows[side]] for name, values in scored.columns().items()}
        table = pa.table({side: dataset["responses"]["response"].take(pa.array(rows[side])) for side in SIDES})
        table = _with_columns(table, pairs, _used(pairs))
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values, from_pandas=True))
        return _with_columns(table, pairs, ["pair_id", "chosen_id", "rejected_id"])

    def _features(
        self, dataset: Dataset, ids: Sequence[str], cached: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Features of every response (n, d), zero where there are none, and which have some (n,)."""
        names: list[str] = [stored(name) for name in self.run["features"]]
        known = self._embeddings.gather([key for key, here in zip(ids, cached, strict=True) if here], names)
        todo = pending_responses([dataset], self._embeddings).todo
        new = self._rerun.run(todo) if todo else None
        width = new.matrix.shape[1] if new is not None and new.ids else known.shape[1]
        features, there = np.zeros((len(ids), width), dtype=np.float32), cached.copy()
        features[cached] = known
        if new is not None and new.ids:
            row_of = {identifier: row for row, identifier in enumerate(ids)}
            rows = [row_of[identifier] for identifier in new.ids]
            features[rows], there[rows] = new.matrix, True
        return features, there

    def _centred(self, features: NDArray[np.float32], prompts: pa.ChunkedArray) -> NDArray[np.float32]:
        """The features with those less their mean over a prompt's responses that the run was fitted on so: (n, d)."""
        names: list[str] = self.run["features"]
        if names == [stored(name) for name in names]:
            return features
        numbers = prompts.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        return centre_columns(features, numbers, names, [self._embeddings.dimension(stored(name)) for name in names])

    @property
    def _rerun(self) -> Rerun:
        if self._loaded is None:
            names = [stored(name) for name in self.run["features"]]
            self._loaded = Rerun.load(self._embeddings.spec, names, **self._where)
        return self._loaded


def score(options: ScoreOptions) -> pa.Table:
    """Run the stage: a table with a row for each response, or for each pair.

    Raises: ValueError if the run, its embedding or backbone is gone, or the source cannot be read or has no pairs.
    """
    scorer = Scorer(
        options.run,
        store=options.store,
        calibrate=options.calibrate,
        backbone=options.backbone,
        template=options.template,
        device=options.device,
        dtype=options.dtype,
    )
    dataset = read_conversations(options.source, Store(options.store), format=options.format)
    each = options.each or ("pair" if len(dataset["pairs"]) else "response")
    if each == "pair" and not len(dataset["pairs"]):
        raise ValueError(f"{options.source} has no pairs; leave out --each pair")
    scored = scorer.score_dataset(dataset)
    new = len(scored.cached) - int(scored.cached.sum())
    say(f"{scorer.run['run_id']}: {len(scored.cached):,} responses, {new:,} of them not in the store")
    if each == "response":
        return scorer.response_table(dataset, scored)
    table = scorer.pair_table(dataset, scored)
    if not any(name.startswith("p_win") for name in table.column_names):
        say("no P(win): the run was not judged on pairs; run `pipeline evaluate`, or name a dataset by --calibrate")
    return table


def read_conversations(source: str, store: Store, *, format: str | None) -> Dataset:
    """A file's or standard input's conversations, or a dataset of the store; nothing is written."""
    if source in store.dataset_names() and not Path(source).exists():
        return store.dataset(source)
    dataset = _read_standard_input(format) if source == "-" else read_source(source, format=format)
    show_dataset(dataset)
    return dataset


def _read_standard_input(format: str | None) -> Dataset:
    """What stands on standard input. Raises ValueError that names it, and not the file that it is kept in."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdin.json"  # under this name both a JSON list and JSON lines are read
        path.write_bytes(sys.stdin.buffer.read())
        try:
            return read_source(str(path), format=format)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "standard input")) from error


def one_run(store: Store, name: str) -> dict[str, Any]:
    """The run of that id, or the only run of that group that is no control. Raises ValueError listing them else."""
    runs = {run["run_id"]: run for run in store.matching_runs(name)}
    if name in runs:
        return runs[name]
    real = [run_id for run_id, run in runs.items() if run["control"] is None]
    if len(real) != 1:
        raise ValueError(f"group {name!r} has {len(real)} runs ({', '.join(real)}); name one of them")
    return runs[real[0]]


def _messages(prompt: Prompt) -> Sequence[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _slopes(metrics: Path, dataset: str | None) -> dict[str, float]:
    """1 / temperature of each reward, as fitted on the dataset's held-out pairs; {} if it was not judged there.

    A temperature that is not there was infinite: the reward says nothing of who wins.
    """
    if dataset is None or not metrics.is_file():
        return {}
    rows: list[Mapping[str, Any]] = pq.read_table(metrics).to_pylist()
    found = [
        row for row in rows if (row["dataset"], row["metric"]) == (dataset, "temperature") and row["subset"] is None
    ]
    return {row["scorer"]: 1 / row["value"] if row["value"] else 0.0 for row in found}


def _used(table: pa.Table) -> list[str]:
    """The label columns of a table that hold anything."""
    return [name for name in LABELS if name in table.column_names and table[name].null_count < len(table)]


def _with_columns(table: pa.Table, other: pa.Table, names: Sequence[str]) -> pa.Table:
    for name in names:
        table = table.append_column(name, other[name])
    return table
