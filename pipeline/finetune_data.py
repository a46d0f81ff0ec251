"""What a backbone is fine-tuned on: responses as tokens, their annotations, the batches, and how a batch is cut up.

A batch is a pure function of the seed and the step, and so is who runs which part of it: a run that was killed goes on
at its step without anything else to remember, and two processes take the very batches that one would take.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cache.assembly import attributes_as_columns, pairs_as_rows
from cache.records import Dataset
from cache.views import TrainingView
from heads.smorm import joint_batches
from pipeline.fit_data import FitData, with_attributes
from pipeline.render import Renderer, TokenRow
from pipeline.windows import Pending, tokenise

Numbers = NDArray[np.int64]
ENCODED_AT_ONCE = 512
SAMPLE = 64
SEEDS = 2**63  # torch's generators take no more


@dataclass(frozen=True)
class Texts:
    """Responses and what is known of them.

    Attributes:
        rows: the tokens of the n responses.
        data: pairs, attributes and prompts as indices into `rows`; the view's features are (n, 0).
        prompt_ids: the prompts of all responses of the datasets, of those without a row too.
        cut: how many rows were shortened to the longest length.
        sample: some of the conversations, the first among them.
    """

    rows: list[TokenRow]
    data: FitData
    prompt_ids: tuple[str, ...]
    cut: int
    sample: list[Pending]

    @property
    def lengths(self) -> Numbers:
        """Tokens of each row: (n,)."""
        return np.array([len(row) for row in self.rows], dtype=np.int64)


@dataclass(frozen=True)
class Batch:
    """One step's annotations: numbers of pairs in a view, and numbers of rows whose attribute scores count."""

    pairs: Numbers
    annotated: Numbers


@dataclass(frozen=True)
class Micro:
    """A part of a batch that is run at once.

    Attributes:
        rows: the responses that are run, ascending.
        pairs: numbers of the pairs that count here; both responses of each are among `rows`.
        annotated: rows whose attribute scores count here.
    """

    rows: Numbers
    pairs: Numbers
    annotated: Numbers

    @property
    def stands_in(self) -> bool:
        """Whether nothing counts here: a process runs it because another has one part more."""
        return not (len(self.pairs) or len(self.annotated))


@dataclass
class Batches:
    """The batches of training, by step.

    Every epoch passes over all pairs and annotated rows in an order of its own; with both kinds, an epoch has as many
    steps as the longer of the two streams needs, and the shorter is spread over them (`heads.smorm.joint_batches`). The
    weight of neither term depends on that: each is a mean over its own share of the batch.

    Attributes:
        pairs: numbers of the pairs to train on (D_S).
        annotated: numbers of the annotated rows to train on (D_M); empty where the objective does not use them.
        size: pairs in a batch at most, or annotated rows where there are more of them than pairs.
        seed: draws the orders.
    """

    pairs: Numbers
    annotated: Numbers
    size: int
    seed: int
    _epoch: tuple[int, list[Batch]] = field(default=(-1, []), init=False, repr=False)

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return math.ceil(max(len(self.pairs), len(self.annotated)) / self.size)

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        epoch, number = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._draw(torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % SEEDS))
        return self._epoch[1][number]

    def _draw(self, generator: torch.Generator) -> list[Batch]:
        m, a = len(self.pairs), len(self.annotated)
        if not a:
            # Spread evenly, as `joint_batches` does: a last batch of one pair would weigh as much as a full one.
            parts = torch.randperm(m, generator=generator).tensor_split(self.per_epoch)
            return [Batch(self.pairs[index.numpy()], self.annotated) for index in parts]
        return [
            Batch(self.pairs[pairs.numpy()], self.annotated[annotated.numpy()])
            for pairs, annotated in joint_batches(m, a, (self.size, self.size), generator)
        ]


def gather_texts(
    datasets: Mapping[str, Dataset | None], renderer: Renderer, *, max_length: int, overlong: str, use: Sequence[str]
) -> Texts:
    """Tokenise every response of the datasets once, and take the pairs of the one and the attributes of the other.

    Args:
        datasets: of D_S ("pairs") and of D_M ("attributes"); one of them may be None, and both may be the same.
        renderer: as embedding renders.
        max_length: longest row in tokens.
        overlong: what happens to longer rows: "left", "right", "drop" or "error".
        use: attributes to take; none means all.

    Raises: ValueError for a row that is too long where `overlong` is "error", or an attribute that there is not.
    """
    known = [dataset for dataset in datasets.values() if dataset is not None]
    columns = ["response_id", "prompt", "response", "prompt_id"]
    responses = pa.concat_tables([dataset["responses"].select(columns) for dataset in known])
    texts, prompt_of = dict[str, Pending](), dict[str, str]()
    for key, prompt, response, prompt_id in zip(*responses.to_pydict().values(), strict=True):
        texts[key], prompt_of[key] = Pending(key, prompt, response), prompt_id
    asked, rows, cut = list(texts.values()), dict[str, TokenRow](), 0
    for start in range(0, len(asked), ENCODED_AT_ONCE):
        part = asked[start : start + ENCODED_AT_ONCE]
        window = tokenise(part, renderer, max_length=max_length, overlong=overlong)
        rows |= zip(window.ids, window.rows, strict=True)
        cut += sum(lost > 0 for lost in window.cut)
    ids = pa.array(list(rows), pa.string())
    prompts: dict[str, int] = {}
    numbers = [prompts.setdefault(prompt_of[key], len(prompts)) for key in rows]
    pairs, margins, _ = pairs_as_rows(datasets["pairs"], ids)
    names, scores = attributes_as_columns(datasets["attributes"], ids)
    kept = list(rows.values())
    view = TrainingView.of(
        np.empty((len(kept), 0), dtype=np.float32),
        prompts=np.array(numbers, dtype=np.int64),
        pairs=pairs,
        margins=margins,
        attributes=scores,
        attribute_names=names,
        lengths=np.array([len(row) - row.after - row.response_start for row in kept], dtype=np.float32),
    )
    data = FitData(with_attributes(view, use), tuple(prompts), len(texts) - len(rows))
    sample = asked[:: max(1, len(asked) // SAMPLE)][:SAMPLE]
    return Texts(kept, data, tuple(dict.fromkeys(prompt_of.values())), cut, sample)


def share_out(
    batch: Batch, pairs: Numbers, lengths: Numbers, *, processes: int, token_budget: int
) -> list[list[Micro]]:
    """Cut a batch into parts that fit in memory, as many for each process.

    Responses that a pair connects, or that are annotated, stay together, so that each is run once in a step. Parts hold
    responses of like length. Where a process has a part less, it gets one in which nothing counts: with sharded weights
    every forward pass is a meeting of all processes.

    Args:
        batch: what counts.
        pairs: all pairs of the view; shape (m, 2).
        lengths: tokens of all rows; shape (n,).
        processes: how many there are.
        token_budget: tokens in a part, with padding; responses that belong together may exceed it.

    Returns: the parts of each process.
    """
    units = sorted(_units(batch, pairs), key=lambda unit: -int(lengths[unit.rows].max()))
    shares = [_fill(units[process::processes], lengths, token_budget) for process in range(processes)]
    most = max(map(len, shares))
    shortest = units[-1].rows[:1]
    nothing = np.empty(0, dtype=np.int64)
    return [share + [Micro(shortest, nothing, nothing)] * (most - len(share)) for share in shares]


def _units(batch: Batch, pairs: Numbers) -> list[Micro]:
    """The batch in the smallest parts that share no response."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    mine = pairs[batch.pairs].reshape(-1, 2)
    rows = np.unique(np.concatenate([mine.ravel(), batch.annotated]))
    chosen, rejected = np.searchsorted(rows, mine).T
    graph = coo_array((np.ones(len(mine)), (chosen, rejected)), shape=(len(rows), len(rows)))
    count, unit = connected_components(graph, directed=False)
    annotated = unit[np.searchsorted(rows, batch.annotated)]
    return [
        Micro(rows[unit == number], batch.pairs[unit[chosen] == number], batch.annotated[annotated == number])
        for number in range(count)
    ]


def _fill(units: Sequence[Micro], lengths: Numbers, token_budget: int) -> list[Micro]:
    """Put units together, in their order, while they fit."""
    parts: list[list[Micro]] = []
    for unit in units:
        together = [*parts[-1], unit] if parts else [unit]
        if parts and _padded_tokens(together, lengths) <= token_budget:
            parts[-1] = together
        else:
            parts.append([unit])
    return [
        Micro(
            np.sort(np.concatenate([unit.rows for unit in part])),
            np.concatenate([unit.pairs for unit in part]),
            np.concatenate([unit.annotated for unit in part]),
        )
        for part in parts
    ]


def _padded_tokens(units: Sequence[Micro], lengths: Numbers) -> int:
    rows = np.concatenate([unit.rows for unit in units])
    return len(rows) * int(lengths[rows].max())
