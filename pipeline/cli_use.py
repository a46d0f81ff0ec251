"""Commands that take a run out into the world: score, export."""

from pathlib import Path
from typing import Any

import click

from pipeline.command import (
    device_option,
    json_option,
    one_sentence_errors,
    print_rows,
    print_table,
    spec_dtype_option,
    store_option,
    where_is_backbone_option,
    where_is_template_option,
)


@click.command()
@click.argument("run")
@click.argument("source", metavar="FILE|-")
@click.option(
    "--format", "format_", help="Force a format, as for embed; a wrong name lists them all.  [default: by the columns]"
)
@click.option(
    "--each",
    type=click.Choice(["response", "pair"]),
    help="A row for each of these.  [default: pairs, if there are any]",
)
@click.option(
    "--calibrate",
    metavar="DATASET",
    help="Make P(win) by the temperature that evaluate found on it.  [default: the pairs that the run was fitted on]",
)
@where_is_backbone_option
@where_is_template_option
@device_option
@spec_dtype_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the table to this file: .jsonl, .json, .csv, .parquet, .md or .txt.  [default: print it]",
)
@json_option
@store_option
@one_sentence_errors
def score(as_json: bool, output: Path | None, format_: str | None, **options: Any) -> None:  # noqa: ANN401
    """Score new conversations with RUN.

    \b
    FILE is a file that embed reads, or one of prompt and response, or of messages; or a dataset in the store.
    - reads JSON or JSON lines from stdin.
    Responses that the store has are not run again.
      row        the row of FILE, from 0, that has the response first, or the pair
      reward     the head's own score; F, L, M, ... beside it where it has several
      sd         its standard deviation (bayes, ensemble)
      p_win      of a pair: s(margin / temperature), the temperature that `pipeline evaluate` found on held-out pairs
    """  # noqa: D301
    from pipeline.score import ScoreOptions, score
    from pipeline.tables import format_of, keep_table

    shown = format_of(output, None) if output else ("json" if as_json else "table")
    table = score(ScoreOptions(format=format_, **options))
    if output:
        keep_table(table, output, shown)
        click.echo(f"{table.num_rows:,} rows in {output}", err=True)
    else:
        print_table(table, shown)


@click.command()
@click.argument("run")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--score", metavar="NAME", help="Which of the head's rewards becomes logits, as F, L, M.  [default: its first]"
)
@click.option(
    "--form",
    type=click.Choice(["plain", "custom"]),
    help="transformers' own class with one reward, or code along with all of them.  [default: plain where it can be]",
)
@click.option(
    "--rows", type=click.IntRange(8), default=64, show_default=True, help="Cached rows that the proof scores again."
)
@where_is_backbone_option
@where_is_template_option
@device_option
@json_option
@store_option
@one_sentence_errors
def export(as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Write RUN as a directory that transformers loads by AutoModelForSequenceClassification.

    \b
    A linear head on the last token's final state becomes a plain directory; other heads bring their code along
    (trust_remote_code). Boosted trees cannot be exported.
    DIRECTORY is loaded again by transformers in a fresh process, and kept only if it scores cached rows as the head.
    """  # noqa: D301
    from pipeline.export import ExportOptions, export

    print_rows([export(ExportOptions(**options)).as_row()], as_json)
