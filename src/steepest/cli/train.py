"""`steepest train`: one run from a config, watched as it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from steepest.cli.words import minutes, thousands
from steepest.contract import SteepestError


def train(
    config: Annotated[Path, typer.Argument(help="A YAML config, such as compare's recommended.yaml.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for the trained model and its curve. Default: runs/<config's name>."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Train this many steps instead of the config's.")] = None,
) -> None:
    """Train with the optimizer, learning rate and schedule of a config, and save the model."""
    from steepest.training import Progress as Step
    from steepest.training import load_config, lock, run
    from steepest.training.save import save_run

    console = Console(highlight=False)
    parsed = load_config(config)
    if steps is not None:
        if steps < 1:
            raise SteepestError(f"--steps {steps} trains nothing; give at least 1.")
        parsed = parsed.model_copy(update={"steps": steps})
    folder = out or Path("runs") / config.stem
    name, rate = parsed.optimizer["name"], parsed.optimizer["lr"]
    what = escape(f"{parsed.model} on {parsed.data}")
    console.print(f"{what} with {name}, lr {rate:g}, {parsed.steps} steps")
    columns = (
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with lock(folder), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading", total=parsed.steps)

        def watch(step: Step) -> None:
            bar.update(
                task,
                completed=step.steps,
                description=f"loss {step.loss:.3f}  validation {step.validation:.3f}  lr {step.lr:.2e}  "
                f"{thousands(step.tokens_per_second)} tokens/s",
            )

        try:
            done = run(parsed, cache=folder / "cache", watch=watch)
        except KeyboardInterrupt:
            bar.stop()
            console.print("stopped; nothing was saved")
            raise
        if done.trained is None or done.final_loss is None:
            raise SteepestError(f"the run diverged: {done.reason}; try a smaller learning rate.")
        bar.update(task, description="saving")
        save_run(done, folder)
    console.print(
        f"validation loss {done.final_loss:.4f} nats a token, "
        f"{done.text.bits_per_byte(done.final_loss):.4f} bits a byte, "
        f"after {minutes(done.trained.curve.seconds[-1])} of training"
    )
    console.print(f"model   {escape(str(folder / 'model'))}", soft_wrap=True)
    console.print(f"curve   {escape(str(folder / 'run.json'))}", soft_wrap=True)
