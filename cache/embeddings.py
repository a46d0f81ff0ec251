"""One folder of vectors: parts, the manifest that lists them, and the rows of a matrix by response id.

The manifest is the truth: a part file that it does not list is not there. It is rewritten after each part, so a kill
loses at most the part being written, and whatever is left of that part is overwritten by the next run.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cache.files import damaged, held, read_json, sha256_of_file, write_json, write_table
from cache.rows import Column, StoredRows
from cache.spec import EmbeddingSpec
from cache.vectors import (
    Scalars,
    Vectors,
    find_vectors,
    list_view,
    map_vectors,
    read_id_column,
    read_ids,
    read_scalar,
    write_part,
)

TRAINING, SEEN = "finetune.json", "seen_prompts.parquet"  # of a fine-tuned backbone, in its directory too


@dataclass(frozen=True)
class Part:
    """One part file as the manifest lists it."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass
class Embeddings:
    """The vectors of one spec.

    Attributes:
        directory: embeddings/<fingerprint> in a store.
        spec: how the vectors were made.
        parts: the parts in the order they were written.
        dropped: response ids that the over-long policy left out, and why.
    """

    directory: Path
    spec: EmbeddingSpec
    parts: list[Part]
    dropped: dict[str, str]

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open an existing folder; ValueError if it is not one, or was renamed away from its fingerprint."""
        if not (directory / "spec.json").is_file():
            raise ValueError(f"{directory} holds no embeddings (no spec.json); run `pipeline embed` first")
        spec = EmbeddingSpec.from_json(read_json(directory / "spec.json"))
        if spec.fingerprint != directory.name:
            raise ValueError(
                f"{directory} holds a spec with fingerprint {spec.fingerprint}; restore the folder's name or the spec"
            )
        manifest = read_json(directory / "manifest.json") if (directory / "manifest.json").is_file() else {}
        try:
            parts = [Part(**part) for part in manifest.get("parts", [])]
        except TypeError as error:
            raise damaged(directory / "manifest.json", error) from error
        return cls(directory, spec, parts, dict(manifest.get("dropped", {})))

    @classmethod
    def create(cls, directory: Path, spec: EmbeddingSpec) -> Self:
        """Open the folder of `spec`, making it if it is not there."""
        if not (directory / "spec.json").is_file():
            write_json(directory / "spec.json", spec.to_json())
        return cls.open(directory)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder for writing; ValueError if another process does. The lock dies with its process."""
        return held(
            self.directory, f"another process is embedding into {self.directory}; wait for it or use another --store"
        )

    def append(
        self,
        ids: Sequence[str],
        vectors: Mapping[str, Vectors],
        scalars: Mapping[str, Scalars],
        dropped: Mapping[str, str] | None = None,
    ) -> Part:
        """Write one part, and list it together with the responses that were dropped on the way, by reason.

        See `cache.vectors.write_part` for the arrays.
        """
        path = self.directory / f"part-{len(self.parts):05d}.parquet"
        write_part(path, ids, vectors, scalars)
        part = Part(path.name, len(ids), path.stat().st_size, sha256_of_file(path))
        self.parts.append(part)
        self.dropped.update(dropped or {})
        self._write_manifest()
        self.__dict__.pop("_row_of", None)
        return part

    def drop(self, reasons: Mapping[str, str]) -> None:
        """Record responses that this spec leaves out on purpose."""
        if reasons:
            self.dropped.update(reasons)
            self._write_manifest()

    def record_training(self, record: Mapping[str, Any], prompt_ids: Sequence[str]) -> None:
        """Keep what the backbone was fine-tuned on: its record, and the prompts that it has seen."""
        write_table(self.directory / SEEN, pa.table({"prompt_id": pa.array(prompt_ids, pa.string())}))
        write_json(self.directory / TRAINING, record)

    @cached_property
    def training(self) -> dict[str, Any] | None:
        """How the backbone was fine-tuned, as `pipeline finetune` recorded it; None if that is not known of it."""
        return read_json(self.directory / TRAINING) if (self.directory / TRAINING).is_file() else None

    @cached_property
    def seen_prompts(self) -> frozenset[str]:
        """Prompts that the backbone was fine-tuned on: no head on its features may be judged on them."""
        if self.training is None:
            return frozenset()
        return frozenset(pq.read_table(self.directory / SEEN)["prompt_id"].to_pylist())

    @property
    def rows(self) -> int:
        """How many responses have vectors."""
        return sum(part.rows for part in self.parts)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        ids = (identifier for path in self._paths() for identifier in read_ids(path))
        return {identifier: row for row, identifier in enumerate(ids)}

    def __contains__(self, response_id: object) -> bool:
        """Whether the response has a vector."""
        return response_id in self._row_of

    def ids(self) -> list[str]:
        """All response ids, in row order."""
        return list(self._row_of)

    def blocks(self, feature: str) -> list[Vectors]:
        """The feature as stored, part by part: memory-mapped (n_i, d) matrices, in row order."""
        return [map_vectors(path, self._checked(feature)) for path in self._paths()]

    def gather(self, response_ids: Sequence[str], features: Sequence[str]) -> NDArray[np.float32]:
        """The responses' vectors, features side by side, as one float32 matrix.

        Args:
            response_ids: n ids that are all in the store.
            features: some of the spec's `inputs`, such as "L18.last"; several are concatenated along the columns, a
                scalar such as "logprob" being one of them.

        Returns: (n, sum of the features' dimensions).
        Raises: KeyError for an id without a vector; ValueError for an unknown feature.
        """
        rows = self._known(response_ids)
        if len(features) == 1:
            return self._columns(features[0], rows)
        gathered = np.empty((len(rows), sum(map(self.dimension, features))), dtype=np.float32)
        start = 0
        for feature in features:  # one at a time: stacking them all would hold everything twice
            columns = self._columns(feature, rows)
            gathered[:, start : start + columns.shape[1]] = columns
            start += columns.shape[1]
        return gathered

    def on_disk(self, response_ids: Sequence[str], features: Sequence[str], *, budget: int) -> StoredRows:
        """What `gather` gives, left on disk: rows are read when they are asked for.

        Args:
            response_ids: n ids that are all in the store; in store order they are read fastest.
            features: as in `gather`.
            budget: bytes of float32 rows that who works on the matrix may hold at once.

        Raises: KeyError for an id without a vector; ValueError for an unknown feature.
        """
        rows = self._known(response_ids)
        starts = np.cumsum([0, *(part.rows for part in self.parts)], dtype=np.int64)
        return StoredRows(tuple(self._column(name) for name in features), starts, rows, budget)

    def positions(self, response_ids: Sequence[str] | pa.ChunkedArray) -> NDArray[np.int64]:
        """The row of each id over all parts, -1 where it has no vector; for millions of ids at once, unlike `in`.

        Who asks for a few ids again and again asks by `in` first: what that keeps is looked up here then, and the
        stored ids are not read again.
        """
        if "_row_of" in self.__dict__ and not isinstance(response_ids, pa.ChunkedArray):
            return np.array([self._row_of.get(key, -1) for key in response_ids], dtype=np.int64)
        asked = response_ids if isinstance(response_ids, pa.ChunkedArray) else pa.array(response_ids, pa.string())
        stored = pa.chunked_array([read_id_column(path) for path in self._paths()], pa.string())
        found = pc.index_in(asked, value_set=stored.combine_chunks())
        positions: NDArray[np.int64] = pc.fill_null(found, -1).to_numpy().astype(np.int64)
        return positions

    def _known(self, response_ids: Sequence[str]) -> NDArray[np.int64]:
        rows = self.positions(response_ids)
        if unknown := np.flatnonzero(rows < 0).tolist():
            raise KeyError(response_ids[unknown[0]])
        return rows

    def scalar(self, name: str) -> Scalars:
        """A scalar column over all parts, in row order: "tokens", "L12.last.rms", ...; shape (rows,)."""
        return np.concatenate([read_scalar(path, name) for path in self._paths()])

    def list_view(self, feature: str) -> pa.Table:
        """(response_id, feature as a fixed-size list) over all parts, as Arrow and DuckDB read it."""
        return pa.concat_tables([list_view(path, self._checked(feature)) for path in self._paths()])

    def dimension(self, name: str) -> int:
        """How many columns one of the spec's `inputs` has; ValueError where there is no part yet."""
        if not self.parts:
            raise ValueError(f"embedding {self.spec.fingerprint} has no vectors yet; run `pipeline embed`")
        return int(self._columns(name, np.zeros(1, dtype=np.int64)).shape[1])

    def _columns(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if name in self.spec.inputs and name not in self.spec.features:
            return self.scalar(name)[rows, None].astype(np.float32)
        return _gather(self.blocks(name), rows)

    def _column(self, name: str) -> Column:
        if name in self.spec.inputs and name not in self.spec.features:
            return self.scalar(name).astype(np.float32)
        return tuple(find_vectors(path, self._checked(name)) for path in self._paths())

    def _paths(self) -> list[Path]:
        return [self.directory / part.file for part in self.parts]

    def _checked(self, feature: str) -> str:
        if feature not in self.spec.features:
            raise ValueError(
                f"embedding {self.spec.fingerprint} has no feature {feature!r} "
                f"(it has {', '.join(self.spec.inputs)}); "
                "choose one of them or embed with other --layers and --pool"
            )
        return feature

    def _write_manifest(self) -> None:
        content = {"rows": self.rows, "parts": [vars(part) for part in self.parts], "dropped": self.dropped}
        write_json(self.directory / "manifest.json", content)


def _gather(blocks: Sequence[Vectors], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Rows of the blocks' concatenation as float32, without concatenating the blocks."""
    if not blocks:
        return np.empty((0, 0), dtype=np.float32)
    starts = np.cumsum([0, *(len(block) for block in blocks)])
    gathered = np.empty((len(rows), blocks[0].shape[1]), dtype=np.float32)
    owner = np.searchsorted(starts, rows, side="right") - 1
    for number, block in enumerate(blocks):
        mine = np.flatnonzero(owner == number)
        if len(mine):
            gathered[mine] = block[rows[mine] - starts[number]]
    return gathered
