"""Which rows a source means: a local file, a local directory in hub layout, or a dataset on the hub."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.files import sha256_of_file
from pipeline.readers import hub
from pipeline.readers.example import Row
from pipeline.readers.files import file_kind, read_rows

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """An opened source.

    Attributes:
        rows: row numbers, from 1, and rows; read once, in order.
        numbering: what the row numbers count, in words.
        name: what a dataset read from it is called by default.
        origin: where it is and which version; JSON-serialisable.
        sha256: of the bytes it was read from; None where they are not on this machine as files.
    """

    rows: Iterator[tuple[int, Row]]
    numbering: str
    name: str
    origin: dict[str, Any]
    sha256: Callable[[], str | None]


def open_source(source: str, *, config: str | None, split: str | None, revision: str | None) -> Source:
    """Find out what `source` is and open it.

    Raises: FileNotFoundError or ValueError, one sentence, when it is nothing that can be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        _refuse_options(source, "a file", config=config, split=split, revision=revision)
        return _open_file(path)
    if path.is_dir():
        _refuse_options(source, "a local directory", revision=revision)
        return _open_directory(path, config, split)
    if _looks_like_a_path(source):
        raise FileNotFoundError(f"there is no file {path.absolute()}; check the path")
    return _open_hub(source, config, split, revision)


def _open_file(path: Path) -> Source:
    stem, kind = file_kind(path)
    numbering = "lines of the file" if kind == "jsonl" else "data rows"
    origin = {"path": str(path.resolve())}
    return Source(read_rows(path), numbering, stem, origin, lambda: sha256_of_file(path))


def _open_directory(path: Path, config: str | None, split: str | None) -> Source:
    found = hub.open_dataset(str(path.resolve()), config=config, split=split, revision=None)
    origin = {"path": str(path.resolve()), **found.version}
    return Source(found.rows, "data rows", path.resolve().name, origin, found.sha256)


def _open_hub(source: str, config: str | None, split: str | None, revision: str | None) -> Source:
    commit = hub.commit_of(source, revision)
    found = hub.open_dataset(source, config=config, split=split, revision=commit)
    origin = {"hub": source, **found.version, "revision": commit}
    return Source(found.rows, "data rows", source.rpartition("/")[2], origin, lambda: None)


def _looks_like_a_path(source: str) -> bool:
    known = re.search(r"\.(jsonl?|csv|parquet|gz|txt|tsv|zip)$", source, re.IGNORECASE)
    return known is not None or HUB_ID.fullmatch(source) is None


def _refuse_options(source: str, what: str, **options: str | None) -> None:
    given = [f"{name} {value!r}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{source} is {what}, which has no {' and no '.join(given)}; leave that out")
