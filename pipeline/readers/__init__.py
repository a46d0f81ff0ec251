"""Files and hub datasets become the tables of one dataset; what a format cannot carry is refused, counted and named.

A source is a stream of rows (`sources`: which one; `files` and `hub`: how). A format turns one row into an `Example`
or refuses it with a reason (`formats` lists them). This module joins the two into a `cache.records.Dataset`. Nothing
here writes to disk.

To add a format, write a `Format` (`example.Format`; `pool.POOL` is a short one) and add its line to `formats.FORMATS`.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cache.records import Dataset, DatasetBuilder, content_hash, prompt_id
from pipeline.readers.example import Example, Format, LeftOutRowError, RefusedRowError, Row
from pipeline.readers.formats import FORMATS, check_format, recognise
from pipeline.readers.sources import Source, open_source

__all__ = ["FORMATS", "RowNumbers", "read_numbered", "read_source", "recognise"]

LOOK_AHEAD = 1000  # rows that a format may look at before it reads the first
ROW_NUMBERS_KEPT = 1000  # per reason
BY_PROMPTS = "left out by --prompts"


def read_source(
    source: str,
    *,
    name: str | None = None,
    format: str | None = None,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    prompts: int | None = None,
) -> Dataset:
    """Read a local file, a local directory in hub layout or a hub dataset into the tables of one dataset.

    Args:
        source: path, or hub id.
        name: the dataset's name; the file's or hub id's own name when left out.
        format: a name from `FORMATS`; recognised from the columns when left out.
        config: hub configuration, for directories and hub ids only; needed where there are several.
        split: hub split, likewise.
        revision: hub commit, tag or branch, for hub ids only.
        prompts: keep only the first so many distinct prompts, with all of their rows.

    Returns: the dataset, not written; `info` holds format, origin, hashes, counts and refusals, all of it JSON.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the source cannot be read as a whole, fits no format, or has no row that could be kept.
    """
    if prompts is not None and prompts < 1:
        raise ValueError(f"prompts must be 1 or more, got {prompts}; leave it out to keep all")
    if format is not None:
        check_format(format)
    opened = open_source(source, config=config, split=split, revision=revision)
    return _read_opened(opened, source, name=name, format=format, prompts=prompts)[0]


class RowNumbers(NamedTuple):
    """Where a dataset's responses and pairs stand in its source: row numbers from 0, refused rows counted too.

    Attributes:
        responses: of the first row that has the response; (n,).
        pairs: of each pair's row; (m,).
    """

    responses: list[int]
    pairs: list[int]


def read_numbered(source: str, *, format: str | None = None) -> tuple[Dataset, RowNumbers]:
    """What `read_source` reads of a source that needs no other options, and where it stands there."""
    if format is not None:
        check_format(format)
    opened = open_source(source, config=None, split=None, revision=None)
    return _read_opened(opened, source, name=None, format=format, prompts=None)


def _read_opened(
    opened: Source, source: str, *, name: str | None, format: str | None, prompts: int | None
) -> tuple[Dataset, RowNumbers]:
    builder = DatasetBuilder(dataset_name(opened.name) if name is None else checked_name(name))
    first = list(islice(opened.rows, LOOK_AHEAD))
    if not first:
        raise ValueError(f"{source} holds no rows; give a file with at least one")
    first_rows = [row for _, row in first]
    columns = list(dict.fromkeys(column for row in first_rows for column in row))
    format = recognise(columns, first_rows, format=format)
    reading = _read(chain(first, opened.rows), FORMATS[format], first_rows, builder, prompts)
    if not builder.responses:
        raise ValueError(f"all {reading.rows} rows of {source} were refused as {format}: {reading.summary()}")
    tables = builder.tables()
    dataset = Dataset(builder.name, tables, _info(opened, format, columns, tables, reading))
    return dataset, RowNumbers(reading.responses, reading.pairs)


def dataset_name(text: str) -> str:
    """`text` with everything outside A-Z a-z 0-9 . _ - turned into "-", and no dot or dash in front."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".-") or "dataset"


@dataclass
class _Reading:
    """What happened to the rows: how many there were, which were refused and why, how many were left out and why.

    And the numbers, from 0, of those that gave a response first, and of those that gave the pairs.
    """

    rows: int = 0
    responses: list[int] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    counts: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, list[int]] = field(default_factory=dict)

    def refuse(self, number: int, reason: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        numbers = self.numbers.setdefault(reason, [])
        if len(numbers) < ROW_NUMBERS_KEPT:
            numbers.append(number)

    def place(self, builder: DatasetBuilder) -> None:
        """What the builder has more than before is of the last row."""
        for numbers, added in ((self.responses, builder.responses), (self.pairs, builder.pairs)):
            numbers += [self.rows - 1] * (len(added) - len(numbers))

    def refused(self) -> list[dict[str, Any]]:
        """[{"reason", "count", "rows"}], the most frequent reason first."""
        reasons = sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))
        return [{"reason": r, "count": self.counts[r], "rows": self.numbers[r]} for r in reasons]

    def summary(self) -> str:
        refused = [f"{r['reason']} ({r['count']}, first in row {r['rows'][0]})" for r in self.refused()[:5]]
        return "; ".join(refused + [f"{reason} ({count})" for reason, count in self.left_out.items()])


def _read(
    rows: Iterable[tuple[int, Row]], format: Format, first_rows: list[Row], builder: DatasetBuilder, limit: int | None
) -> _Reading:
    reading, parse, kept = _Reading(), format.parser(first_rows), set[str]()
    for number, row in rows:
        reading.rows += 1
        try:
            example = parse(row)
        except RefusedRowError as refusal:
            reading.refuse(number, str(refusal))
            continue
        except LeftOutRowError as reason:
            reading.left_out[str(reason)] += 1
            continue
        if limit is None or _among_first(prompt_id(example.prompt), kept, limit):
            _add(example, builder)
            reading.place(builder)
        else:
            reading.left_out[BY_PROMPTS] += 1
    return reading


def _among_first(prompt: str, kept: set[str], limit: int) -> bool:
    if len(kept) < limit:
        kept.add(prompt)
    return prompt in kept


def _add(example: Example, builder: DatasetBuilder) -> None:
    labels = {"subset": example.subset, "source": example.source}
    ids = [
        builder.add_response(answer.prompt or example.prompt, answer.text, generator=answer.generator, **labels)
        for answer in example.responses
    ]
    for pair in example.pairs:
        subset, source = pair.subset or example.subset, pair.source or example.source
        builder.add_pair(ids[pair.chosen], ids[pair.rejected], margin=pair.margin, subset=subset, source=source)
    for key, answer in zip(ids, example.responses, strict=True):
        for attribute, score in answer.attributes.items():
            builder.add_attribute(key, attribute, score)
        for judge, score in answer.gold.items():
            builder.add_gold(key, judge, score)


def _info(
    opened: Source, format: str, columns: list[str], tables: dict[str, pa.Table], reading: _Reading
) -> dict[str, Any]:
    attributes = sorted(pc.unique(tables["attributes"]["attribute"]).to_pylist()) if "attributes" in tables else []
    read = FORMATS[format].reads.union(attributes)
    note = FORMATS[format].note
    return {
        "format": format,
        "origin": opened.origin,
        "sha256": opened.sha256(),
        "content_hash": content_hash(tables),
        "counts": {name: table.num_rows for name, table in tables.items()},
        "prompts": pc.count_distinct(tables["responses"]["prompt_id"]).as_py(),
        "rows": reading.rows,
        "row_numbers": opened.numbering,
        "refused": reading.refused(),
        "left_out": [{"reason": reason, "count": count} for reason, count in reading.left_out.items()],
        "attributes": attributes,
        "unused_columns": [column for column in columns if column not in read],
        "notes": [] if note is None else [note],
    }


def checked_name(name: str) -> str:
    """A name that is given to a new dataset: its folder's. Raises ValueError if it would lead elsewhere."""
    if name != dataset_name(name):
        raise ValueError(
            f"a dataset cannot be named {name!r}; use letters, digits and . _ - such as {dataset_name(name)!r}"
        )
    return name
