"""`steepest doctor`: is it the optimizer?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from steepest.contract import SteepestError
from steepest.training.doctor import Cause, Diagnosis, diagnose, draw
from steepest.training.files import write_atomic

COLOURS = {"act": "red", "warn": "yellow", "note": "cyan"}
BLAMES = {"yes": "the optimizer", "perhaps": "perhaps the optimizer", "no": "not the optimizer"}


def doctor(
    run: Annotated[
        Path,
        typer.Argument(
            help="The folder of a run of `steepest train`, finished or still running; a folder of "
            "transformers' Trainer; or its trainer_state.json."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Write an HTML page with loss, learning rate and norms, causes marked."),
    ] = None,
) -> None:
    """Read a run and say in words whether the optimizer is what is wrong with it, and what to change.

    Exit code 0: nothing that must be acted on; 1: something that must; 2: the run cannot be read.
    """
    try:
        found = diagnose(run)
    except SteepestError as error:
        Console(stderr=True, highlight=False).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(2) from None
    if plot is not None:
        write_atomic(plot, draw(found))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        show(Console(highlight=False), found)
        if plot is not None:
            typer.echo(f"plot  {plot}")
    raise typer.Exit(1 if found.urgent else 0)


def show(console: Console, diagnosis: Diagnosis) -> None:
    """The answer, each cause with its evidence and what to change, and what was looked at."""
    found = diagnosis.found
    stages = ", ".join(
        f"{escape(s.name) + ' ' if s.name else ''}step {s.last:,}"
        + (f" of {s.planned:,}" if s.planned and s.planned != s.last else "")
        for s in found.stages
    )
    now = ", still running" if found.running else ""
    console.print(f"[dim]{escape(str(found.path))}: {found.source}, {stages}{now}[/dim]", soft_wrap=True)
    console.print("\nIs it the optimizer?", style="dim")
    colour = "green" if diagnosis.healthy else "red" if diagnosis.urgent else "yellow"
    console.print(f"[bold {colour}]{escape(diagnosis.answer)}[/]")
    for cause in diagnosis.causes:
        _show_cause(console, cause)
    for remark in found.remarks:
        console.print(f"\n[dim]{escape(remark)}[/dim]")
    if diagnosis.looked:
        console.print(f"\n[dim]looked at: {'; '.join(diagnosis.looked.values())}[/dim]")
    if absent := sorted(set(diagnosis.missing.values())):
        console.print(f"[dim]not in this log, so not looked at: {', '.join(absent)}[/dim]")


def _show_cause(console: Console, cause: Cause) -> None:
    colour = COLOURS[cause.level]
    where = f" in stage {escape(cause.stage)}" if cause.stage else ""
    console.print(
        f"\n[bold {colour}]{cause.level:<4}[/] [bold]{escape(cause.title)}[/]{where} "
        f"[dim]({BLAMES[cause.optimizer]})[/dim]"
    )
    for line in cause.evidence:
        console.print(Padding(escape(line), (0, 0, 0, 5)))
    console.print(Padding(f"[bold]change[/bold]  {escape(cause.change)}", (0, 0, 0, 5)))
