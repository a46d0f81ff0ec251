"""The tables of docs/replication.md: what was run, benchmarks judged in the same store, and theory on the pools."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.results import connect, run_query
from bench.rules import RULES
from bench.rules.rmbench import DIFFICULTIES
from bench.tables import as_markdown
from cache.files import read_json

HEADS = ("bt", "odin", "ensemble", "morm", "ridge", "baseline-sm", "smorm", "gated")  # of SMORM's tables
COMMANDS = """
    pipeline embed DATA/bench_rewardbench_llmbar_ifbench.parquet DATA/bench_rmbench_sample.json.gz --backbone ...
    pipeline annotate attr_summeval_human --judge coherence --pairing same --beta 3 --pairs 4000 --name summeval_pairs
    pipeline fit --head smorm --head baseline-sm --head bt --pairs summeval_pairs --attributes attr_summeval_human \\
        --use consistency,fluency,relevance
    pipeline evaluate --on bench_rewardbench_llmbar_ifbench --on bench_rmbench_sample
"""


@dataclass(frozen=True)
class Progress:
    """How far a study is: fits declared, made, failed among these, and left; and what made them (study.json)."""

    cells: int
    made: int
    failed: int
    makers: Sequence[Mapping[str, Any]]

    @property
    def left(self) -> int:
        """Fits that are to be made."""
        return max(self.cells - self.made, 0)


def progress_of(store: Path, study: str) -> Progress:
    """Read off a study's results and its study.json."""
    sql = """SELECT count(DISTINCT cell) AS made, count(DISTINCT cell) FILTER (error IS NOT NULL) AS failed
             FROM studies WHERE study = ?"""
    (row,) = run_query(connect(store), sql, [study]).to_pylist()
    told = read_json(store / "studies" / study / "study.json")
    return Progress(told["cells"], row["made"], row["failed"], told.get("made_with", []))


def run_lines(store: Path, study: str, progress: Progress) -> Iterator[str]:
    """What was run, on what, and how much there is to find."""
    failed = f"{progress.failed:,} of them failed"
    yield f"{progress.cells:,} fits: {progress.made:,} made, {failed}, {progress.left:,} left."
    for one in progress.makers:
        versions = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
        yield f"Made with {versions}; products in {one['precision']}; code {one['code']}."
    if len(progress.makers) > 1:
        yield f"**Results of {len(progress.makers)} versions of code or libraries are mixed.**"
    yield from ("", _markdown(store, _RUN, study))
    yield "Annotations of each pool (drawn at random), mean |dr| in standard deviations of gold within a prompt:"
    yield from ("", _markdown(store, _POOLS, study))
    yield "How much there is to find: `linear` on the most same-prompt pairs, and on these the best annotations. Where"
    yield "its accuracy is near one half, features say nothing of gold, and no comparison on them says anything."
    yield from ("", _markdown(store, _SIGNAL, study))


def benchmark_lines(store: Path) -> Iterator[str]:
    """Heads by benchmark and part (tables 1 and 2), and attribute margins (12 and 13), as judged in this store."""
    connection = connect(store)
    scores = run_query(connection, _BENCHMARKS, list(HEADS)).to_pylist()
    margins = run_query(connection, _MARGINS, list(DIFFICULTIES)).to_pylist()
    if not scores or not margins:
        yield "This store has " + " and ".join(
            [*(["no head of SMORM's tables 1 and 2 judged on a benchmark"] if not scores else []),
             *(["no attribute margins on RM-Bench, for its tables 12 and 13"] if not margins else [])]
        ) + ". These commands make them (and any other pairs and attributes will do):"  # fmt: skip
        yield COMMANDS
    for title in dict.fromkeys(f"{row['dataset']}, {row['metric']}" for row in scores):
        yield from (f"{title}: per cent, mean over seeds.", "")
        here = [row for row in scores if f"{row['dataset']}, {row['metric']}" == title]
        yield _pivot(here, lambda row: (row["part"], f"{100 * row['value']:.1f}"))
    if margins:
        yield "Chosen less rejected by predicted attribute on RM-Bench, mean (variance), where it is right and not:"
        yield from ("", _pivot(margins, _margin, more=("attribute",)))


def theory_lines(folder: Path) -> Iterator[str]:
    """What `pipeline theory --json` said, from the files theory-<pool>.json in the study's folder."""
    files = sorted(folder.glob("theory-*.json"))
    if not files:
        yield "Not computed: `make replicate` writes `pipeline theory --json` into the study's folder as theory-*.json."
    for file in files:
        rows = json.loads(file.read_text(encoding="utf-8"))
        yield from (f"### {file.stem.removeprefix('theory-')}", "", as_markdown(pa.Table.from_pylist(rows)))


def _margin(row: Mapping[str, Any]) -> tuple[str, str]:
    return f"{row['part']}, {row['side']}", f"{row['mean']:+.2f} ({row['variance']:.2f})"


def _pivot(
    rows: Sequence[Mapping[str, Any]], cell: Callable[[Mapping[str, Any]], tuple[str, str]], *, more: Sequence[str] = ()
) -> str:
    """A table with a line for each head and training set, a column for each part; `cell` gives part and text."""
    columns = ("fitted_on", "features", "run", "scorer", *more)
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        part, text = cell(row)
        lines.setdefault(tuple(row[name] or "" for name in columns), {})[part] = text
    parts = list(dict.fromkeys(part for line in lines.values() for part in line))
    table = [{**dict(zip(columns, key, strict=True)), **{part: line.get(part, "") for part in parts}}
             for key, line in lines.items()]  # fmt: skip
    return as_markdown(pa.Table.from_pylist(table))


def _markdown(store: Path, sql: str, study: str) -> str:
    return as_markdown(run_query(connect(store), sql, [study]))


_RUN = """
WITH fits AS (SELECT DISTINCT cell, head, features, error, epochs, fit_seconds, seconds FROM studies WHERE study = ?)
SELECT head, features, count(*) AS fits, count(error) AS failed, avg(epochs) AS epochs,
       avg(fit_seconds) AS fit_seconds, avg(seconds) AS seconds, sum(seconds) / 3600 AS hours
FROM fits GROUP BY ALL ORDER BY ALL"""
_SIGNAL = """
WITH levels AS (
    SELECT pool, features, pairs, beta, avg(accuracy) AS accuracy, avg(gain / scale) AS gain,
           avg(oracle / scale) AS oracle
    FROM studies
    WHERE study = ? AND judged_on = pool AND head = 'linear' AND pairing = 'same' AND choice = 'random'
    GROUP BY pool, features, pairs, beta
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY pool, features ORDER BY pairs DESC, beta DESC) AS place FROM levels
)
SELECT * EXCLUDE (place) FROM ranked WHERE place = 1 ORDER BY pool, features"""
_POOLS = """
SELECT pool, pairing, list_sort(list(DISTINCT pairs)) AS pairs, count(DISTINCT beta) AS qualities,
       min(error_rate) AS least_errors, max(error_rate) AS most_errors, avg(mean_gap) AS mean_gap,
       max(n) AS held_out_prompts, avg(oracle / scale) AS oracle
FROM studies WHERE study = ? AND judged_on = pool AND choice = 'random' GROUP BY ALL ORDER BY ALL"""
_BENCHMARKS = f"""
SELECT m.dataset, m.metric, coalesce(r.pairs_dataset, r.attributes_dataset) AS fitted_on,
       array_to_string(r.features, '+') AS features, r."group" AS run, m.scorer, coalesce(m.subset, 'all') AS part,
       avg(m.value) AS value
FROM metrics m JOIN runs r USING (run_id)
WHERE r.control IS NULL AND m.n > 0 AND m.value IS NOT NULL AND m.scorer NOT IN ('length', 'oracle', 'random')
  AND r.head IN ({", ".join("?" * len(HEADS))})
  AND ({" OR ".join(f"starts_with(m.metric, '{rule}')" for rule in RULES)})
GROUP BY ALL ORDER BY m.dataset, m.metric, fitted_on, run, m.scorer, part"""
_MARGINS = f"""
SELECT coalesce(r.pairs_dataset, r.attributes_dataset) AS fitted_on, array_to_string(r.features, '+') AS features,
       r."group" AS run, '' AS scorer, replace(m.scorer, 'attribute:', '') AS attribute, m.subset AS part,
       split_part(m.metric, '_', 4) AS side,
       avg(m.value) FILTER (m.metric LIKE 'attribute_margin_mean_%') AS mean,
       avg(m.value) FILTER (m.metric LIKE 'attribute_margin_variance_%') AS variance
FROM metrics m JOIN runs r USING (run_id) JOIN datasets d USING (dataset)
WHERE r.control IS NULL AND d.format = 'rm-bench' AND m.metric LIKE 'attribute_margin_%'
  AND m.subset IN ({", ".join("?" * len(DIFFICULTIES))})
GROUP BY ALL HAVING mean IS NOT NULL AND variance IS NOT NULL ORDER BY fitted_on, run, attribute, part, side"""
