from pathlib import Path

import pytest

from cache.records import Dataset, DatasetBuilder, content_hash, prompt_id, response_id

USER = [{"role": "user", "content": "hello"}]


def build(name: str = "d") -> DatasetBuilder:
    builder = DatasetBuilder(name)
    good = builder.add_response(USER, "good", generator="g")
    bad = builder.add_response(USER, "bad")
    builder.add_pair(good, bad, margin=2.0)
    builder.add_pair(good, bad)
    builder.add_attribute(good, "help", 3.0)
    builder.add_gold(good, "judge", 1.0)
    builder.add_gold(good, "judge", 0.0)
    return builder


def test_ids_come_from_content_alone() -> None:
    with_extra_key = [{"role": "user", "content": "hello", "name": "x"}]
    assert prompt_id(USER) == prompt_id(with_extra_key)
    assert response_id(USER, "a") == response_id([dict(USER[0])], "a")


def test_ids_differ_where_content_differs() -> None:
    other = [{"role": "system", "content": "hello"}]
    ids = {response_id(USER, "a"), response_id(USER, "a "), response_id(other, "a"), prompt_id(USER), prompt_id(other)}
    assert len(ids) == 5


def test_a_text_is_one_response_and_every_annotation_a_row() -> None:
    tables = build().tables()
    assert {name: len(table) for name, table in tables.items()} == {
        "responses": 2,
        "pairs": 2,
        "attributes": 1,
        "gold": 2,
    }
    assert len(set(tables["pairs"]["pair_id"].to_pylist())) == 2


def test_alternating_prompts_keep_their_own_ids() -> None:
    builder = DatasetBuilder("d")
    other = [{"role": "user", "content": "bye"}]
    keys = [builder.add_response(prompt, "a") for prompt in (USER, other, USER)]
    assert keys == [response_id(USER, "a"), response_id(other, "a"), response_id(USER, "a")]


def test_a_dataset_comes_back_as_it_was_written(tmp_path: Path) -> None:
    tables = build().tables()
    info = {"counts": {name: len(table) for name, table in tables.items()}, "content_hash": content_hash(tables)}
    Dataset("d", tables, info).write(tmp_path / "d")
    again = Dataset.read(tmp_path / "d")
    assert again.info == info
    assert all(again[name].equals(tables[name]) for name in tables)
    assert content_hash(again.tables) == info["content_hash"]


def test_content_hash_sees_a_changed_label() -> None:
    first, second = build().tables(), build().tables()
    assert content_hash(first) == content_hash(second)
    builder = build()
    builder.add_gold(response_id(USER, "bad"), "judge", 0.5)
    assert content_hash(first) != content_hash(builder.tables())


def test_replacing_a_dataset_removes_the_old_tables(tmp_path: Path) -> None:
    tables = build().tables()
    Dataset("d", tables, {"content_hash": "a", "counts": dict.fromkeys(tables, 1)}).write(tmp_path / "d")
    fewer = {"responses": tables["responses"]}
    Dataset("d", fewer, {"content_hash": "b", "counts": {"responses": 2}}).write(tmp_path / "d")
    assert not (tmp_path / "d" / "pairs.parquet").exists()
    assert len(Dataset.read(tmp_path / "d")["pairs"]) == 0


def test_a_damaged_dataset_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json is not valid JSON"):
        Dataset.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{}", r"dataset\.json is damaged \(lacks 'counts'\); `pipeline verify`"),
        ("[]", r"dataset\.json holds no JSON object"),
    ],
)
def test_a_dataset_json_that_lacks_something_is_named(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=what):
        Dataset.read(tmp_path)
