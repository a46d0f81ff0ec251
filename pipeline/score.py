"""Rewards of new conversations by a run's head, through the renderer and spec of the embedding that it was fitted on.

Texts that the embedding has are not run again: a response is known by the hash of its content. The backbone is loaded
when the first text that it lacks is asked for.
"""

import sys
import tempfile
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cache.records import Dataset, DatasetBuilder
from cache.store import Store
from heads.protocol import Head, Uncertain
from heads.registry import load_head
from pipeline.conversations import Prompt, check_conversations, refuse_unequal
from pipeline.features import centre_columns, stored
from pipeline.progress import say
from pipeline.readers import RowNumbers, read_numbered
from pipeline.rerun import Rerun
from pipeline.scored import SIDES, Margins, Scored, pair_table, response_table
from pipeline.sources import show_dataset
from pipeline.windows import Pending, pending_responses

Each = Literal["response", "pair"]
CHECKED = 4  # cached rows that are run again where the weights have another kind of name than in the spec


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
        self._opened: dict[str, Any] = {"store": Path(store).absolute(), "calibrate": calibrate}
        self._where = {"backbone": backbone, "template": template, "device": device, "dtype": dtype}
        self._loaded: Rerun | None = None

    def __reduce__(self) -> tuple[Callable[[], "Scorer"], tuple[()]]:
        """Pickled as its arguments: another process opens the store and loads the backbone itself."""
        return partial(Scorer, self.run["run_id"], **{**self._opened, **self._where}), ()

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> NDArray[np.float32]:
        """The head's score of each response to its prompt: (n,). As `score_all`, of which it is `reward`."""
        return self.score_all(prompts, responses).reward

    def score_all(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Scored:
        """All that the head says of each response to its prompt, in the order in which they are given.

        Features `centred(...)` are relative to the responses of the prompt that are given together.

        Args:
            prompts: n texts, or lists of {"role", "content"}.
            responses: n texts, which may be empty.

        Raises: ValueError if a conversation is none that could be embedded (`check_conversations`), is over-long where
            the spec says "error", or the backbone cannot be had or is not what the embedding was made with.
        """
        builder = DatasetBuilder("conversations")
        ids = [builder.add_response(*conversation) for conversation in check_conversations(prompts, responses)]
        scored = self.score_dataset(Dataset(builder.name, builder.tables(), {}))
        row_of = {identifier: row for row, identifier in enumerate(scored.response_ids)}
        return scored.take([row_of[identifier] for identifier in ids])

    def win(self, prompts: Sequence[Prompt], chosen: Sequence[str], rejected: Sequence[str]) -> NDArray[np.float64]:
        """P(chosen wins) of each pair by the head's own score: s(margin / temperature), (m,), s the logistic function.

        NaN where the over-long policy leaves a side out.

        Args:
            prompts: m texts, or lists of {"role", "content"}.
            chosen: m texts; which side is called so makes no difference but to whose probability it is.
            rejected: m texts.

        Raises: ValueError where `score_all` does, and if the run was not judged on pairs: then there is no temperature.
        """
        refuse_unequal(prompts, chosen, "chosen")
        refuse_unequal(prompts, rejected, "rejected")
        if not self._slopes:
            raise ValueError(
                f"run {self.run['run_id']} was not judged on pairs, so its margins have no temperature; run "
                "`pipeline evaluate` first, or name a dataset that it was judged on (calibrate=)"
            )
        scored, count = self.score_all([*prompts, *prompts], [*chosen, *rejected]), len(prompts)
        margins = self.margins(scored, np.arange(2 * count).reshape(2, count).T)
        return margins.p_win[next(iter(scored.rewards))]

    def reward_names(self) -> list[str]:
        """Every reward that the head gives, its own choice first. Raises ValueError if the embedding has no vectors."""
        width = sum(self._embeddings.dimension(stored(name)) for name in self.run["features"])
        return list(self.head.scores(np.zeros((1, width), dtype=np.float32)))

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

    def margins(self, scored: Scored, rows: NDArray[np.int64]) -> Margins:
        """What the head says of pairs, given as row numbers among scored responses: (m, 2).

        P(win) is by the temperature that `pipeline evaluate` fitted on held-out pairs.
        """
        first, second = rows.T
        margins = {name: values[first] - values[second] for name, values in scored.rewards.items()}
        own = next(iter(margins.values()))
        slopes = {name: slope for name, slope in self._slopes.items() if name in margins}
        p_win = {name: 0.5 * (1 + np.tanh(slope * margins[name].astype(float) / 2)) for name, slope in slopes.items()}
        if not isinstance(self.head, Uncertain):
            return Margins(rows, own, None, p_win)
        sd = self.head.margin_sd(scored.features[first], scored.features[second])
        return Margins(rows, own, np.where(np.isnan(own), np.float32(np.nan), sd), p_win)  # a side that was dropped

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
            rerun = Rerun.load(self._embeddings.spec, names, **self._where)
            if not rerun.weights_compared:
                self._compare_vectors(rerun)
            self._loaded = rerun
        return self._loaded

    def _compare_vectors(self, rerun: Rerun) -> None:
        """Raise ValueError if a few of the embedding's rows, run again, give other vectors."""
        for name in self._store.dataset_names():
            responses = self._store.dataset(name)["responses"].select(["response_id", "prompt", "response"])
            known = np.flatnonzero(self._embeddings.positions(responses["response_id"]) >= 0)[:CHECKED]
            if len(known):
                texts = [Pending(**row) for row in responses.take(pa.array(known)).to_pylist()]
                rerun.refuse_other_vectors(self._embeddings, texts)
                return
        say(
            f"note: whether {rerun.backbone.name} is what the embedding was made with is not known: no dataset of "
            "the store has its texts"
        )


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
    dataset, numbers = read_conversations(options.source, Store(options.store), format=options.format)
    each = options.each or ("pair" if len(dataset["pairs"]) else "response")
    if each == "pair" and not len(dataset["pairs"]):
        raise ValueError(f"{options.source} has no pairs; leave out --each pair")
    scored = scorer.score_dataset(dataset)
    new = len(scored.cached) - int(scored.cached.sum())
    say(f"{scorer.run['run_id']}: {len(scored.cached):,} responses, {new:,} of them not in the store")
    if each == "response":
        return response_table(dataset, scored, numbers.responses)
    row_of = {key: row for row, key in enumerate(scored.response_ids)}
    rows = [[row_of[key] for key in dataset["pairs"][f"{side}_id"].to_pylist()] for side in SIDES]
    table = pair_table(dataset, scored, scorer.margins(scored, np.array(rows, np.int64).T), numbers.pairs)
    if not any(name.startswith("p_win") for name in table.column_names):
        say("no P(win): the run was not judged on pairs; run `pipeline evaluate`, or name a dataset by --calibrate")
    return table


def read_conversations(source: str, store: Store, *, format: str | None) -> tuple[Dataset, RowNumbers]:
    """A file's or standard input's conversations, or a dataset of the store, and where they stand in it.

    Nothing is written. Of a dataset of the store the numbers are those of its own tables.
    """
    if source in store.dataset_names() and not Path(source).exists():
        dataset = store.dataset(source)
        return dataset, RowNumbers(*(list(range(len(dataset[table]))) for table in ("responses", "pairs")))
    dataset, numbers = _read_standard_input(format) if source == "-" else read_numbered(source, format=format)
    show_dataset(dataset)
    return dataset, numbers


def _read_standard_input(format: str | None) -> tuple[Dataset, RowNumbers]:
    """What stands on standard input. Raises ValueError that names it, and not the file that it is kept in."""
    content = sys.stdin.buffer.read()
    if content.strip() and not content.removeprefix(BOM_UTF8).lstrip().startswith((b"[", b"{")):
        raise ValueError(
            "standard input is neither JSON nor JSON lines, which is what - takes; give CSV, Parquet and .gz as a file"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdin.json"  # under this name both a JSON list and JSON lines are read
        path.write_bytes(content)
        try:
            return read_numbered(str(path), format=format)
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
