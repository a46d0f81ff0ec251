"""A table into a file, in the format that the file's ending names."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.tables import FORMATS
from cache.files import write_atomically

SUFFIXES = {
    **{".csv": "csv", ".parquet": "parquet", ".md": "markdown"},
    **{".json": "json", ".jsonl": "jsonl", ".txt": "table"},
}


def format_of(path: Path, shown: str | None) -> str:
    """The format asked for, else that of the file's ending. Raises ValueError for an ending that names none."""
    name = shown or SUFFIXES.get(path.suffix)
    if name is None:
        raise ValueError(f"{path} has no ending that names a format; use one of {', '.join(SUFFIXES)}")
    return name


def keep_table(table: pa.Table, path: Path, shown: str) -> None:
    """Write a table, whole or not at all, as Parquet or in one of `bench.tables.FORMATS`."""
    write_atomically(path, lambda temporary: _write(table, shown, temporary))


def _write(table: pa.Table, shown: str, path: Path) -> None:
    if shown == "parquet":
        pq.write_table(table, path, compression="zstd")
    else:
        path.write_text(FORMATS[shown](table), encoding="utf-8", newline="")  # CSV has line ends of its own
