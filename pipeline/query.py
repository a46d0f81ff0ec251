"""SQL over the store: one statement, or statements from a prompt or a pipe."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.results import connect, register_embeddings, run_query
from bench.tables import FORMATS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def ask(store: Path, sql: str, shown: str, vectors: str | None) -> str:
    """The answer to one statement as text in the format `shown`.

    Raises: ValueError if the store or the embedding is missing, or the statement is refused.
    """
    return FORMATS[shown](run_query(_open(store, vectors), sql))


def console(store: Path, shown: str, vectors: str | None) -> None:
    """Read statements that end in a semicolon until the input ends; an error is shown and the next one is read.

    Raises: ValueError if input is not a terminal and a statement is refused.
    """
    connection = _open(store, vectors)
    interactive = sys.stdin.isatty()
    if interactive:
        import readline

        readline.parse_and_bind("tab: complete")
        click.echo("SQL over the store; end a statement with ; and leave with Ctrl-D. Start with: SHOW TABLES;")
    for statement in _statements(interactive):
        try:
            click.echo(FORMATS[shown](run_query(connection, statement)), nl=False)
        except ValueError as error:
            if not interactive:
                raise
            click.echo(f"Error: {error}", err=True)


def _open(store: Path, vectors: str | None) -> "DuckDBPyConnection":
    connection = connect(store)
    if vectors is not None:
        register_embeddings(connection, store, vectors)
    return connection


def _statements(interactive: bool) -> Iterator[str]:
    """Statements from stdin, split at line ends after a semicolon; the last one may lack it."""
    lines: list[str] = []
    while True:
        try:
            lines.append(input(("pipeline> " if not lines else "     ...> ") if interactive else ""))
        except EOFError:
            break
        if lines[-1].rstrip().endswith(";"):
            yield "\n".join(lines)
            lines = []
    if "".join(lines).strip():
        yield "\n".join(lines)
