import csv
import io
import json

import pyarrow as pa

from bench.tables import WIDEST, as_csv, as_json, as_jsonl, as_markdown, as_text

TABLE = pa.table(
    {
        "head": ["bt", "a|b"],
        "n": [5, 12345],
        "accuracy": [0.65432, float("nan")],
        "list": pa.array([[1.5], None], pa.list_(pa.float64())),
    }
)


def test_text_aligns_numbers_to_the_right() -> None:
    assert as_text(TABLE) == (
        "head      n  accuracy  list\n"
        "----  -----  --------  -----\n"
        "bt        5    0.6543  [1.5]\n"
        "a|b   12345\n"
        "(2 rows)\n"
    )


def test_floats_have_four_significant_digits_of_the_largest() -> None:
    shown = as_text(pa.table({"x": [123.456, 0.5], "tiny": [1.5e-6, 0.0], "zero": [0.0, None]}))
    assert shown.splitlines()[2].split() == ["123.5", "1.500e-06", "0.000"]
    assert shown.splitlines()[3].split() == ["0.5", "0.000e+00"]


def test_a_text_can_neither_break_the_line_nor_steer_the_terminal() -> None:
    shown = as_text(pa.table({"text": ["a\nb\x1b[31m" + "x" * 100]}))
    line = shown.splitlines()[2]
    assert line.startswith("a\\nb\\x1b[31m")
    assert len(line) == WIDEST


def test_csv_keeps_every_digit() -> None:
    rows = list(csv.reader(io.StringIO(as_csv(TABLE))))
    assert rows == [["head", "n", "accuracy", "list"], ["bt", "5", "0.65432", "[1.5]"], ["a|b", "12345", "", ""]]


def test_json_has_null_for_nan() -> None:
    rows = json.loads(as_json(TABLE))
    assert rows[0] == {"head": "bt", "n": 5, "accuracy": 0.65432, "list": [1.5]}
    assert rows[1]["accuracy"] is None


def test_markdown_escapes_pipes() -> None:
    assert as_markdown(TABLE).splitlines() == [
        "| head | n | accuracy | list |",
        "| --- | ---: | ---: | --- |",
        "| bt | 5 | 0.6543 | [1.5] |",
        "| a\\|b | 12345 |  |  |",
    ]


def test_an_empty_table_still_has_its_header() -> None:
    empty = TABLE.slice(0, 0)
    assert as_text(empty).splitlines()[0].split() == ["head", "n", "accuracy", "list"]
    assert as_text(empty).endswith("(0 rows)\n")
    assert json.loads(as_json(empty)) == []


def test_json_lines_are_the_rows_of_json() -> None:
    lines = as_jsonl(TABLE).splitlines()
    assert [json.loads(line) for line in lines] == json.loads(as_json(TABLE))
    assert json.loads(lines[1])["accuracy"] is None
