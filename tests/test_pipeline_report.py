"""The report on a store that was fitted and judged by the commands: its pictures, its commands, its size."""

import json
import math
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from test_bench_report import Page
from test_cache_embeddings import SPEC as ANY_SPEC

from bench.report.best_of_n import described
from bench.report.page import Findings, gather, render
from bench.report.source import Source, identifier
from cache.files import write_json, write_table
from cache.store import Store

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"
LAYERS, POOLS = (9,), ("mean",)
Row = dict[str, Any]


def text(quality: int, length: int, more: str = "") -> str:
    return " ".join(["good"] * quality + ["word"] * length + [more]).strip()


def sources() -> dict[str, list[Row]]:
    """Pairs with subsets (every tenth is labelled the wrong way round), attributes, two benchmarks and a pool."""
    rng = np.random.default_rng(0)

    def some(more: str = "") -> str:
        return text(int(rng.integers(6)), int(rng.integers(1, 30)), more)

    def pair(prompt: str, wrong: bool = False) -> Row:
        better, worse = text(4, int(rng.integers(1, 30))), text(1, int(rng.integers(1, 30)))
        if wrong:
            better, worse = worse, text(6, 3, EVIL)
        return {"prompt": prompt, "chosen": better, "rejected": worse}

    prefs = [{**pair(f"q {n}", n % 10 == 0), "source": "s", "subset": ["one", "two"][n % 2]} for n in range(200)]
    attrs = [
        {
            "prompt": f"q {n}",
            "response": (answer := some(str(k))),
            "use": answer.count("good") / 2,
            "brief": -len(answer),
        }
        for n in range(200)
        for k in range(2)
    ]
    styles = [(2, 1), (2, 10), (2, 20)]
    rm = [
        {
            "prompt": f"rm {n}",
            "chosen": [text(2 + n % 3, length, f"c{k}") for k, (_, length) in enumerate(styles)],
            "rejected": [text(2, length, f"r{k}") for k, (_, length) in enumerate(styles)],
            "domain": ["chat", "code"][n % 2],
        }
        for n in range(24)
    ]
    v1 = [{**pair(f"v {n}"), "subset": ["llmbar-natural", "hep-go"][n % 2]} for n in range(40)]
    pooled = [(n, some(str(k))) for n in range(40) for k in range(8)]
    pool = [
        {"prompt_id": str(n), "prompt": f"p {n}", "response": a, "gold_score": 6.0 - abs(a.count("good") - 3)}
        for n, a in pooled
    ]
    return {"prefs": prefs, "attrs": attrs, "rm": rm, "v1": v1, "pool": pool}


def embed_by_text(store: Store) -> None:
    """In place of a backbone: how good the text says it is, how long it is, and noise."""
    from dataclasses import replace

    spec = replace(ANY_SPEC, layers=LAYERS, pool=POOLS, stored_dtype="float32")
    texts = {
        row["response_id"]: row["response"]
        for name in store.dataset_names()
        for row in store.dataset(name)["responses"].to_pylist()
    }
    rng = np.random.default_rng(1)
    vectors = np.array([[one.count("good"), len(one) / 50, *rng.normal(size=2)] for one in texts.values()], np.float32)
    vectors[:, 0] += rng.normal(scale=0.5, size=len(vectors))
    words = np.array([len(one.split()) for one in texts.values()], np.int32)
    counts = {"tokens": words + 3, "response_tokens": words, "cut_tokens": 0 * words}
    store.create_embeddings(spec).append(list(texts), {"L9.mean": vectors}, counts)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from click.testing import CliRunner

    from pipeline.cli import main
    from pipeline.readers import read_source

    folder = tmp_path_factory.mktemp("report")
    store = Store(folder / "store")
    for name, rows in sources().items():
        store.write_dataset(read_source(str(write_jsonl(folder / f"{name}.jsonl", rows))))
    embed_by_text(store)

    def run(*args: object) -> None:
        result = CliRunner().invoke(main, [*map(str, args), "--store", str(store.root)])
        assert result.exit_code == 0, result.output

    run("fit", "--head", "linear", "--pairs", "prefs", "--seeds", 2)
    run("fit", "--head", "ridge", "--attributes", "attrs", "--no-control")
    run("fit", "--head", "smorm", "--pairs", "prefs", "--attributes", "attrs", "--no-control", "-o", "epochs", 3)
    run("evaluate", *(word for name in sources() for word in ("--on", name)))
    return store.root


@pytest.fixture(scope="module")
def findings(store: Path) -> Findings:
    return gather(store)


@pytest.fixture(scope="module")
def page(findings: Findings) -> Page:
    return Page(render(findings))


def metric(store: Path, head: str, scorer: str, name: str, dataset: str, subset: str | None) -> float:
    """The mean over seeds, from the files themselves."""
    runs = [Store(store).run(run_id) for run_id in Store(store).run_names()]
    tables = [
        pq.read_table(store / "runs" / run["run_id"] / "metrics.parquet").to_pylist()
        for run in runs
        if run["head"] == head and run["control"] is None
    ]
    wanted = {"scorer": scorer, "metric": name, "dataset": dataset, "subset": subset}
    values = [row["value"] for rows in tables for row in rows if wanted.items() <= row.items()]
    assert values
    return float(np.mean(values))


def test_every_picture_is_there(page: Page) -> None:
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    sections = [
        "accuracy",
        "benchmarks",
        "best-of-n",
        "calibration",
        "length",
        "attributes",
        "wrong",
        "data",
        "runs",
        "again",
    ]
    assert links == {f"#{section}" for section in sections}
    assert {attributes.get("id") for tag, attributes in page.tags if tag == "section"} == set(sections)
    figures = [attributes for _, attributes in page.tags if attributes.get("role") in ("img", "region")]
    assert len(figures) > 20
    assert all(attributes.get("aria-label") for attributes in figures)


def test_every_command_that_the_page_shows_runs(page: Page, store: Path, run_cli: Callable[..., Any]) -> None:
    lines = [shlex.split(command) for command in page.commands]
    asked = [line for line in lines if line[1] == "query"]
    assert len(asked) > 15
    for _, *words in asked:
        result = run_cli(*words, "--json", "--store", store)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout), words
    tests = [line for line in lines if line[1] == "compare"]
    assert len(tests) == 3  # prefs, rm, v1
    for _, *words in tests:
        assert run_cli(*words, "--json", "--store", store).exit_code == 0, words


def test_a_matrix_says_what_the_rule_found(findings: Findings, store: Path) -> None:
    titles = {(matrix.dataset, matrix.title): matrix for matrix in findings.matrices}
    rm = titles["rm", "RM-Bench"]
    assert rm.partial
    assert set(rm.missing) == {"math", "safety"}
    row = next(row for row in rm.main.rows if row.name.head == "linear")
    hard = metric(store, "linear", "reward", "rm_bench_partial", "rm", "hard")
    assert row.cells[rm.main.columns.index("hard")].text == f"{100 * hard:.1f}"
    v1 = titles["v1", "RewardBench"]
    assert v1.main.columns == ("overall", "Chat Hard", "Reasoning")
    assert v1.parts is not None
    assert [column.replace("\N{ZERO WIDTH SPACE}", "") for column in v1.parts.columns] == ["llmbar-natural", "hep-go"]
    assert titles["prefs", "accuracy by subset"].main.columns == ("overall", "one", "two")


def test_rm_bench_styles_average_to_the_difficulties(findings: Findings, store: Path) -> None:
    (rm,) = [matrix for matrix in findings.matrices if matrix.title == "RM-Bench"]
    grid = next(grid for grid in rm.grids if grid.name == "linear")
    matrix = np.array([[float(cell.text) for cell in cells] for _, cells in grid.rows])
    for name, part in (
        ("hard", np.triu_indices(3, 1)),
        ("easy", np.tril_indices(3, -1)),
        ("normal", np.diag_indices(3)),
    ):
        stored = metric(store, "linear", "reward", "rm_bench_partial", "rm", name)
        assert matrix[part].mean() == pytest.approx(100 * stored, abs=0.06)  # of rounding


def test_gold_that_falls_while_the_proxy_rises_is_called_past_its_peak(findings: Findings, page: Page) -> None:
    (pool,) = findings.curves
    hacked = {panel.name.head: panel for panel in pool.panels}["linear"]  # gold is best at three times "good"
    assert 0 < hacked.peak_kl < math.log(8) - 7 / 8
    assert hacked.peak_kl == pytest.approx((hacked.alpha.value / (2 * hacked.beta.value)) ** 2)
    assert hacked.past_its_peak and "past its peak" in page.text
    assert pool.pool is not None
    doubtful = replace(hacked, beta=replace(hacked.beta, low=-0.1))
    assert not doubtful.past_its_peak and "do not tell from no peak" in described(doubtful)


def test_the_proxy_ends_at_one_and_gold_at_its_share(findings: Findings, store: Path) -> None:
    (pool,) = findings.curves
    panel = next(panel for panel in pool.panels if panel.name.head == "linear")
    ends = {
        row["scorer"]: row["value"] for row in pool.gains.rows if row["metric"] == "best_of_n_gain" and row["at"] == 8
    }
    source = Source.open(store)
    sql = """SELECT avg(m.value) AS v FROM metrics m JOIN runs r USING (run_id) WHERE m.metric = 'best_of_n_gain'
             AND m.at = 8 AND r.head = 'linear' AND r.control IS NULL AND m.scorer = 'reward'"""
    assert panel.end == pytest.approx(source.ask(sql).rows[0]["v"] / ends["oracle"])


def test_the_worst_pairs_are_the_mislabelled_ones_and_others_agree(findings: Findings) -> None:
    wrong = next(one for one in findings.wrong if one.dataset == "prefs")
    assert all(EVIL in pair.rejected.text for pair in wrong.pairs[:2])
    margins = [pair.margin for pair in wrong.pairs]
    assert margins == sorted(margins)
    assert margins[-1] < 0
    assert wrong.others == 4  # of linear, smorm F, L and M, ridge L
    assert all(0 <= pair.also <= wrong.others for pair in wrong.pairs)
    assert wrong.pairs[0].also > 0


def test_the_command_of_the_worst_pairs_gives_them_in_their_order(
    findings: Findings, store: Path, run_cli: Callable[..., Any]
) -> None:
    wrong = next(one for one in findings.wrong if one.dataset == "prefs")
    rows = json.loads(run_cli(*shlex.split(wrong.command)[1:], "--json", "--store", store).stdout)
    shown = [(pair.pair_id, pytest.approx(pair.margin)) for pair in wrong.pairs]
    assert [(row["pair_id"], row["margin"]) for row in rows[: len(shown)]] == shown


def test_html_in_a_response_stays_text(findings: Findings, page: Page) -> None:
    html = render(findings)
    assert EVIL not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)") >= 2
    assert EVIL in page.text
    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags
    assert tags.count("script") == 1  # ours
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_pairs_can_be_read_and_opened_without_the_script(page: Page, findings: Findings) -> None:
    table = next(text for text in re.findall(r'(?s)<table class="pairs">.*?</table>', render(findings)))
    assert table.count("<details>") == len(findings.wrong[0].pairs)
    assert "hidden" not in table.replace("hidden/", "")
    assert "onclick" not in table


def test_a_paired_difference_is_the_difference_of_accuracies_on_the_same_pairs(findings: Findings, store: Path) -> None:
    board = next(board for board in findings.boards if board.dataset == "v1")
    best, other = board.rows[0], board.rows[1]
    assert math.isnan(best.behind.value)
    n = other.behind.n
    assert n == best.accuracy.n == other.accuracy.n  # nobody was fitted on v1, and there are no ties
    assert other.behind.value == pytest.approx(other.accuracy.value - best.accuracy.value)
    assert other.behind.low <= other.behind.value <= other.behind.high


def test_length_and_attributes_say_the_stored_numbers(findings: Findings, store: Path) -> None:
    length = next(one for one in findings.lengths if one.dataset == "prefs")
    row = next(row for row in length.rows if row.name.head == "linear")
    assert row.correlation.value == metric(store, "linear", "reward", "length_spearman_within", "prefs", None)
    profile = next(one for one in findings.profiles if one.dataset == "attrs")
    assert profile.table.columns == ("brief", "use")
    cell = profile.table.rows[0].cells[1]
    assert "R\N{SUPERSCRIPT TWO}" in cell.title
    assert cell.shade.startswith("a")
    margins = next(one for one in findings.margins if one.dataset == "rm")
    assert [table.subset for table in margins.tables] == ["", "easy", "normal", "hard"]
    use = next(row for row in margins.tables[0].rows if row.attribute == "use" and row.name.head == "ridge")
    assert use.correct.mean.value > use.false.mean.value
    pairs = use.correct.mean.n + use.false.mean.n
    assert pairs == 24 * 9


def test_a_store_of_two_hundred_runs_gives_a_page_of_a_few_megabytes(store: Path, tmp_path: Path) -> None:
    many = tmp_path / "store"
    shutil.copytree(store, many)
    run_id = next(name for name in Store(store).run_names() if name.startswith("smorm"))
    for number in range(200):
        clone(many, run_id, number // 2, number % 2)
    findings = gather(many)
    html = render(findings)
    assert len(html.encode()) < 5e6
    board = next(board for board in findings.boards if board.dataset == "prefs")
    assert board.shown == 5  # the best of each head, and score of it
    assert len(board.rows) > 300
    assert "more" in Page(html).text


def clone(store: Path, run_id: str, group: int, seed: int) -> None:
    """Another run with the same numbers under another name, and an option that tells its group apart."""
    old, name = store / "runs" / run_id, f"smorm-{group:08x}"
    run = {**json.loads((old / "run.json").read_text()), "run_id": f"{name}-s{seed}", "group": name, "seed": seed}
    run["options"] = {**run["options"], "trunk": group}
    new = store / "runs" / str(run["run_id"])
    for file in ("metrics.parquet", "scores.parquet"):
        table = pq.read_table(old / file)
        place = table.column_names.index("run_id")
        ids = pa.array([run["run_id"]] * len(table), table.schema.field("run_id").type)
        write_table(new / file, table.set_column(place, table.schema.field("run_id"), ids))
    write_json(new / "run.json", run)


def test_scores_of_a_head_that_gives_one_are_named_by_its_group_alone(findings: Findings, store: Path) -> None:
    board = next(board for board in findings.boards if board.dataset == "v1")
    words = board.compare.split()
    assert words[:2] == ["pipeline", "compare"]
    named = [word for word in words[2:] if word.startswith(("ridge", "smorm", "linear"))]
    assert sum(":" in word for word in named) == 3  # F, L and M of smorm


def test_compare_takes_predictions_of_an_attribute(store: Path, run_cli: Callable[..., Any]) -> None:
    groups = {run["head"]: run["group"] for run in map(Store(store).run, Store(store).run_names())}
    words = ("compare", groups["ridge"], groups["smorm"], "--on", "attrs", "--attribute", "use", "--store", store)
    result = run_cli(*words, "--json")
    assert result.exit_code == 0, result.output
    rows = {row["score"]: row for row in json.loads(result.stdout)}
    for head in ("ridge", "smorm"):
        stored = metric(store, head, "attribute:use", "attribute_r2", "attrs", None)
        assert rows[groups[head]]["value"] == pytest.approx(stored)
    assert rows["mean"]["value"] == pytest.approx(0)
    assert set(rows) == {groups["ridge"], groups["smorm"], "mean"}
    assert rows[groups["smorm"]]["metric"] == "attribute_r2"
    difference = rows[groups["smorm"]]["value"] - rows[groups["ridge"]]["value"]
    assert rows[groups["smorm"]]["difference"] == pytest.approx(difference)
    assert "attrs: R2 of use, on " in run_cli(*words).stderr


@pytest.mark.parametrize(
    ("attribute", "on", "names", "said"),
    [
        ("use", "prefs", ("ridge", "smorm"), "'prefs' has no annotated 'use'; it has no attributes"),
        ("use", "attrs", ("ridge", "linear"), "has no score 'use'"),
        ("use", "attrs", ("ridge", "smorm:F"), "name runs or groups without a score"),
    ],
)
def test_an_attribute_that_cannot_be_compared_is_one_sentence(
    attribute: str, on: str, names: tuple[str, ...], said: str, store: Path, run_cli: Callable[..., Any]
) -> None:
    groups = {run["head"]: run["group"] for run in map(Store(store).run, Store(store).run_names())}
    named = [name.replace(head, groups[head]) for name in names for head in [name.partition(":")[0]]]
    result = run_cli("compare", *named, "--on", on, "--attribute", attribute, "--store", store)
    assert result.exit_code == 1
    assert said in result.stderr


def test_a_score_named_by_a_word_of_sql_is_quoted() -> None:
    assert [identifier(name) for name in ("reward", "both", "Order", "a b", 'a"b')] == [
        "reward",
        '"both"',
        '"Order"',
        '"a b"',
        '"a""b"',
    ]
