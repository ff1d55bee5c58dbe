"""`steepest train`: a run of one stage or of several, watched, saved, and continued where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from steepest.cli.words import minutes
from steepest.contract import SteepestError, unknown


def train(
    config: Annotated[
        Path | None,
        typer.Argument(help="A YAML config, such as compare's recommended.yaml; see docs/training.md."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The run's folder. Default: runs/<config's name>."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Train this many steps instead of the config's (one stage only).")
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(help="Instead of a config: 'lifecycle', from pre-training to RL in five minutes."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew: what the folder holds of an earlier run is deleted.")
    ] = False,
) -> None:
    """Train as a config says: one objective, or stages of pre-training, fine-tuning, reward modelling and RL.

    The run lives in a folder. Say the same command again after a crash, a full disk or Ctrl-C, and it goes on
    from the last generation it wrote, with the same numbers as if nothing had happened.
    """
    from steepest.cli.live import LiveView
    from steepest.training import Session, catching, forget, load_config, lock
    from steepest.training.export import export

    console = Console(highlight=False)
    source = _source(config, example)
    parsed = load_config(source)
    if steps is not None:
        if steps < 1:
            raise SteepestError(f"--steps {steps} trains nothing; give at least 1.")
        if parsed.stages:
            raise SteepestError(
                "--steps is for a config of one stage; set the steps of each stage in the file."
            )
        parsed = parsed.model_copy(update={"steps": steps})
    folder = out or Path("runs") / source.stem
    for stage in parsed.plan():
        rate = f"{stage.optimizer['name']}, lr {stage.optimizer['lr']:g}, {stage.steps} steps"
        what = f"{stage.name + ': ' if stage.name else ''}{stage.objective_name} on {stage.data} with {rate}"
        console.print(escape(what))
    with lock(folder):
        if fresh:
            forget(folder)
        view = LiveView(console)

        def log(step: int, values: Any) -> None:
            rest = {key: value for key, value in values.items() if key != "stage_step"}
            view.update({**rest, "step": values["stage_step"]})

        try:
            with catching(view.say) as stop:
                session = Session(
                    parsed,
                    folder,
                    cache=folder / "cache",
                    tell=view.say,
                    notice=view.finding,
                    log=log,
                    stop=stop,
                )
                results = session.run()
        finally:
            view.close()
        last = results[-1]
        if last.reason is not None:
            raise SteepestError(
                f"{'stage ' + last.name if last.name else 'the run'} diverged: {last.reason}; try a smaller "
                f"learning rate, or ask `steepest doctor {folder}`."
            )
        export(session, folder)
    for result in results:
        name = f"{result.name}: " if result.name else ""
        words = session.words(result)
        console.print(escape(f"{name}{words}, after {minutes(result.seconds)} of training"))
    console.print(f"model   {escape(str(folder / 'model'))}", soft_wrap=True)
    console.print(f"curve   {escape(str(folder / 'run.json'))}", soft_wrap=True)


EXAMPLES = ("lifecycle",)


def _source(config: Path | None, example: str | None) -> Path:
    """The file that is meant."""
    if (config is None) == (example is None):
        raise SteepestError("give a config, or --example lifecycle; one of the two.")
    if config is not None:
        return config
    if example not in EXAMPLES:
        raise unknown("example", str(example), EXAMPLES)
    import steepest.training

    return Path(steepest.training.__path__[0]) / "examples" / f"{example}.yaml"
