"""Conversations, the ids made from their content, and the tables of one dataset.

The rule that everything else leans on: *a response is unique, a row is an annotation*. The same text in two rows or
two datasets has one `response_id` and is embedded once; every pair, attribute score and gold score stays a row of
its own, so that a response that two annotators scored keeps both scores.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from cache.files import damaged, read_json, sha256_of_json, write_json, write_table

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant" | "tool", "content": text}

RESPONSES = pa.schema(
    [
        pa.field("response_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # messages as JSON
        pa.field("response", pa.string(), nullable=False),
        pa.field("generator", pa.string()),
        pa.field("subset", pa.string()),
        pa.field("source", pa.string()),
    ]
)
PAIRS = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("chosen_id", pa.string(), nullable=False),
        pa.field("rejected_id", pa.string(), nullable=False),
        pa.field("margin", pa.float64()),
        pa.field("subset", pa.string()),
        pa.field("source", pa.string()),
    ]
)
ATTRIBUTES = pa.schema(
    [
        pa.field("response_id", pa.string(), nullable=False),
        pa.field("attribute", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
)
GOLD = pa.schema(
    [
        pa.field("response_id", pa.string(), nullable=False),
        pa.field("judge", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
)
SCHEMAS: dict[str, pa.Schema] = {"responses": RESPONSES, "pairs": PAIRS, "attributes": ATTRIBUTES, "gold": GOLD}


def prompt_id(prompt: Sequence[Message]) -> str:
    """32 hex digits of the prompt's content; the same messages give the same id in every dataset."""
    return sha256_of_json(["prompt", _plain(prompt)])[:32]


def response_id(prompt: Sequence[Message], response: str) -> str:
    """32 hex digits of the prompt's and the response's content."""
    return _response_id(prompt_id(prompt), response)


@dataclass
class DatasetBuilder:
    """Collects one dataset's rows; every `add_*` returns nothing and keeps annotations as they come."""

    name: str
    responses: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    attributes: list[dict[str, Any]] = field(default_factory=list)
    gold: list[dict[str, Any]] = field(default_factory=list)
    _last_prompt: tuple[Sequence[Message], str, str] = field(default=((), "", ""), repr=False)

    def add_response(
        self,
        prompt: Sequence[Message],
        response: str,
        *,
        generator: str | None = None,
        subset: str | None = None,
        source: str | None = None,
    ) -> str:
        """Add a response once and return its id; the first row's generator, subset and source are kept."""
        prompt_key, prompt_text = self._prompt(prompt)
        key = _response_id(prompt_key, response)
        if key not in self.responses:
            self.responses[key] = {
                "response_id": key,
                "prompt_id": prompt_key,
                "prompt": prompt_text,
                "response": response,
                "generator": generator,
                "subset": subset,
                "source": source,
            }
        return key

    def add_pair(
        self,
        chosen_id: str,
        rejected_id: str,
        *,
        margin: float | None = None,
        subset: str | None = None,
        source: str | None = None,
    ) -> None:
        """Add one annotated preference."""
        self.pairs.append(
            {"chosen_id": chosen_id, "rejected_id": rejected_id, "margin": margin, "subset": subset, "source": source}
        )

    def add_attribute(self, response: str, attribute: str, score: float) -> None:
        """Add one attribute score of the response with id `response`."""
        self.attributes.append({"response_id": response, "attribute": attribute, "score": score})

    def add_gold(self, response: str, judge: str, score: float) -> None:
        """Add one gold score of the response with id `response`; a pool keeps one row per sampled response."""
        self.gold.append({"response_id": response, "judge": judge, "score": score})

    def _prompt(self, prompt: Sequence[Message]) -> tuple[str, str]:
        """The prompt's id and JSON text, kept for the next row: rows of one prompt usually follow each other."""
        if prompt != self._last_prompt[0]:
            self._last_prompt = (prompt, prompt_id(prompt), prompt_json(prompt))
        return self._last_prompt[1:]

    def tables(self) -> dict[str, pa.Table]:
        """The dataset's tables by name; `responses` always, the others when they have rows."""
        rows = {
            "responses": list(self.responses.values()),
            "pairs": with_pair_ids(self.pairs),
            "attributes": self.attributes,
            "gold": self.gold,
        }
        return {name: pa.Table.from_pylist(rows[name], schema=SCHEMAS[name]) for name in SCHEMAS if rows[name]}


@dataclass(frozen=True)
class Dataset:
    """One dataset as it is on disk: its tables and `dataset.json`."""

    name: str
    tables: Mapping[str, pa.Table]
    info: Mapping[str, Any]

    def __getitem__(self, table: str) -> pa.Table:
        """The table, empty when the dataset has none of its kind."""
        return self.tables.get(table, SCHEMAS[table].empty_table())

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read what `write` wrote."""
        info = read_json(directory / "dataset.json")
        try:
            names = [name for name in info["counts"] if name in SCHEMAS and info["content_hash"]]
            tables = {name: pq.read_table(directory / f"{name}.parquet") for name in names}
        except (KeyError, OSError, pa.ArrowException) as error:
            raise damaged(directory / "dataset.json", error) from error
        return cls(directory.name, tables, info)

    def write(self, directory: Path) -> None:
        """Write tables first and `dataset.json` last: its presence means the dataset is complete."""
        (directory / "dataset.json").unlink(missing_ok=True)
        for name in SCHEMAS:
            if name in self.tables:
                write_table(directory / f"{name}.parquet", self.tables[name])
            else:
                (directory / f"{name}.parquet").unlink(missing_ok=True)
        write_json(directory / "dataset.json", self.info)


def prompt_json(prompt: Sequence[Message]) -> str:
    """The prompt as it stands in `responses.parquet`."""
    return json.dumps(_plain(prompt), ensure_ascii=False)


def content_hash(tables: Mapping[str, pa.Table]) -> str:
    """sha256 over the ids, pairs and scores of a dataset, in row order."""
    columns = {name: tables[name].drop_columns(_texts(tables[name])).to_pylist() for name in sorted(tables)}
    return sha256_of_json(columns)


def with_pair_ids(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with ids: repeats of a pair are numbered, so that ids differ when two annotators gave the same one."""
    seen: dict[tuple[str, str], int] = {}
    rows = []
    for pair in pairs:
        key = (pair["chosen_id"], pair["rejected_id"])
        seen[key] = seen.get(key, 0) + 1
        rows.append({"pair_id": sha256_of_json(["pair", *key, seen[key]])[:32], **pair})
    return rows


def _response_id(prompt: str, response: str) -> str:
    return sha256_of_json(["response", prompt, response])[:32]


def _texts(table: pa.Table) -> list[str]:
    return [name for name in ("prompt", "response") if name in table.column_names]


def _plain(prompt: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in prompt]
