"""`steepest compare`: plan, cost, progress, verdict."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from steepest.cli.words import clock, minutes, size, thousands
from steepest.contract import SteepestError
from steepest.lab import Estimate, Question, Study, executor, parse_budget
from steepest.rules import CARDS, find_card


def compare(
    model: Annotated[
        str,
        typer.Argument(
            help="A preset (tiny, small, gpt2-124m, llama-1b), a model folder, or pkg.module:factory."
        ),
    ] = "tiny",
    data: Annotated[
        str,
        typer.Argument(
            help="stdlib (Python's own source, already on this machine), synthetic, a text file, a folder of "
            "text, or a .jsonl file."
        ),
    ] = "stdlib",
    optimizers: Annotated[
        str,
        typer.Option(
            "--optimizers",
            "-o",
            help="Comma-separated names, or 'all'. AdamW always runs, as the one to beat.",
        ),
    ] = "all",
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            "-b",
            help="A time for the whole study (5m, 2h), or a length for each trial (200steps, 100ktok). "
            "A length gives the same numbers on every run.",
        ),
    ] = "160steps",
    seeds: Annotated[
        int, typer.Option("--seeds", "-s", help="Paired evaluation seeds; 3 rank, 5 rank well.")
    ] = 5,
    out: Annotated[
        Path, typer.Option("--out", help="The study's folder. Run the same command again to continue it.")
    ] = Path("runs/compare"),
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 8,
    context: Annotated[int, typer.Option(help="Tokens a sequence.")] = 64,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="bytes, bpe:4096 (trained here on the data), or model (the folder's own). Default: the "
            "folder's own if MODEL is a folder that has one, else bytes."
        ),
    ] = None,
    text_key: Annotated[str, typer.Option(help="The field of a .jsonl line that holds the text.")] = "text",
    clip: Annotated[float, typer.Option(help="Clip gradients to this global norm; 0 for no clipping.")] = 1.0,
    schedule: Annotated[
        str, typer.Option(help="constant, linear, cosine, wsd, ...: see docs/schedules.md.")
    ] = "cosine",
    warmup: Annotated[float, typer.Option(help="Warm-up: a share of the steps below 1, or steps.")] = 0.1,
    seed: Annotated[int, typer.Option(help="The root seed of the whole study.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Trials at once; the numbers do not depend on it. Default: one a core; as many as a Ray "
            "cluster has room for; 16 in a Slurm queue."
        ),
    ] = None,
    where: Annotated[
        str,
        typer.Option(
            "--executor",
            help="Where trials run: local (this machine), ray (a Ray cluster), slurm (a Slurm cluster). The "
            "losses do not depend on it; see docs/executors.md.",
        ),
    ] = "local",
    executor_options: Annotated[
        str | None,
        typer.Option(
            help="key=value,... for the executor. ray: address, cpus, gpus, memory_gb. slurm: partition, "
            "time (minutes), cpus, gpus, memory_gb, account, qos, constraint, folder; cluster=local to "
            "try it out."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    plan: Annotated[bool, typer.Option("--plan", help="Show the plan and its cost, and stop.")] = False,
) -> None:
    """Find out which optimizer trains MODEL on DATA best, with which learning rate, and how sure that is.

    Every optimizer gets its own learning-rate search, then trains from fresh seeds that all share (same
    weights, same order of data). The answer is a page, a config that `steepest train` runs, and a verdict
    here. Ctrl-C is safe: the same command goes on where it stopped.
    """
    names = list(CARDS) if optimizers.strip() == "all" else [n for n in optimizers.split(",") if n.strip()]
    question = Question(
        model=model,
        data=data,
        text_key=text_key,
        tokenizer=tokenizer,
        optimizers=tuple(names),
        budget=parse_budget(budget),
        seeds=seeds,
        batch=batch,
        context=context,
        clip=clip or None,
        schedule={"name": schedule, "warmup": warmup},
        seed=seed,
        device=device,
        workers=workers,
        command=shlex.join(["steepest", *sys.argv[1:]]),
    )
    console = Console(highlight=False)
    try:
        with Study(question, out, executor(where, executor_options or "", device)) as study:
            with console.status("reading the data, trying the model"):
                estimate = study.plan()
            _show_plan(console, question, estimate, out)
            if plan:
                return
            _run(console, study, estimate)
    except KeyboardInterrupt:
        console.print("stopped; finished trials are kept, run the same command again to go on")
        raise
    _conclude(console, out)


def _show_plan(console: Console, question: Question, estimate: Estimate, out: Path) -> None:
    titles = ", ".join(find_card(name).title for name in question.optimizers)
    data = estimate.data
    console.print(f"[bold]{len(question.optimizers)} optimizers[/bold]: {titles}")
    console.print(
        f"model {escape(question.model)} ({thousands(estimate.parameters)} parameters), "
        f"data {escape(data['name'])} ({size(data['train_bytes'])} to train on, hash {data['digest'][:8]})"
    )
    console.print(
        f"each trial {estimate.steps} steps of {question.batch} x {question.context} tokens "
        f"({thousands(estimate.tokens)}); about {estimate.trials} trials, {estimate.workers} at a time"
    )
    seen = estimate.tokens / max(1, data["train_tokens"])
    if seen > 1:
        console.print(
            f"[yellow]each trial reads the data {seen:.1f} times; more text would tell more[/yellow]"
        )
    for problem in estimate.problems:
        console.print(
            f"[yellow]record {escape(problem.name)} was damaged ({escape(problem.reason)}); kept as "
            f"{escape(problem.set_aside)}, its trial runs again[/yellow]",
            soft_wrap=True,
        )
    if estimate.finished:
        console.print(
            f"{estimate.finished} trials are already in {escape(str(out))} and are used again", soft_wrap=True
        )
    console.print(f"[bold]about {minutes(estimate.seconds)}[/bold], into {escape(str(out))}", soft_wrap=True)


def _run(console: Console, study: Study, estimate: Estimate) -> None:
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("first trials", total=estimate.trials, completed=estimate.finished, left="")
        start, already = clock(), estimate.finished
        for event in study.run():
            record = event.record
            loss = record["final"]["loss"]
            each = (clock() - start) / max(1, event.done - already)
            bar.update(
                task,
                completed=event.done,
                total=max(event.expected, event.done),
                left=f"{minutes(each * (event.expected - event.done))} left",
                description=f"{record['title']}, lr {record['hyper']['lr']:g}: "
                + ("diverged" if loss is None else f"loss {loss:.3f}"),
            )
            if not console.is_terminal and event.done % 20 == 0:
                console.print(f"{event.done} of about {event.expected} trials")


def _conclude(console: Console, out: Path) -> None:
    from steepest.lab.analysis import analyse
    from steepest.lab.records import read_records, read_study
    from steepest.lab.report import verdict, write_report

    page = write_report(out)
    plan = read_study(out)
    summary = analyse(plan, read_records(out / "trials")[0])
    console.print()
    for sentence in verdict(summary, plan):
        console.print(escape(sentence), soft_wrap=True)
    console.print(f"\nreport  {escape(str(page))}", soft_wrap=True)
    config = page.parent / "recommended.yaml"
    if config.exists():
        named = escape(str(config))
        console.print(f"config  {named}   (steepest train {named})", soft_wrap=True)
    if all(result.loss is None for result in summary.results):
        raise SteepestError("no trial finished; look at the report for the reasons.")
