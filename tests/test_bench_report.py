import html.parser
import math
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from test_bench_results import write_dataset, write_embeddings, write_run

from bench.charts import LABEL_GAP, Axis, Line, curve_chart, interval_row
from bench.findings import Name, gather
from bench.intervals import Estimate
from bench.report import Origin, remarks, render, write_report
from cache.store import Store

EVIL = "<script>alert('x')</script>"


class Page(html.parser.HTMLParser):
    """The page's tags and text; a tag that is never closed is an error."""

    void = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def store(tmp_path: Path) -> Path:
    dataset = write_dataset(tmp_path, "hh", prompts=30)
    write_embeddings(tmp_path, dataset)
    write_run(tmp_path, dataset, "bt", noise=1.0)
    return tmp_path


def test_one_run_gives_one_page_that_asks_nothing_of_the_network(store: Path) -> None:
    write_report(store, store / "report.html")
    text = (store / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    loading = {"script", "link", "img", "iframe", "object"}
    assert not loading & {tag for tag, _ in page.tags}
    assert not any(name in attributes for _, attributes in page.tags for name in ("src", "onload", "onclick"))
    assert "url(" not in text
    assert "@import" not in text
    for section in ("Pair accuracy", "Best-of-n", "Attributes", "Data and embeddings", "Make it again"):
        assert section in page.text
    assert "3: empty response" in page.text


def test_the_page_says_the_numbers_of_the_leaderboard(store: Path) -> None:
    findings = gather(store)
    ((row,),) = [board.rows for board in findings.boards]
    text = Page(render(findings)).text
    assert f"{100 * row.accuracy.value:.1f}" in text
    assert f"[{100 * row.accuracy.low:.1f}, {100 * row.accuracy.high:.1f}]" in text


def test_texts_from_the_store_are_escaped(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, "hh", prompts=4)
    write_dataset(tmp_path, "<img src=x>", prompts=2)
    write_run(tmp_path, dataset, "bt", noise=1.0, options={"note": EVIL})
    write_run(tmp_path, dataset, "bt", noise=2.0, options={"note": EVIL * 2})
    text = render(gather(tmp_path))
    assert EVIL not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert" in text
    assert EVIL in Page(text).text


def test_an_empty_store_gives_sentences_and_no_empty_tables(tmp_path: Path) -> None:
    page = Page(render(gather(tmp_path)))
    assert "The store is empty." in page.text
    assert "Best-of-n" not in page.text
    assert not {"table", "svg"} & {tag for tag, _ in page.tags}


def test_a_store_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no store at"):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_many_groups_are_named_by_what_differs_and_fold_away(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, "hh", prompts=6)
    for k in range(26):
        write_run(tmp_path, dataset, "bt", noise=1 + k / 10, options={"hidden": k, "lr": 0.1})
    findings = gather(tmp_path)
    assert {row.name.detail for row in findings.boards[0].rows} == {f"hidden {k}" for k in range(26)}
    page = Page(render(findings))
    assert "2 more" in page.text
    assert "20 more are grey" in page.text


def test_seeds_are_averaged_and_controls_are_not_rows(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, "hh", prompts=40)
    for seed in range(3):
        write_run(tmp_path, dataset, "bt", noise=1.0, seed=seed)
    write_run(tmp_path, dataset, "bt", noise=1.0, control="shuffled labels")
    (board,) = gather(tmp_path).boards
    (row,) = board.rows
    assert len(row.seeds) == 3
    assert row.accuracy.value == pytest.approx(sum(row.seeds) / 3)
    assert abs(row.shuffled - 0.5) < 0.25
    assert 0 <= row.length <= 1


def test_a_head_says_what_it_was_fitted_on_only_where_that_tells_it_from_another() -> None:
    bt, clf = Name("bt", "", "a"), Name("clf", "", "a")
    assert Origin.of([bt, clf], "a") == Origin("", told=False)
    assert Origin.of([bt, clf], "b") == Origin("Fitted on a.", told=False)
    assert Origin.of([bt, replace(clf, fitted_on="b")], "b") == Origin(
        "Fitted on different data: see Runs.", told=False
    )
    both = Origin.of([bt, replace(bt, fitted_on="b"), clf], "b")
    assert both == Origin("", told=True)
    assert both.called(bt) == "bt (fitted on a)"


def test_commands_make_the_store_again(store: Path) -> None:
    options = {"hidden": 64, "lr": 0.001, "trunk": None, "widths": [4, 8], "scale": True}
    write_run(store, Store(store).dataset("hh"), "bt", noise=1.0, options=options)
    lines = [shlex.split(command) for command in gather(store).commands]
    assert [line[1] for line in lines] == ["embed", "fit", "evaluate", "report"]
    assert lines[0][2] == "/data/hh.jsonl"
    fit = " ".join(lines[1])
    assert "--head bt --pairs hh --features L2.last --seeds 1 --split-seed 0 --no-control" in fit
    assert "-o hidden 64 -o lr 0.001 -o trunk none -o widths 4,8 -o scale true" in fit
    assert lines[2] == ["pipeline", "evaluate", "bt-1", "--on", "hh"]


def test_remarks_tell_chance_and_length(store: Path) -> None:
    findings = gather(store)
    board, origin = findings.boards[0], findings.boards[0].rows[0].name
    row = replace(board.rows[0], accuracy=Estimate(0.55, 30, 0.4, 0.7), length=0.6)
    other = replace(row, name=replace(origin, head="clf"), accuracy=Estimate(0.52, 90, 0.45, 0.54))
    said = " ".join(remarks(replace(board, rows=(row, other)), Origin.of([origin], "hh")))
    assert "bt is highest: 55.0 % [40.0, 70.0] of 30 pairs." in said
    assert "The intervals of 0 of the other 1 reach that value." in said
    assert "Rows rest on 30 to 90 pairs" in said
    assert "2 of 2 cannot be told from chance" in said
    assert "length alone does at least as well (60.0 %)" in said


def test_an_axis_has_round_ticks_around_its_values() -> None:
    axis = Axis.over([0.5, 0.713, math.nan])
    assert axis.ticks == (0.5, 0.55, 0.6, 0.65, 0.7)
    assert axis.low < 0.5 < 0.713 < axis.high
    assert [axis.text(tick) for tick in axis.ticks][:2] == ["0.50", "0.55"]
    assert Axis.over([]).ticks
    assert Axis.over([2.0, 2.0]).share(2.0) == pytest.approx(0.5)


def test_an_interval_row_draws_what_is_known() -> None:
    axis = Axis(0.0, 1.0, (0.0, 0.5, 1.0))
    whole = interval_row(axis, Estimate(0.6, 9, 0.5, 0.75), seeds=(0.55, 0.65), shuffled=0.45)
    assert 'class="interval" x1="50.0%" x2="75.0%"' in whole
    assert whole.count('class="seed"') == 2
    assert 'class="shuffled" x="45.0%"' in whole
    bare = interval_row(axis, Estimate(0.6, 1, math.nan, math.nan), seeds=(0.6,))
    assert not any(part in bare for part in ("interval", "seed", "shuffled", "nan"))


def test_labels_of_equal_curves_do_not_overlap() -> None:
    gold = [Estimate(value, 5, value - 1, value + 1) for value in (0.0, 1.0)]
    chart = curve_chart([Line(f"s{k}", f"head {k}", (1, 2), gold, banded=True) for k in range(6)])
    tops = [label.top for label in chart.labels]
    assert all(after - before >= LABEL_GAP - 1e-9 for before, after in pairwise(tops))
    assert [tick.text for tick in chart.n_ticks] == ["1", "2"]
    assert [tick.text for tick in chart.kl_ticks] == ["0.00", "0.19"]
