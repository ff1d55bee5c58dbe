"""`steepest faults run`: does whatever goes wrong go wrong as it should, with this config?"""

from __future__ import annotations

import re
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from steepest.cli.words import minutes
from steepest.contract import SteepestError, unknown

if TYPE_CHECKING:
    from steepest.training.faults import Result, Row

app = typer.Typer(
    help="Provoke the faults that training must survive, on your own config.", no_args_is_help=True
)

EMBEDDED: dict[str, Any] = {
    "model": "tiny",
    "data": "synthetic:0:20000",
    "batch": 4,
    "context": 32,
    "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
}
"""What is run where no config is given."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@app.callback()
def faults() -> None:
    """Provoke the faults that training must survive, on your own config."""


@app.command()
def run(
    config: Annotated[
        Path | None,
        typer.Argument(help="The config of a run, such as `steepest train` reads; its first stage is run."),
    ] = None,
    rows: Annotated[
        str, typer.Option(help="Comma-separated numbers of faults, or 'all'. See docs/faults.md.")
    ] = "all",
    nproc: Annotated[int, typer.Option(help="Processes of a run, 2 to 4.")] = 2,
    placement: Annotated[str, typer.Option(help="How the run lies over them: ddp, zero1, fsdp, ...")] = "ddp",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="The model 'tiny' in the place of the config's own.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of whatever is drawn: the same seed provokes the same.")] = 0,
    every: Annotated[
        str | None, typer.Option(help="Again after so long, until interrupted: 24h, 30m.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write a JUnit file.")] = None,
    out: Annotated[
        Path, typer.Option(help="The laboratory's folder: faults.json, and all there is of what failed.")
    ] = Path("runs/faults"),
) -> None:
    """Provoke 42 faults one by one in real processes, on a few steps of a config, and say how each went.

    The model, the data and the optimizer are the config's own; everything runs on this machine's CPU. Killed
    and stopped ranks, torn and flipped files, full disks, NaN on one rank, edited configs: what must happen
    is the run without the fault to the last bit, or a sentence and files that are as they were. Exit code 1
    if any row fails.
    """
    from steepest.training.faults import ROWS

    console = Console(highlight=False)
    chosen = _chosen(rows, ROWS)
    pause = None if every is None else _seconds(every)
    failed = False
    while True:
        results = _provoke(console, config, chosen, nproc, placement, tiny, seed, out, junit)
        failed = failed or not all(result.passed for result in results)
        if pause is None:
            break
        console.print(f"again in {minutes(pause)}; Ctrl-C ends it")
        try:
            time.sleep(pause)
        except KeyboardInterrupt:
            break
    if failed:
        raise typer.Exit(1)


def _provoke(
    console: Console,
    config: Path | None,
    rows: list[Row],
    nproc: int,
    placement: str,
    tiny: bool,
    seed: int,
    out: Path,
    junit: Path | None,
) -> list[Result]:
    """All rows once, shown and written down."""
    from steepest.integrations.sinks import Channel
    from steepest.lab.report import write_run_page
    from steepest.training import load_config, lock, parse_config
    from steepest.training.faults import Above, Laboratory, small, write_json, write_junit

    given = load_config(config) if config is not None else parse_config(EMBEDDED, "the embedded config")
    if tiny:
        given = given.model_copy(update={"model": "tiny", "tokenizer": "bytes"})
    own = small(given, nproc, placement)
    results: list[Result] = []
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with lock(out), bar:
        task = bar.add_task("building the model", total=len(rows))
        lab = Laboratory(own, out, nproc, seed, Above(write_run_page, Channel))

        def begin(row: Row) -> None:
            bar.update(task, description=escape(f"{row.number} {row.fault[:60]}"))

        for result in lab.rows(rows, begin):
            results.append(result)
            bar.advance(task)
            _show(bar.console, result)
        lab.close()
    command = shlex.join(["steepest", *sys.argv[1:]])
    facts = {"command": command, "config": own, "nproc": nproc, "placement": placement, "seed": seed}
    write_json(results, facts, out / "faults.json")
    if junit is not None:
        write_junit(results, junit)
    passed = sum(result.passed for result in results)
    spent = minutes(sum(result.seconds for result in results))
    console.print(f"{passed} of {len(results)} rows passed in {spent}; {escape(str(out / 'faults.json'))}")
    return results


def _show(console: Console, result: Result) -> None:
    verdict = "[green]pass[/green]" if result.passed else "[red]FAIL[/red]"
    console.print(f"{verdict} [bold]{result.number:>2}[/bold] {escape(result.fault)}", soft_wrap=True)
    console.print(f"        must: {escape(result.must)}", style="dim", soft_wrap=True)
    console.print(
        f"        [{'dim' if result.passed else 'red'}]{escape(result.happened)}[/]", soft_wrap=True
    )


def _chosen(rows: str, known: Any) -> list[Row]:
    """The rows that are meant, in the order of the list."""
    if rows.strip() == "all":
        return list(known.values())
    wanted = {name.strip() for name in rows.split(",") if name.strip()}
    if odd := sorted(wanted - {str(number) for number in known}):
        raise unknown("row", odd[0], map(str, known))
    return [row for number, row in known.items() if str(number) in wanted]


def _seconds(text: str) -> float:
    """A time as people write it: 24h, 30m, 90s."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None or float(found[1]) <= 0:
        raise SteepestError(f"--every {text!r} is no time; give one as in 24h or 30m.")
    return float(found[1]) * UNITS[found[2]]
