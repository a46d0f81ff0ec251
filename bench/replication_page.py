"""docs/replication.md and its figures, made from a study's results: no number is written by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.intervals import Estimate
from bench.replication import findings, load_curves, load_results
from bench.replication_figures import CAPTIONS, figures
from bench.replication_tables import Progress, benchmark_lines, progress_of, run_lines, theory_lines
from bench.verdicts import Finding
from cache.files import write_atomically


def write_replication(store: Path, study: str, page: Path) -> list[Finding]:
    """Write the page, and the figures beside it in `replication/`.

    Raises: ValueError if the store has no results of the study.
    """
    rows, curves = load_results(store, study), load_curves(store, study)
    found, drawn = findings(rows, curves), figures(rows, curves)
    for name, svg in drawn.items():
        _write(page.parent / "replication" / f"{name}.svg", svg)
    _write(page, "\n".join(_page(store, study, found, list(drawn))) + "\n")
    return found


def _page(store: Path, study: str, found: Sequence[Finding], drawn: Sequence[str]) -> list[str]:
    progress = progress_of(store, study)
    return [
        "# Replication",
        "",
        f"Made by `make replicate` from the results of the study `{study}`; nothing here is written by hand.",
        "",
        *_unfinished(progress),
        "## What was run",
        "",
        *run_lines(store, study, progress),
        "## Verdicts",
        "",
        "Effects are differences of gains: gold of best-of-N less the mean response's on held-out prompts, in standard",
        "deviations of gold within a prompt. Pools weigh alike. Intervals are 95 % percentile intervals over prompts",
        "and seeds, the part of seeds enlarged by sqrt(k / (k - 1)) for k of them; they are not adjusted for there",
        "being many. Beside them stands the same comparison by the share of a held-out prompt's pairs that are ranked",
        "as gold ranks them. Verdicts go by the gains.",
        "",
        *_unfinished(progress),
        "| claim | published | here | effect | low | high | in accuracy | fits compared | verdict | why |",
        "|---|---|---|---:|---:|---:|---:|---:|---|---|",
        *(_verdict(one, progress) for one in found),
        "",
        "### By pool",
        "",
        *_by_pool(found),
        "",
        "## Figures",
        "",
        *(line for name in drawn for line in (f"![{name}](replication/{name}.svg)", "", CAPTIONS[name], "")),
        "## Benchmarks (SMORM, tables 1, 2, 12 and 13)",
        "",
        *benchmark_lines(store),
        "## Theory on these pools",
        "",
        *theory_lines(store / "studies" / study),
    ]


def _unfinished(progress: Progress) -> list[str]:
    if not progress.left:
        return []
    return [f"**The study is not finished: {progress.left:,} of {progress.cells:,} fits are to be made. Every verdict "
            "is of those that are there.**", ""]  # fmt: skip


def _verdict(one: Finding, progress: Progress) -> str:
    effect = one.effects.get("all")
    numbers = [f"{value:+.3f}" for value in (effect.value, effect.low, effect.high)] if effect else ["", "", ""]
    compared = [_interval(one.accuracy), f"{one.conditions:,}"]
    marked = f"**{one.verdict}**" + " (unfinished)" * bool(progress.left)
    cells = [one.claim, one.published, one.setup, *numbers, *compared, marked, one.why]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _by_pool(found: Sequence[Finding]) -> list[str]:
    pools = sorted({pool for one in found for pool in one.effects if pool != "all"})
    lines = [f"| claim | here | {' | '.join(pools)} |", f"|---|---|{'---|' * len(pools)}"]
    for one in found:
        if set(one.effects) - {"all"}:
            cells = [_interval(one.effects.get(pool)) for pool in pools]
            lines.append(f"| {one.claim} | {one.setup} | {' | '.join(cells)} |".replace("|dr|", "\\|dr\\|"))
    return lines


def _interval(effect: Estimate | None) -> str:
    return f"{effect.value:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]" if effect else ""


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: _put(temporary, text))


def _put(path: Path, text: str) -> Any:  # noqa: ANN401 - what write_text gives is not looked at
    return path.write_text(text, encoding="utf-8")
