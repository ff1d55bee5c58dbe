"""`steepest`: the commands, and the one place where an error becomes a sentence on the screen."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console
from rich.markup import escape

from steepest.cli import bench, checkpoint, compare, doctor, faults, kernels, optimizers, plan, report, train
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
app.command()(doctor.doctor)
app.command()(optimizers.optimizers)
app.command()(plan.plan)
app.add_typer(bench.app, name="bench")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(faults.app, name="faults")
app.add_typer(kernels.app, name="kernels")


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 an error in one sentence, 2 a wrong command, 128 + n ended by
    signal n (`training.Stopped`; 130 interrupted, 143 terminated)."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # one progress bar is enough
    try:
        app()
    except SteepestError as error:
        _say(str(error))
        sys.exit(1)
    except Exception as error:
        if os.environ.get("STEEPEST_TRACEBACK"):
            raise
        text = " ".join(str(error).split())
        _say(f"{type(error).__name__}: {text}; set STEEPEST_TRACEBACK=1 and run again to see where.")
        sys.exit(1)


def _say(text: str) -> None:
    Console(stderr=True, highlight=False).print(f"[red]error:[/red] {escape(text)}", soft_wrap=True)
