"""Query results as text, CSV, JSON, JSON lines or Markdown.

Text and Markdown are for eyes: numbers rounded to four significant digits of the column's largest, long texts cut,
control characters shown as escapes. CSV, JSON and JSON lines keep every digit.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

Cell = Any  # whatever Arrow's to_pylist gives
WIDEST = 60  # characters of one cell


def as_text(table: pa.Table) -> str:
    """Columns aligned by spaces: numbers to the right, the rest to the left."""
    columns = [[name, *_shown(table.column(name))] for name in _names(table)]
    widths = [max(map(len, column)) for column in columns]
    right = [_is_number(field.type) for field in table.schema]
    lines = [_text_line(row, widths, right) for row in zip(*columns, strict=True)]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, _row_count(table)]) + "\n"


def as_markdown(table: pa.Table) -> str:
    """A GitHub table; pipes in texts are escaped."""
    columns = [[name, *_shown(table.column(name))] for name in _names(table)]
    rule = ["---:" if _is_number(field.type) else "---" for field in table.schema]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in zip(*columns, strict=True)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [rows[0], rule, *rows[1:]])


def as_csv(table: pa.Table) -> str:
    """RFC 4180 with a header; nulls and NaN are empty, lists and structs are JSON."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(_names(table))
    columns = [[_plain(cell) for cell in table.column(name).to_pylist()] for name in _names(table)]
    for row in zip(*columns, strict=True):
        writer.writerow(
            [json.dumps(cell, ensure_ascii=False) if isinstance(cell, list | dict) else cell for cell in row]
        )
    return buffer.getvalue()


def as_json(table: pa.Table) -> str:
    """A list of objects, one for each row; NaN is null, for JSON has none."""
    rows = [{name: _plain(cell) for name, cell in row.items()} for row in table.to_pylist()]
    return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def as_jsonl(table: pa.Table) -> str:
    """One JSON object a line, as `as_json` writes them."""
    rows = ({name: _plain(cell) for name, cell in row.items()} for row in table.to_pylist())
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False, default=str) + "\n" for row in rows)


FORMATS: dict[str, Callable[[pa.Table], str]] = {
    "table": as_text,
    "csv": as_csv,
    "json": as_json,
    "jsonl": as_jsonl,
    "markdown": as_markdown,
}


def _names(table: pa.Table) -> list[str]:
    names: list[str] = table.column_names
    return names


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def _text_line(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
    return "  ".join(cells).rstrip()


def _row_count(table: pa.Table) -> str:
    return f"({table.num_rows:,} row{'' if table.num_rows == 1 else 's'})"


def _shown(column: pa.ChunkedArray) -> list[str]:
    cells = column.to_pylist()
    if pa.types.is_floating(column.type):
        pattern = _float_format([cell for cell in cells if cell is not None and math.isfinite(cell)])
        return ["" if cell is None or math.isnan(cell) else format(cell, pattern) for cell in cells]
    return [_shown_text(cell) for cell in cells]


def _float_format(values: Sequence[float]) -> str:
    """The format that gives the largest value four significant digits, and the others as many decimals."""
    largest = max(map(abs, values), default=1.0)
    if largest != 0 and not 1e-4 <= largest < 1e9:
        return ".3e"
    magnitude = math.floor(math.log10(largest)) if largest else 0
    return f".{min(max(3 - magnitude, 0), 7)}f"


def _shown_text(cell: Cell) -> str:
    """One line without control characters: a text from a dataset could otherwise steer the terminal."""
    text = "" if cell is None else str(_plain(cell))
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return safe if len(safe) <= WIDEST else safe[: WIDEST - 1] + "…"


def _plain(cell: Cell) -> Cell:
    """NaN and infinities as null, also inside lists and structs; DuckDB's decimals, such as sums, as numbers."""
    if isinstance(cell, Decimal):
        return int(cell) if cell == cell.to_integral_value() else float(cell)
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    if isinstance(cell, list):
        return [_plain(part) for part in cell]
    if isinstance(cell, dict):
        return {name: _plain(part) for name, part in cell.items()}
    return cell
