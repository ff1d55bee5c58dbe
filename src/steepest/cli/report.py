"""`steepest report`: the page of a study or of a run again, from its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape


def report(
    folder: Annotated[
        Path, typer.Argument(help="The folder that `steepest compare` or `steepest train` wrote.")
    ] = Path("runs/compare"),
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Where the page goes. Default: report.html in a study, run.html in a run."
        ),
    ] = None,
) -> None:
    """Write the page of a study or of a run again, finished or not, from its files alone."""
    console = Console(highlight=False)
    with console.status("reading the records"):
        from steepest.lab.report import is_run, write_report, write_run_page

        page = (write_run_page if is_run(folder) else write_report)(folder, out)
    console.print(f"report  {escape(str(page))}", soft_wrap=True)
