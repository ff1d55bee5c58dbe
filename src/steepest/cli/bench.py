"""`steepest bench step`: what one step costs on this machine, against everybody else's."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from steepest.cli.words import clock, minutes, thousands
from steepest.rules import CARDS

if TYPE_CHECKING:
    from steepest.lab.bench import Bench

app = typer.Typer(
    help="Measure on this machine; every figure is timed beside what it is compared with.",
    no_args_is_help=True,
)


@app.callback()
def bench() -> None:
    """Measure on this machine; every figure is timed beside what it is compared with."""


@app.command()
def step(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="Whose shapes: a preset (tiny, small, gpt2-124m, llama-1b), a folder with a transformers "
            "config.json, or pkg.module:factory. No weights are read.",
        ),
    ] = "gpt2-124m",
    rules: Annotated[
        str, typer.Option("--rules", "-r", help="Comma-separated optimizers (adamw,lion), or 'all'.")
    ] = "all",
    codecs: Annotated[
        str,
        typer.Option(
            "--codecs",
            "-c",
            help="Comma-separated: fp32; int8, fp8, ... for all state; m=int4+v=fp8 slot by slot; split24, "
            "kahan, ... for bfloat16 parameters; split24/int8 for both; or 'all'.",
        ),
    ] = "all",
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Also time every installed library that has the rule.")
    ] = True,
    rounds: Annotated[int, typer.Option(help="Timed rounds a case; the slow take part in fewer.")] = 15,
    budget: Annotated[float, typer.Option("--budget", "-b", help="Seconds for everything, about.")] = 1800.0,
    patience: Annotated[
        float, typer.Option(help="Seconds that one first step may take; some libraries compile.")
    ] = 120.0,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. Default: its own choice.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="Our engine: fused, foreach, reference. Default: what users get.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh/--no-fresh", help="Also first steps and peak memory, each in a process of its own."
        ),
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write all figures, every round's among them, as JSON.")
    ] = None,
) -> None:
    """Time one optimizer step for a model's shapes: each rule and storage, ours and every peer's.

    All who are compared run interleaved, in rotated order, beside a probe of memory bandwidth: "of the
    bound" is the time that the bytes alone would take at that bandwidth, by the time the step took. What
    cannot be run is listed with the reason. Leave the machine alone while this runs.
    """
    from steepest.lab.bench import STORAGES, Bench, Plan, tables
    from steepest.training import write_atomic

    console = Console(highlight=False)
    plan = Plan(
        model=model,
        cards=tuple(CARDS) if rules.strip() == "all" else _listed(rules),
        storages=STORAGES if codecs.strip() == "all" else _listed(codecs),
        peers=peers,
        rounds=rounds,
        seconds=budget,
        patience=patience,
        threads=threads,
        device=device,
        engine=engine,
        fresh=fresh,
        command=shlex.join(["steepest", *sys.argv[1:]]),
    )
    measured = Bench(plan)
    size = sum(shape.numel() for shape in measured.shapes)
    console.print(
        f"{escape(model)}: {len(measured.shapes)} tensors, {thousands(size)} parameters; "
        f"{len(measured.cases)} cases, at most about {minutes(budget)}",
        soft_wrap=True,
    )
    try:
        _run(console, measured, budget)
    except KeyboardInterrupt:
        console.print("stopped; what was measured by then is kept")
        raise
    finally:
        if out is not None and measured.record:
            write_atomic(out, json.dumps(measured.record, indent=1) + "\n")
            console.print(f"figures  {escape(str(out))}", soft_wrap=True)
    text = tables(measured.record)
    console.print(Markdown(text) if console.is_terminal else escape(text), soft_wrap=not console.is_terminal)


def _listed(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _run(console: Console, measured: Bench, budget: float) -> None:
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(measured), left="")
        start = clock()
        for done, name in enumerate(measured.run()):
            left = minutes(max(0.0, budget - (clock() - start)))
            bar.update(task, completed=done, description=escape(name), left=f"at most {left} left")
            if not console.is_terminal and done % 10 == 0:
                console.print(f"{done} of {len(measured)}: {escape(name)}", soft_wrap=True)
