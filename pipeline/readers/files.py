"""Rows out of one local file: JSONL, JSON, CSV or Parquet, the first three also gzipped.

JSONL, CSV and Parquet are streamed. Row numbers are line numbers in JSONL and count data rows from 1 elsewhere. A
defect of the file, as against one of a row, is a ValueError: the rest cannot be trusted.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.readers.example import Row

Numbered = Iterator[tuple[int, Row]]

NAMED = re.compile(r"(?P<stem>.*)\.(?P<kind>jsonl|json|csv|parquet)(?P<gz>\.gz)?", re.IGNORECASE)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan", re.IGNORECASE)
CSV_TEXT = frozenset(["id", "prompt_id", "prompt", "response", "chosen", "rejected"]).union(
    ["chosen_model", "rejected_model", "generator", "judge", "subset", "source"]
)
CSV_FIELD_LIMIT = 2**31 - 1  # the csv module's own limit, 128 KiB, is shorter than some responses
BATCH_ROWS = 512


def file_kind(path: Path) -> tuple[str, str]:
    """The file's name without its endings, and its kind."""
    match = NAMED.fullmatch(path.name)
    if match is None:
        raise ValueError(
            f"{path} has no ending that says what it is; rename it to .jsonl, .json, .csv (or .gz of these) or .parquet"
        )
    kind = match["kind"].lower()
    if kind == "parquet" and match["gz"]:
        raise ValueError(f"{path} is gzipped Parquet, which is compressed inside already; gunzip it first")
    return match["stem"], kind


def read_rows(path: Path) -> Numbered:
    """The file's rows with their numbers; a file that cannot be read through is a ValueError that says why."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); give a file with rows")
    _, kind = file_kind(path)
    try:
        yield from READERS[kind](path)
    except EOFError as error:
        raise ValueError(f"{path} is cut off: its gzip stream ends early; fetch the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not valid gzip ({error}); fetch it again or drop the .gz ending") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}); convert it to UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path} is not valid CSV ({error}); check the quotes") from error
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not valid Parquet ({str(error).splitlines()[0]}); fetch it again") from error


def _binary(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast("BinaryIO", gzip.open(path, "rb"))
    return path.open("rb")


def _jsonl(path: Path) -> Numbered:
    with _binary(path) as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield number, _json_row(path, number, line)


def _json_row(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"line {number} of {path} is not UTF-8 ({error.reason}); convert the file to UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} of {path} is not JSON ({error}); repair or remove that line") from error
    if not isinstance(row, dict):
        raise ValueError(
            f"line {number} of {path} is not a JSON object; each line must be one {{column: value}} object"
        )
    return row


def _json(path: Path) -> Numbered:
    if _is_json_lines(path):
        yield from _jsonl(path)
        return
    rows = _json_list(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of {path} is not a JSON object; each row must be {{column: value}}")
        yield number, row


def _is_json_lines(path: Path) -> bool:
    """True for JSON lines under a .json name, as many hub files are: the first line is an object.

    One that stands alone is a row too, unless it holds the rows, as {"data": [...]} does.
    """
    with _binary(path) as file:
        first, more = file.readline(), file.read(2**16)
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and (bool(more.strip()) or not isinstance(row.get("data"), list))


def _json_list(path: Path) -> list[Any]:
    with _binary(path) as file:
        text = file.read().decode("utf-8-sig")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); repair it: a list of rows, or JSON lines (.jsonl), one row a line"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        raise ValueError(f'{path} is not a list of rows; write [row, row, ...] or {{"data": [row, row, ...]}}')
    return content


def _csv(path: Path) -> Numbered:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    with _binary(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        records = csv.reader(lines, strict=True)
        header = next(records, [])
        if len(set(header)) < len(header):
            raise ValueError(f"{path} has two columns of one name in its header ({', '.join(header)}); rename one")
        for number, record in enumerate(filter(None, records), 1):
            if len(record) != len(header):
                raise ValueError(
                    f"data row {number} of {path} (ending at line {records.line_num}) has {len(record)} fields, "
                    f"the header {len(header)}; quote texts that hold commas"
                )
            yield number, {column: _csv_cell(column, cell) for column, cell in zip(header, record, strict=True)}


def _csv_cell(column: str, cell: str) -> Any:  # noqa: ANN401 (text, number, messages or None)
    """None for an empty cell, messages for their JSON, a number outside the columns of text, else the text."""
    if not cell:
        return None
    if cell.startswith("[{"):
        return _messages_or_text(cell)
    return float(cell) if column not in CSV_TEXT and NUMBER.fullmatch(cell) else cell


def _messages_or_text(cell: str) -> object:
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return value if all(isinstance(turn, dict) and "role" in turn for turn in value) else cell


def _parquet(path: Path) -> Numbered:
    with pq.ParquetFile(path) as file:
        batches = (batch.to_pylist() for batch in file.iter_batches(BATCH_ROWS))
        yield from enumerate((row for batch in batches for row in batch), 1)


READERS: dict[str, Callable[[Path], Numbered]] = {"jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet}
