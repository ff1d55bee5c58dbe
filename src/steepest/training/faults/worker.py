"""What a process of the laboratory does: it puts the fault in, then runs, and leaves word of how it ended."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch

from steepest.contract import SteepestError
from steepest.models import quiet
from steepest.placements.sharded import local
from steepest.training.config import RunConfig, parse_config
from steepest.training.faults.bench import Bench
from steepest.training.faults.scene import Scene, digest
from steepest.training.faults.terms import Above, Failed, Here, Inject, Together
from steepest.training.files import lock
from steepest.training.session import Session
from steepest.training.signals import Stopped, catching
from steepest.training.world import World


@dataclass(frozen=True)
class Order:
    """What the processes of one start are to do.

    config: of the run, as plain values.  folder: the run's.  notes: where each rank leaves its log and its
    end.  ask: instead of a run, something to be asked of the library.
    """

    config: Mapping[str, Any]
    folder: Path
    notes: Path
    ranks: int = 1
    seed: int = 0
    inject: tuple[Inject, ...] = ()
    ask: Here | Together | None = None
    above: Above = field(default_factory=Above)


@dataclass
class End:
    """How a process has ended.

    kind: "done"; "error", with the sentence; "stopped" by a signal; "failed", what was asked went wrong;
    "crash", with the exception; "gone", without a word.
    told: what the run said.  fed: see `Scene`.  digest: of the parameters that are here.
    """

    kind: str
    words: str = ""
    code: int = 0
    told: list[str] = field(default_factory=list)
    fed: dict[int, list[str]] = field(default_factory=dict)
    digest: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, code: int) -> End:
        """What a process has left, or that it left nothing. code: as multiprocessing has it."""
        try:
            found = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return cls("gone", f"exit code {code}", code)
        found["fed"] = {int(step): own for step, own in found["fed"].items()}
        return cls(**{**found, "code": code})


def work(order: Order, rank: int, port: int) -> None:
    """A whole process: rank `rank` of those that meet at `port`."""
    _settle_in(order, rank, port)
    scene = Scene(rank, order.ranks, Random(f"{order.seed}/{rank}"), order.above)
    told: list[str] = []
    try:
        end = End("done", _do(order, scene, told))
    except Failed as failed:
        end = End("failed", str(failed))
    except Stopped as stopped:
        end = End("stopped", str(stopped), 128 + stopped.signal)
    except SteepestError as error:
        end = End("error", str(error), 1)
    except Exception as error:
        end = End("crash", f"{type(error).__name__}: {error}", 1)
        traceback.print_exc()
    end.told, end.fed, end.notes = told, scene.fed, scene.notes
    if scene.learner is not None and end.kind == "done":
        end.digest = digest([local(p) for p in scene.learner.model.parameters()])
    beside = order.notes / f".{rank}.part"
    beside.write_text(json.dumps(asdict(end)))
    beside.replace(order.notes / f"end-{rank}.json")
    # Threads of a run that has gone wrong may wait for what never comes.
    os._exit(end.code) if end.kind != "done" else sys.exit(0)


def _settle_in(order: Order, rank: int, port: int) -> None:
    """Output into a log, torchrun's environment, one thread."""
    log = os.open(order.notes / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    faulthandler.enable()
    torch.set_num_threads(1)
    if order.ranks > 1:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
        where |= {"WORLD_SIZE": order.ranks, "LOCAL_WORLD_SIZE": order.ranks}
        os.environ.update({key: str(value) for key, value in where.items()})


def _do(order: Order, scene: Scene, told: list[str]) -> str:
    with quiet():
        if isinstance(order.ask, Here):
            return order.ask.check(Bench(order.config, order.notes, order.seed))
        config = parse_config(order.config, "the config")
        world = World.join(config.device, config.timeout)
        try:
            if order.ask is not None:
                return order.ask.check(Bench(order.config, order.notes, order.seed), world)
            scene.watch()
            for inject in order.inject:
                if inject.hits(scene.rank, scene.ranks):
                    inject.apply(scene)
            return _train(config, order.folder, world, scene, told.append)
        except SteepestError as error:
            world.farewell(str(error))
            raise


def _train(config: RunConfig, folder: Path, world: World, scene: Scene, tell: Callable[[str], None]) -> str:
    """A run as `steepest train` makes it, on this rank."""

    def log(step: int, values: Mapping[str, Any]) -> None:
        for act in scene.log:
            act(step, values)

    with catching(tell) as stop, lock(folder) if world.first else nullcontext():
        session = Session(config, folder, cache=folder / "cache", tell=tell, log=log, stop=stop, world=world)
        results = session.run()
        if (reason := results[-1].reason) is not None:
            raise SteepestError(f"the run diverged: {reason.rstrip('.')}.")
        words = session.words(results[-1])
    world.leave()
    return words
