"""From tables and vectors to a `TrainingView`: one row per response that the datasets speak of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cache.embeddings import Embeddings
from cache.records import Dataset
from cache.rows import FLOAT, Features
from cache.vectors import scalar_names
from cache.views import TrainingView

RESPONSES = pa.schema(
    [("response_id", pa.string()), ("prompt_id", pa.string()), ("length", pa.int32()), ("position", pa.int64())]
)
IN_MEMORY = 2**30  # bytes of float32 features; a larger matrix stays on disk


@dataclass(frozen=True)
class Assembled:
    """A view and whose rows they are.

    Attributes:
        view: features, pairs and attributes as indices into one matrix.
        response_ids: id of each of the n rows.
        prompt_ids: the row's prompt; shape (n,).
        lengths: characters of the row's response; shape (n,).
        pair_rows: for each pair of the view its row number in pairs.parquet; shape (m,).
        left_out: responses without a vector (dropped as over-long), which no row stands for.
    """

    view: TrainingView
    response_ids: list[str]
    prompt_ids: list[str]
    lengths: NDArray[np.int64]
    pair_rows: NDArray[np.int64]
    left_out: int


def assemble(
    embeddings: Embeddings,
    features: Sequence[str],
    *,
    pairs: Dataset | None = None,
    attributes: Dataset | None = None,
    pool: Dataset | None = None,
    in_memory: int = IN_MEMORY,
) -> Assembled:
    """Build the view over the responses of up to three datasets (which may be the same one).

    Args:
        embeddings: where the vectors are.
        features: vector columns to put side by side.
        pairs: dataset whose pairs to take.
        attributes: dataset whose attribute scores to take; several scores of one response are averaged, which gives
            the squared error the same minimum.
        pool: dataset whose responses to take without their annotations.
        in_memory: bytes of float32 features that may be held at once. A larger matrix stays on disk
            (`cache.rows.StoredRows`), its rows in store order, and heads stream it within these bytes.

    Raises: ValueError if a dataset is not embedded under this spec.
    """
    datasets = list({id(dataset): dataset for dataset in (pairs, attributes, pool) if dataset is not None}.values())
    table, left_out = _responses(datasets, embeddings)
    blocks = _blocks(embeddings, features)
    on_disk = len(table) * sum(dimension for _, dimension in blocks) * FLOAT > in_memory
    if on_disk:
        table = table.sort_by("position")
    ids = table["response_id"].combine_chunks()
    response_ids: list[str] = ids.to_pylist()
    prompts = table["prompt_id"].combine_chunks().dictionary_encode()  # numbered in the order of first appearance
    numbers = prompts.indices.to_numpy().astype(np.int64)
    names_of_prompts = prompts.dictionary.to_pylist()
    pair_table, margins, pair_rows = pairs_as_rows(pairs, ids)
    names, scores = attributes_as_columns(attributes, ids)
    view = TrainingView(
        features=_features(embeddings, response_ids, features, in_memory if on_disk else None),
        lengths=_tokens(embeddings, response_ids),
        blocks=blocks,
        prompts=numbers,
        pairs=pair_table,
        margins=margins,
        attributes=scores,
        attribute_names=names,
    )
    lengths = table["length"].to_numpy().astype(np.int64)
    prompt_ids = [names_of_prompts[number] for number in numbers.tolist()]  # one string for all rows of a prompt
    if on_disk:
        pa.default_memory_pool().release_unused()  # what was freed on the way here would stay the process's
    return Assembled(view, response_ids, prompt_ids, lengths, pair_rows, left_out)


def _responses(datasets: Sequence[Dataset], embeddings: Embeddings) -> tuple[pa.Table, int]:
    """Each embedded response once, in the order of first appearance, and how many the over-long policy dropped.

    Columns: response_id, prompt_id, length in characters, position in the embedding.
    """
    tables, left_out = [RESPONSES.empty_table()], set[str]()
    for dataset in datasets:
        responses = dataset["responses"]
        positions = embeddings.positions(responses["response_id"])
        left_out |= _left_out(dataset, embeddings, responses["response_id"].filter(pa.array(positions < 0)).to_pylist())
        columns = [responses["response_id"], responses["prompt_id"], pc.utf8_length(responses["response"])]
        table = pa.table([*columns, pa.array(positions)], schema=RESPONSES)
        tables.append(table.filter(pa.array(positions >= 0)))
    table = pa.concat_tables(tables)
    first = np.sort(np.unique(table["position"].to_numpy(), return_index=True)[1])
    return table.take(pa.array(first)), len(left_out)


def _left_out(dataset: Dataset, embeddings: Embeddings, missing: Sequence[str]) -> set[str]:
    """The responses without a vector, if the over-long policy dropped them all; else ValueError."""
    unexplained = sum(identifier not in embeddings.dropped for identifier in missing)
    if unexplained:
        spec = embeddings.spec
        raise ValueError(
            f"dataset {dataset.name!r} has {unexplained:,} of {len(dataset['responses']):,} responses without a vector "
            f"in embedding {spec.fingerprint} ({spec.backbone}, {', '.join(spec.features)}, {spec.template} template); "
            f"run `pipeline embed {dataset.name}` with that spec's options"
        )
    return set(missing)


def _features(
    embeddings: Embeddings, response_ids: Sequence[str], features: Sequence[str], budget: int | None
) -> Features:
    """The responses' vectors in memory, or on disk with a budget for reading them."""
    if budget is None:
        return embeddings.gather(response_ids, features)
    return embeddings.on_disk(response_ids, features, budget=budget)


def _tokens(embeddings: Embeddings, response_ids: Sequence[str]) -> NDArray[np.float32] | None:
    """Tokens of each response: (n,); None if the vectors were stored without that column."""
    if not embeddings.parts or "response_tokens" not in scalar_names(_first_part(embeddings)):
        return None
    return embeddings.gather(response_ids, ["response_tokens"])[:, 0]


def _blocks(embeddings: Embeddings, features: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Each feature and its dimension; all parts of an embedding have the same."""
    if not embeddings.parts:
        return ()
    return tuple((name, embeddings.dimension(name)) for name in features)


def _first_part(embeddings: Embeddings) -> Path:
    return embeddings.directory / embeddings.parts[0].file


def pairs_as_rows(
    dataset: Dataset | None, ids: pa.Array
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """A dataset's pairs as positions in `ids`: (m, 2), their margins (m,), and which rows of the table they are (m,).

    A pair of which an end is not in `ids` is left out.
    """
    if dataset is None:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32), np.empty(0, np.int64)
    table = dataset["pairs"]
    rows = np.column_stack([_rows_of(table["chosen_id"], ids), _rows_of(table["rejected_id"], ids)])
    whole = np.flatnonzero((rows >= 0).all(axis=1))
    margins = table["margin"].to_numpy(zero_copy_only=False).astype(np.float32)
    return rows[whole], margins[whole], whole


def attributes_as_columns(dataset: Dataset | None, ids: pa.Array) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """A dataset's attributes, ascending, and their mean scores of the n `ids`, NaN where not annotated: (n, k)."""
    if dataset is None:
        return (), np.empty((len(ids), 0), dtype=np.float32)
    table = dataset["attributes"]
    names = tuple(sorted(table["attribute"].unique().to_pylist()))
    rows = _rows_of(table["response_id"], ids)
    cell = rows * len(names) + _rows_of(table["attribute"], pa.array(names, pa.string()))
    known, scores = rows >= 0, table["score"].to_numpy()
    shape = len(ids), len(names)
    total = np.bincount(cell[known], weights=scores[known], minlength=shape[0] * shape[1])
    count = np.bincount(cell[known], minlength=shape[0] * shape[1])
    with np.errstate(invalid="ignore"):
        return names, (total / count).astype(np.float32).reshape(shape)


def _rows_of(asked: pa.ChunkedArray, ids: pa.Array) -> NDArray[np.int64]:
    """Where each of `asked` stands in `ids`, -1 where it does not."""
    rows: NDArray[np.int64] = pc.fill_null(pc.index_in(asked, value_set=ids), -1).to_numpy().astype(np.int64)
    return rows
