"""`steepest train`: a run of one stage or of several, watched, saved, and continued where it stopped."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from steepest.cli.words import minutes
from steepest.contract import SteepestError, unknown

if TYPE_CHECKING:
    from steepest.training import RunConfig, Session, StageResult
    from steepest.training.world import World

EXAMPLES = ("lifecycle",)


def train(
    config: Annotated[
        Path | None,
        typer.Argument(help="A YAML config, such as compare's recommended.yaml; see docs/training.md."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run's folder. Default: runs/<config's name>.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Train this many steps instead of the config's (one stage only).")
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(help="Instead of a config: 'lifecycle', from pre-training to RL in five minutes."),
    ] = None,
    sinks: Annotated[
        str,
        typer.Option(help="Also tell, comma-separated: tensorboard, wandb, mlflow, trackio (offline)."),
    ] = "",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew: what the folder holds of an earlier run is deleted.")
    ] = False,
    nproc: Annotated[
        int | None,
        typer.Option(help="Train as so many processes of this machine; the config says how (placement)."),
    ] = None,
    restarts: Annotated[
        int,
        typer.Option(help="With --nproc: how often all are started again after one of them has failed."),
    ] = 0,
) -> None:
    """Train as a config says: one objective, or stages of pre-training, fine-tuning, reward modelling and RL.

    The run lives in a folder. Say the same command again after a crash, a full disk or Ctrl-C, and it goes on
    from the last generation it wrote, with the same numbers as if nothing had happened.
    """
    from steepest.training import load_config
    from steepest.training.check import check_plan
    from steepest.training.world import World

    source = _source(config, example)
    parsed = _shortened(load_config(source), steps)
    folder = out or Path("runs") / source.stem
    names = [name for name in sinks.split(",") if name.strip()]
    if nproc is not None:
        check_plan(parsed, nproc)
        _launch(source, folder, steps, sinks, fresh, nproc, restarts)
        return
    world = World.join(parsed.device, parsed.timeout)
    try:
        _train(Console(highlight=False, quiet=not world.first), parsed, folder, names, fresh, world)
    except SteepestError as error:
        if world.size == 1:
            raise
        world.farewell(str(error))
        raise SteepestError(f"rank {world.rank}: {error}") from error
    world.leave()


def _train(
    console: Console, parsed: RunConfig, folder: Path, sinks: list[str], fresh: bool, world: World
) -> None:
    """Train as one rank; the first writes what is left behind."""
    from steepest.lab.report import write_run_page
    from steepest.training import forget, lock
    from steepest.training.export import export
    from steepest.training.launch import restarted

    for stage in parsed.plan():
        name = f"{stage.name}: " if stage.name else ""
        rate = f"{stage.optimizer['name']}, lr {stage.optimizer['lr']:g}, {stage.steps} steps"
        console.print(escape(f"{name}{stage.objective_name} on {stage.data} with {rate}"), soft_wrap=True)
    with lock(folder) if world.first else nullcontext():
        if fresh and world.first and not restarted():
            forget(folder)
        world.barrier("waiting for the folder")
        session, results = _run(console, parsed, folder, sinks if world.first else [], world)
        last = results[-1]
        if last.reason is not None:
            if not world.first:
                raise typer.Exit(1)  # rank 0 says why
            what = f"stage {last.name}" if last.name else "the run"
            raise SteepestError(
                f"{what} diverged: {last.reason}; try a smaller learning rate, or ask "
                f"`steepest doctor {folder}`."
            )
        if not world.first:
            return
        export(session, folder)
        page = write_run_page(folder)
    for result in results:
        name = f"{result.name}: " if result.name else ""
        words = f"{name}{session.words(result)}, after {minutes(result.seconds)} of training"
        console.print(escape(words), soft_wrap=True)
    for what, path in (("page", page), ("model", folder / "model"), ("curve", folder / "run.json")):
        console.print(f"{what:8}{escape(str(path))}", soft_wrap=True)


def _run(
    console: Console, config: RunConfig, folder: Path, sinks: list[str], world: World
) -> tuple[Session, list[StageResult]]:
    """All stages, shown and told to whoever asked."""
    from steepest.cli.live import LiveView
    from steepest.integrations import open_sinks
    from steepest.training import Session, catching

    with ExitStack() as stack:
        view = LiveView(console)
        stack.callback(view.close)
        told = open_sinks(
            [*config.sinks, *sinks] if world.first else [],
            folder,
            config.model_dump(mode="json"),
            tell=view.say,
        )
        stack.callback(told.close)
        stop = stack.enter_context(catching(view.say))

        def log(step: int, values: Any) -> None:
            view.update(values)
            told.log(step, values)

        def notice(finding: Any) -> None:
            view.finding(finding)
            told.finding(finding)

        session = Session(
            config,
            folder,
            cache=folder / "cache",
            tell=view.say,
            notice=notice,
            log=log,
            stop=stop,
            world=world,
        )
        return session, session.run()


def _launch(
    source: Path, folder: Path, steps: int | None, sinks: str, fresh: bool, ranks: int, restarts: int
) -> None:
    """The same command as so many processes."""
    from steepest.training.launch import launch

    options = {"--steps": steps, "--sinks": sinks or None}
    given = [str(x) for name, value in options.items() if value is not None for x in (name, value)]
    flags = ["--fresh"] if fresh else []
    launch(["train", str(source), "--out", str(folder), *given, *flags], ranks, restarts)


def _shortened(config: RunConfig, steps: int | None) -> RunConfig:
    """The config with so many steps, if they are given."""
    if steps is None:
        return config
    if steps < 1:
        raise SteepestError(f"--steps {steps} trains nothing; give at least 1.")
    if config.stages:
        raise SteepestError("--steps is for a config of one stage; set each stage's steps in the file.")
    return config.model_copy(update={"steps": steps})


def _source(config: Path | None, example: str | None) -> Path:
    """The file that is meant."""
    if (config is None) == (example is None):
        raise typer.BadParameter("give a config, or --example lifecycle; one of the two.")
    if config is not None:
        return config
    if example not in EXAMPLES:
        raise unknown("example", str(example), EXAMPLES)
    import steepest.training

    return Path(steepest.training.__path__[0]) / "examples" / f"{example}.yaml"
