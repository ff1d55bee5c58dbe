"""`steepest`: the commands, and the one place where an error becomes a sentence on the screen."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from steepest.cli import compare, optimizers, report, train
from steepest.contract import SteepestError

app = typer.Typer(
    name="steepest",
    help="Find out which optimizer your language model should be trained with, and train with it.\n\n"
    "Start with [bold]steepest compare[/bold]: it needs no model, no data and no network.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command()(compare.compare)
app.command()(train.train)
app.command()(report.report)
app.command()(optimizers.optimizers)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 an error in one sentence, 2 a wrong command, 130 interrupted."""
    console = Console(stderr=True, highlight=False)
    try:
        app()
    except SteepestError as error:
        console.print(f"[red]error:[/red] {_plain(error)}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `steepest optimizers | head`
        sys.stderr.close()
        sys.exit(0)


def _plain(error: SteepestError) -> str:
    return str(error).replace("[", r"\[")
