"""`steepest report`: the page again, from the records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape


def report(
    study: Annotated[Path, typer.Argument(help="The folder that `steepest compare --out` wrote.")] = Path(
        "runs/compare"
    ),
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the page goes. Default: report.html in the study.")
    ] = None,
) -> None:
    """Write the report of a finished or half-finished study again, from its records alone."""
    console = Console(highlight=False)
    with console.status("reading the records"):
        from steepest.lab.report import write_report

        page = write_report(study, out)
    console.print(f"report  {escape(str(page))}", soft_wrap=True)
