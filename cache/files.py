"""Files that are either whole or absent, and folders that one process at a time writes.

Whole or absent: write to a temporary name, flush to disk, rename.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it to `path`.

    A kill at any moment leaves the old file or the new one, never a part of either.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def held(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder for writing, made if it is not there. The lock dies with its process.

    On a file in it and not on the folder itself, which NFS does not lock.

    Raises: ValueError with the refusal if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(refusal) from error
        yield


def write_table(path: Path, table: pa.Table) -> None:
    """Write a metadata table (no vectors) as zstd Parquet, atomically."""
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as indented JSON, atomically. Raises ValueError on NaN or infinity: JSON has neither."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a damaged file is a ValueError that names it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); remove it and run the stage that wrote it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; remove it and run the stage that wrote it")
    return content


def damaged(path: Path, error: Exception) -> ValueError:
    """What to raise for a file of the store that lacks what was written into it."""
    what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
    return ValueError(f"{path} is damaged ({what}); `pipeline verify` says what else is")


def sha256_of_file(path: Path) -> str:
    """The file's sha256 in hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(content: object) -> str:
    """The sha256 of a canonical JSON rendering: sorted keys, no spaces, UTF-8."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
