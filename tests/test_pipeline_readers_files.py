"""Where rows come from: kinds of file, their defects, names, and datasets in hub layout."""

import csv
import gzip
import json
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache.files import sha256_of_file
from pipeline.readers import dataset_name, read_numbered, read_source

TURNS = [{"role": "user", "content": "Hé, why?"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": TURNS, "response": 'a,\n"quoted"', "gold_score": 1.5, "generator": "m"},
    {"prompt": "plain [{", "response": "0042", "gold_score": -1.0, "generator": None},
]
PARQUET_ROWS = [{**row, "prompt": TURNS, "gold_score": Decimal(str(row["gold_score"]))} for row in ROWS]
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def write_jsonl(path: Path) -> None:
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")


def write_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")


def write_json_data(path: Path) -> None:
    path.write_text(json.dumps({"data": ROWS}), encoding="utf-8")


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        for row in ROWS:
            prompt = row["prompt"]
            writer.writerow({**row, "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt)})


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(PARQUET_ROWS), path)


def gzipped(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def write_and_compress(path: Path) -> None:
        write(path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return write_and_compress


@pytest.mark.parametrize(
    ("ending", "write"),
    [
        ("jsonl", write_jsonl),
        ("jsonl.gz", gzipped(write_jsonl)),
        ("JSON", write_json),
        ("json", write_json_data),
        ("json", write_jsonl),  # JSON lines under a .json name
        ("json.gz", gzipped(write_json)),
        ("csv", write_csv),
        ("csv.gz", gzipped(write_csv)),
    ],
)
def test_every_kind_of_file_gives_the_same_tables(ending: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / f"my.pool.{ending}"
    write(path)
    dataset = read_source(str(path))
    assert dataset.name == "my.pool"
    responses = dataset["responses"].to_pylist()
    assert [row["response"] for row in responses] == ['a,\n"quoted"', "0042"]
    assert json.loads(responses[0]["prompt"]) == TURNS
    assert json.loads(responses[1]["prompt"]) == [{"role": "user", "content": "plain [{"}]
    assert [row["generator"] for row in responses] == ["m", None]
    assert dataset["gold"]["score"].to_pylist() == [1.5, -1.0]
    assert dataset.info["sha256"] == sha256_of_file(path)


def test_parquet_with_messages_and_decimals(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pool.parquet")
    dataset = read_source(str(tmp_path / "pool.parquet"))
    assert dataset["gold"]["score"].to_pylist() == [1.5, -1.0]
    assert json.loads(dataset["responses"]["prompt"][1].as_py()) == TURNS


def test_csv_numbers_are_scores_and_its_texts_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,response,quality,style,comment\n1,2,3.5,,4\n1,007,nan,1e-1,fine\n")
    dataset = read_source(str(path))
    assert dataset["responses"]["response"].to_pylist() == ["2", "007"]
    assert dataset["attributes"]["attribute"].to_pylist() == ["quality", "style"]
    assert dataset["attributes"]["score"].to_pylist() == [3.5, 0.1]


def test_csv_holds_long_texts(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text(f"prompt,chosen,rejected\np,{'a ' * 100_000},b\n")
    assert len(read_source(str(path))["responses"]["response"][0].as_py()) == 200_000


def test_jsonl_row_numbers_are_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(PAIR)}\n\n\n{json.dumps({**PAIR, 'chosen': ''})}\n")
    info = read_source(str(path)).info
    assert info["refused"] == [{"reason": "chosen is empty", "count": 1, "rows": [4]}]
    assert info["row_numbers"] == "lines of the file"
    assert info["rows"] == 2


GOOD_LINE = json.dumps(PAIR).encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "a.jsonl",
            GOOD_LINE * 2 + b'{"prompt": "p", \n',
            r"line 3 of .*a\.jsonl is not JSON \(.*\); repair or remove",
        ),
        ("a.jsonl", GOOD_LINE + b"[1, 2]\n", r"line 2 of .* is not a JSON object; each line must be"),
        ("a.jsonl", GOOD_LINE + b'{"prompt": "\xe9"}\n', r"line 2 of .* is not UTF-8 \(invalid .*\); convert"),
        ("a.jsonl", b"", r"a\.jsonl is empty \(0 bytes\); give"),
        ("a.jsonl", b"\n\n", r"a\.jsonl holds no rows; give"),
        ("a.jsonl.gz", gzip.compress(GOOD_LINE * 99)[:-12], r"is cut off: its gzip stream ends early; fetch"),
        ("a.jsonl.gz", GOOD_LINE, r"is not valid gzip \(Not a gzipped file.*\); fetch it again or drop the \.gz"),
        ("a.json", b'{\n"prompt": "p"}', r"is not a list of rows; write \[row"),
        ("a.json", b'[{"prompt": "p"},', r"a\.json is not valid JSON \(.*\); repair it"),
        ("a.json", b'["p"]', r"row 1 of .* is not a JSON object"),
        ("a.json", b'[{"prompt": "\xe9"}]', r"a\.json is not UTF-8 \(.*\); convert it"),
        (
            "a.csv",
            b"prompt,chosen,rejected\np,a\n",
            r"data row 1 of .* \(ending at line 2\) has 2 fields, the header 3",
        ),
        (
            "a.csv",
            b'prompt,chosen,rejected\np,a,"b\n',
            r"is not valid CSV \(unexpected end of data\); check the quotes",
        ),
        (
            "a.csv",
            b"prompt,chosen,chosen\np,a,b\n",
            r"two columns of one name in its header \(prompt, chosen, chosen\)",
        ),
        ("a.csv", b"prompt,chosen,rejected\n\xe9,a,b\n", r"a\.csv is not UTF-8"),
        ("a.parquet", b"PAR1 and then nothing", r"a\.parquet is not valid Parquet \(.*\); fetch it again"),
        ("a.parquet.gz", b"x", r"gzipped Parquet, .*; gunzip it first"),
        ("a.txt", GOOD_LINE, r"a\.txt has no ending that says what it is; rename it"),
    ],
)
def test_damaged_files_say_what_where_and_what_to_do(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_source(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["absent.jsonl", "./absent", "/no/where/absent", "absent.csv.gz"])
def test_missing_file(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file /.*absent.*; check the path"):
        read_source(source)


def test_file_has_no_split(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD_LINE)
    with pytest.raises(ValueError, match=r"a\.jsonl is a file, which has no split 'train'; leave that out"):
        read_source(str(tmp_path / "a.jsonl"), split="train")


def test_names_become_safe() -> None:
    assert dataset_name("my data (v2)") == "my-data-v2-"
    assert dataset_name("../../etc") == "etc"
    assert dataset_name("データ") == "dataset"


def test_unsafe_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD_LINE)
    with pytest.raises(ValueError, match=r"a dataset cannot be named '\.\./a'; use letters"):
        read_source(str(tmp_path / "a.jsonl"), name="../a")


@pytest.fixture
def hub_directory(tmp_path: Path) -> Path:
    """Two configurations, declared in README.md; the first has two splits."""
    pytest.importorskip("datasets")
    directory = tmp_path / "my-set"
    for path, reply in [("main/train", "a"), ("main/test", "c"), ("extra/train", "d")]:
        file = directory / f"{path}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [{**PAIR, "prompt": TURNS, "chosen": [{"role": "assistant", "content": reply}]}]
        pq.write_table(pa.Table.from_pylist([*rows, {**rows[0], "rejected": ""}]), file)
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in splits)
        for name, splits in [("main", ["train", "test"]), ("extra", ["train"])]
    )
    (directory / "README.md").write_text(f"---\nconfigs:\n{configs}---\n# A set\n")
    return directory


def test_local_directory_in_hub_layout(hub_directory: Path) -> None:
    dataset = read_source(str(hub_directory), config="main", split="test")
    assert dataset.name == "my-set"
    assert dataset["responses"]["response"].to_pylist() == ["c", "b"]
    assert json.loads(dataset["responses"]["prompt"][0].as_py()) == TURNS
    assert dataset.info["refused"] == [{"reason": "rejected is empty", "count": 1, "rows": [2]}]
    origin = dataset.info["origin"]
    assert origin.pop("fingerprint")
    assert origin == {"path": str(hub_directory), "config": "main", "split": "test"}
    train = read_source(str(hub_directory), config="main", split="train")
    assert train.info["sha256"] != dataset.info["sha256"]
    assert train["responses"]["response"].to_pylist() == ["a", "b"]


def test_only_split_needs_no_name(hub_directory: Path) -> None:
    assert read_source(str(hub_directory), config="extra").info["origin"]["split"] == "train"


def test_unclear_config_or_split_lists_the_choices(hub_directory: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot load .*my-set as a dataset: .*main.*extra"):
        read_source(str(hub_directory))
    with pytest.raises(ValueError, match=r"has several splits; pass --split with one of train, test"):
        read_source(str(hub_directory), config="main")
    with pytest.raises(ValueError, match=r"has no split 'val'; pass --split with one of train, test"):
        read_source(str(hub_directory), config="main", split="val")
    with pytest.raises(ValueError, match=r"is a local directory, which has no revision 'main'"):
        read_source(str(hub_directory), config="main", split="test", revision="main")


def test_damaged_hub_file_is_one_sentence(hub_directory: Path) -> None:
    (hub_directory / "extra/train-00000-of-00001.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"cannot (read split train of|load) .*my-set"):
        read_source(str(hub_directory), config="extra")


def test_directory_without_data(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match=r"cannot load .* as a dataset: .*doesn't contain any data files"):
        read_source(str(tmp_path))


def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"run `pip install rewardheads\[hub\]`"):
        read_source(str(tmp_path))
    with pytest.raises(ValueError, match=r"run `pip install rewardheads\[hub\]`"):
        read_source("someone/something")


def test_unreachable_hub_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", _unreachable)
    with pytest.raises(ValueError, match=r"no-such/set is no local file, and the hub cannot be reached .*no route"):
        read_source("no-such/set")


def _unreachable(*args: object, **options: object) -> None:
    raise ConnectionError("no route to host")


def test_hub_dataset_is_read_at_one_commit(
    hub_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The local directory stands in for the hub: asked for by id and commit, read through the download cache."""
    import datasets

    def builder(source: str, config: str | None, revision: str | None) -> object:
        assert (source, config, revision) == ("someone/my-set", "main", "c0ffee")
        return datasets.load_dataset_builder(str(hub_directory), config, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr("pipeline.readers.hub.commit_of", lambda source, revision: {"v1": "c0ffee"}[revision])
    monkeypatch.setattr("pipeline.readers.hub._builder", builder)
    dataset = read_source("someone/my-set", config="main", split="train", revision="v1")
    assert dataset.name == "my-set"
    assert dataset["responses"]["response"].to_pylist() == ["a", "b"]
    origin = dataset.info["origin"]
    assert origin.pop("fingerprint")
    assert origin == {"hub": "someone/my-set", "config": "main", "split": "train", "revision": "c0ffee"}
    assert dataset.info["sha256"] is None


def test_responses_and_pairs_know_the_row_that_they_stand_in(tmp_path: Path) -> None:
    other = {"prompt": "p", "chosen": "c", "rejected": "b"}
    rows = [{**PAIR, "chosen": ""}, PAIR, PAIR, other]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    dataset, numbers = read_numbered(str(tmp_path / "a.jsonl"))
    assert dataset["responses"]["response"].to_pylist() == ["a", "b", "c"]
    assert numbers.responses == [1, 1, 3]  # refused rows are counted and blank lines are not
    assert numbers.pairs == [1, 2, 3]
    assert dataset.info == read_source(str(tmp_path / "a.jsonl")).info
    with pytest.raises(ValueError, match="no format is named 'x'"):
        read_numbered(str(tmp_path / "a.jsonl"), format="x")
