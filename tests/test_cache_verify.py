"""A store made without a backbone, broken on purpose: every defect is named, and a sound one passes."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from test_cache_embeddings import SPEC

from cache.embeddings import Embeddings
from cache.files import read_json, sha256_of_file, write_json, write_table
from cache.records import Dataset, DatasetBuilder, content_hash
from cache.store import Store
from cache.vectors import RMS, map_vectors, read_ids, read_scalar, write_part
from cache.verify import (
    Finding,
    check_dataset,
    check_embedding,
    check_leftovers,
    content_hashes,
    run_defects,
)


def write_dataset(store: Store, builder: DatasetBuilder) -> None:
    tables = builder.tables()
    counts = {name: table.num_rows for name, table in tables.items()}
    prompts = len({row["prompt_id"] for row in builder.responses.values()})
    info = {"content_hash": content_hash(tables), "counts": counts, "prompts": prompts}
    store.write_dataset(Dataset(builder.name, tables, info))


def write_embedding(store: Store, ids: list[str]) -> None:
    """Parts of eight rows of made-up vectors, as the embedding stage writes them."""
    embeddings, generator = store.create_embeddings(SPEC), np.random.default_rng(0)
    for start in range(0, len(ids), 8):
        vectors = {name: generator.standard_normal((8, 6)).astype(np.float16) for name in SPEC.features}
        counts = {name: np.arange(1, 9, dtype=np.int32) for name in ("tokens", "response_tokens", "cut_tokens")}
        scales = {name + RMS: np.ones(8, dtype=np.float32) for name in ("L2.last", "L2.mean")}
        embeddings.append(ids[start : start + 8], vectors, {**counts, **scales})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Twelve prompts with two responses each: "prefs" has pairs, "pool" gold scores, "rated" attributes."""
    store = Store(tmp_path / "store")
    builders = {name: DatasetBuilder(name) for name in ("prefs", "pool", "rated")}
    for number in range(12):
        prompt = [{"role": "user", "content": f"why {number}"}]
        ids = {}
        for name, builder in builders.items():
            ids[name] = [builder.add_response(prompt, text, source=name) for text in ("yes", "no")]
        builders["prefs"].add_pair(*ids["prefs"], margin=1.0)
        builders["prefs"].add_pair(*ids["prefs"])
        builders["pool"].add_gold(ids["pool"][0], "gold", number / 2)
        builders["rated"].add_attribute(ids["rated"][1], "helpful", number)
    for builder in builders.values():
        write_dataset(store, builder)
    write_embedding(store, list(builders["prefs"].responses))
    return store.root


def check(store: Path) -> list[Finding]:
    found = [check_dataset(store / "data" / name) for name in Store(store).dataset_names()]
    found += [check_embedding(store / "embeddings" / name) for name in Store(store).fingerprints()]
    return [*(finding for findings in found for finding in findings), *check_leftovers(store)]


def described(findings: list[Finding], status: str) -> list[str]:
    """The findings of one status as "subject: what", an embedding's fingerprint left out."""
    chosen = [finding for finding in findings if finding.status == status]
    assert all(finding.fix for finding in chosen if status == "WRONG")
    return [re.sub("^embeddings/[0-9a-f]{16}", "embeddings", f"{one.subject}: {one.what}") for one in chosen]


def wrong(findings: list[Finding]) -> list[str]:
    return described(findings, "WRONG")


def opened(store: Path) -> Embeddings:
    return Store(store).embeddings(SPEC.fingerprint)


def part(store: Path, number: int = 0) -> Path:
    return store / "embeddings" / SPEC.fingerprint / f"part-{number:05d}.parquet"


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the columns of a store's first part and make the manifest fit, as a program with a fault would."""
    fields = [field for field in pq.read_schema(path) if field.name != "response_id"]
    features = [field.name for field in fields if pa.types.is_fixed_size_binary(field.type)]
    columns: dict[str, Any] = {"response_id": read_ids(path)}
    for field in fields:
        read = map_vectors if field.name in features else read_scalar
        columns[field.name] = read(path, field.name).copy()
    change(columns)
    vectors = {name: columns.pop(name) for name in features if name in columns}
    write_part(path, columns.pop("response_id"), vectors, columns)
    manifest = read_json(path.with_name("manifest.json"))
    manifest["parts"][0] |= {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    write_json(path.with_name("manifest.json"), manifest)


def edit(store: Path, table: str, change: Callable[[list[dict[str, Any]]], None], dataset: str = "prefs") -> None:
    """Change the rows of a table."""
    path = store / "data" / dataset / f"{table}.parquet"
    found = pq.read_table(path)
    rows = found.to_pylist()
    change(rows)
    write_table(path, pa.Table.from_pylist(rows, schema=found.schema))


def edit_json(path: Path, **changes: object) -> None:
    write_json(path, {**read_json(path), **changes})


def test_a_sound_store_is_ok_and_says_how_much_it_holds(store: Path) -> None:
    findings = check(store)
    assert [finding.status for finding in findings] == ["ok"] * 4, findings
    assert [finding.what.partition(":")[0] for finding in findings[:3]] == [
        "24 responses, 12 gold",
        "24 responses, 24 pairs",
        "24 responses, 12 attributes",
    ]
    assert findings[3].what.startswith("24 rows in 3 parts, ")
    assert str(findings[3]).startswith(f"ok     embeddings/{SPEC.fingerprint}: 24 rows")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.999])
def test_one_flipped_bit_anywhere_in_a_part_is_found(store: Path, share: float) -> None:
    flip(part(store), int(part(store).stat().st_size * share))
    (defect,) = wrong(check(store))
    assert defect.startswith("embeddings: part-00000.parquet was changed: its sha256 is ")


def test_a_truncated_part_is_named_with_both_sizes(store: Path) -> None:
    size = part(store, 1).stat().st_size
    part(store, 1).write_bytes(part(store, 1).read_bytes()[:-100])
    (defect,) = wrong(check(store))
    assert defect == f"embeddings: part-00001.parquet has {size - 100:,} bytes, the manifest says {size:,}"


def test_a_deleted_part_is_named_with_its_rows(store: Path) -> None:
    rows = opened(store).parts[1].rows
    part(store, 1).unlink()
    assert wrong(check(store)) == [f"embeddings: part-00001.parquet with {rows} rows is missing"]


def test_parts_lost_from_the_manifest_are_no_leftovers(store: Path) -> None:
    parts = len(opened(store).parts)
    (part(store).parent / "manifest.json").unlink()
    (defect,) = wrong(check(store))
    assert defect == (
        f"embeddings: manifest.json does not list part-00000.parquet and {parts - 1} more: parts were lost from it"
    )


def test_a_manifest_must_add_up(store: Path) -> None:
    edit_json(part(store).parent / "manifest.json", rows=7)
    assert wrong(check(store)) == [f"embeddings: manifest.json says 7 rows, its parts have {opened(store).rows}"]


def test_an_edited_spec_no_longer_fits_its_folder(store: Path) -> None:
    edit_json(part(store).parent / "spec.json", max_length=77)
    (defect,) = wrong(check(store))
    assert "holds a spec with fingerprint" in defect


def test_what_a_kill_leaves_is_a_note(store: Path) -> None:
    shutil.copy(part(store), part(store, 99))
    (part(store).parent / ".part-00003.parquet.17.tmp").write_bytes(b"half")
    (store / "data" / "half").mkdir()
    findings = check(store)
    assert wrong(findings) == []
    assert described(findings, "note") == [
        "embeddings: part-00099.parquet is not in the manifest: a kill left it, or it is being written",
        "data/half: left unfinished, without dataset.json",
        "embeddings: leftover .part-00003.parquet.17.tmp",
    ]


def put_nan(columns: dict[str, Any]) -> None:
    columns["L4.last"][2, 5] = np.nan


def put_zero_rms(columns: dict[str, Any]) -> None:
    columns["L2.mean.rms"][1] = 0


def repeat_id(columns: dict[str, Any]) -> None:
    columns["response_id"][1] = columns["response_id"][0]


def lose_rms(columns: dict[str, Any]) -> None:
    del columns["L2.last.rms"]


def lose_tokens(columns: dict[str, Any]) -> None:
    del columns["cut_tokens"]


def retype_tokens(columns: dict[str, Any]) -> None:
    columns["tokens"] = columns["tokens"].astype(np.float32)


def lose_row(columns: dict[str, Any]) -> None:
    for name in columns:
        columns[name] = columns[name][1:]


def lose_feature(columns: dict[str, Any]) -> None:
    del columns["L4.mean"]


def widen(columns: dict[str, Any]) -> None:
    columns["L2.last"] = columns["L2.last"].astype(np.float32)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put_nan, "part-00000.parquet: L4.last of {2} is not finite"),
        (put_zero_rms, "part-00000.parquet: L2.mean of {1} is not finite"),
        (repeat_id, "vectors: {0} stands more than once"),
        (lose_rms, "part-00000.parquet has no column L2.last.rms"),
        (lose_tokens, "part-00000.parquet has no int32 column cut_tokens"),
        (retype_tokens, "part-00000.parquet has no int32 column tokens"),
        (lose_row, "part-00000.parquet has 7 rows, the manifest says 8"),
        (lose_feature, "part-00000.parquet has no float16 vectors L4.mean"),
        (widen, "part-00000.parquet has no float16 vectors L2.last"),
    ],
)
def test_contents_are_checked_though_the_checksum_fits(
    store: Path, change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    ids = read_ids(part(store))
    rewrite(part(store), change)
    assert f"embeddings: {expected.format(*ids)}" in wrong(check(store))


def change_response(rows: list[dict[str, Any]]) -> None:
    rows[4]["response"] += "!"


def change_prompt(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["prompt_id"] == rows[4]["prompt_id"]:
            row["prompt"] = row["prompt"].replace("why", "how")


def break_prompt(rows: list[dict[str, Any]]) -> None:
    rows[4]["prompt"] = "why"


def drop_response(rows: list[dict[str, Any]]) -> None:
    del rows[0]


def repeat_response(rows: list[dict[str, Any]]) -> None:
    rows.append(rows[0])


def orphan_pair(rows: list[dict[str, Any]]) -> None:
    rows[0]["rejected_id"] = "f" * 32


def turn_pair(rows: list[dict[str, Any]]) -> None:
    rows[0]["chosen_id"], rows[0]["rejected_id"] = rows[0]["rejected_id"], rows[0]["chosen_id"]


def change_margin(rows: list[dict[str, Any]]) -> None:
    rows[0]["margin"] = 3.0


def change_gold(rows: list[dict[str, Any]]) -> None:
    rows[0]["score"] += 1


def orphan_gold(rows: list[dict[str, Any]]) -> None:
    rows[0]["response_id"] = "f" * 32


def infinite_score(rows: list[dict[str, Any]]) -> None:
    rows[0]["score"] = float("inf")


@pytest.mark.parametrize(
    ("dataset", "table", "change", "expected"),
    [
        ("prefs", "responses", change_response, "responses: the text of {4} gives another id"),
        ("prefs", "responses", change_prompt, "responses: the text of {4} and 1 more gives another id"),
        ("prefs", "responses", break_prompt, "responses: the text of {4} gives another id"),
        ("prefs", "responses", drop_response, "pairs: chosen_id {0} is not among the responses"),
        ("prefs", "responses", drop_response, "23 rows in responses.parquet, dataset.json says 24"),
        ("prefs", "responses", repeat_response, "responses: {0} stands more than once"),
        ("prefs", "pairs", orphan_pair, "pairs: rejected_id ffffffffffffffffffffffffffffffff is not among"),
        ("prefs", "pairs", turn_pair, "pairs: the two responses of "),
        ("prefs", "pairs", change_margin, "the tables' content hash is "),
        ("pool", "gold", change_gold, "the tables' content hash is "),
        ("pool", "gold", orphan_gold, "gold: response_id ffffffffffffffffffffffffffffffff is not among"),
        ("rated", "attributes", orphan_gold, "attributes: response_id ffffffffffffffffffffffffffffffff is not among"),
        ("rated", "attributes", infinite_score, "a margin or score is not finite"),
    ],
)
def test_an_edited_table_is_named(
    store: Path, dataset: str, table: str, change: Callable[[list[dict[str, Any]]], None], expected: str
) -> None:
    ids = Store(store).dataset(dataset)["responses"]["response_id"].to_pylist()
    edit(store, table, change, dataset)
    defects = wrong(check(store))
    assert all(defect.startswith(f"data/{dataset}: ") for defect in defects)
    assert any(defect.startswith(f"data/{dataset}: {expected.format(*ids)}") for defect in defects), defects


def test_tables_that_cannot_be_read_are_named(store: Path) -> None:
    data = store / "data"
    (data / "prefs" / "pairs.parquet").write_bytes((data / "prefs" / "pairs.parquet").read_bytes()[:200])
    (data / "pool" / "gold.parquet").unlink()
    (data / "rated" / "dataset.json").write_text("{")
    pool, prefs, rated = wrong(check(store))
    assert pool.startswith("data/pool: gold.parquet cannot be read (")
    assert prefs.startswith("data/prefs: pairs.parquet cannot be read (")
    assert rated.startswith("data/rated: dataset.json cannot be read (")


def test_a_table_with_another_schema_is_named_with_its_columns(store: Path) -> None:
    path = store / "data" / "pool" / "gold.parquet"
    table = pq.read_table(path)
    write_table(path, table.set_column(2, "score", pc.cast(table["score"], pa.float32())))
    assert wrong(check(store)) == [
        "data/pool: gold.parquet has other columns: it lacks score: double not null and has score: float"
    ]


def test_parts_must_have_the_same_columns(store: Path) -> None:
    def add_column(columns: dict[str, Any]) -> None:
        columns["odds"] = np.ones(8, dtype=np.float32)

    rewrite(part(store), add_column)
    assert wrong(check(store)) == [
        "embeddings: part-00001.parquet has other columns than the first part",
        "embeddings: part-00002.parquet has other columns than the first part",
    ]


def test_text_that_is_not_utf8_is_named(store: Path) -> None:
    path = store / "data" / "prefs" / "responses.parquet"
    table = pq.read_table(path)
    damaged = pa.array([b"\xff"] * len(table), pa.binary()).view(pa.string())
    write_table(path, table.set_column(6, table.schema.field("source"), damaged))
    (defect,) = wrong(check(store))
    assert defect.startswith("data/prefs: responses.parquet cannot be read (")


def test_prompts_are_counted(store: Path) -> None:
    edit_json(store / "data" / "prefs" / "dataset.json", prompts=13)
    assert wrong(check(store)) == ["data/prefs: 12 prompts, dataset.json says 13"]


def test_a_dropped_row_cannot_have_a_vector(store: Path) -> None:
    first = opened(store).ids()[0]
    edit_json(part(store).parent / "manifest.json", dropped={first: "9 tokens"})
    assert wrong(check(store)) == [f"embeddings: {first} has a vector and is listed as dropped"]


def run_of(store: Path, **changes: object) -> dict[str, object]:
    """A run.json that is right, but for the changes."""
    hashes = content_hashes(Store(store))
    run = {"run_id": "linear-1-s0", "embedding": SPEC.fingerprint, "attributes_dataset": None, "attributes_hash": None}
    return {**run, "pairs_dataset": "prefs", "pairs_hash": hashes["prefs"], **changes}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"run_id": "x"}, ["run.json is of run 'x'"]),
        ({"embedding": "e"}, ["its embedding e is not in the store"]),
        ({"pairs_dataset": "lost"}, ["its dataset 'lost' is not in the store"]),
        ({"pairs_hash": "0" * 64}, ["its dataset 'prefs' was replaced: fitted on 000000000000..., now "]),
        ({"attributes_dataset": "rated", "attributes_hash": "1" * 64}, ["its dataset 'rated' was replaced: "]),
    ],
)
def test_a_run_names_what_it_came_from(store: Path, changes: dict[str, object], expected: list[str]) -> None:
    found = list(run_defects(Store(store), "linear-1-s0", run_of(store, **changes), content_hashes(Store(store))))
    assert len(found) == len(expected)
    assert all(one.startswith(beginning) for one, beginning in zip(found, expected, strict=True))
