"""Runs of several ranks: processes that make small runs one after another, and what may go wrong in one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from session_cases import config, still

from steepest.contract import SteepestError
from steepest.optimizer import Optimizer
from steepest.training import Session, Stop, Stopped, catching
from steepest.training.learner import Learner
from steepest.training.world import World

Case = Mapping[str, Any]
"""changes: of the config.  fault: one of `FAULTS`.  rank: where it happens.  step: in which step, from 0."""


def start(
    ranks: int,
    folder: Path,
    cases: Mapping[str, Case],
    *,
    timeout: float = 60.0,
    whole: bool = True,
    machines: int = 1,
) -> list[dict[str, Any]]:
    """Run the cases in so many processes, each in its folder; what every rank has to tell, by rank.

    whole: every process ends well. Otherwise a rank that does not is told of as {}.
    machines: over how many they believe to be spread.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    own = {"WORLD_SIZE": ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    here = ranks // machines
    own["LOCAL_WORLD_SIZE"] = here
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1] / "lab")])
    environment = {**os.environ, **{k: str(v) for k, v in own.items()}, "PYTHONPATH": paths}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(timeout)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank % here)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if whole:
        assert not any(process.returncode for process in processes), "\n".join(said)
    found = [folder / f"told-{rank}.json" for rank in range(ranks)]
    return [json.loads(path.read_text()) if path.exists() else {} for path in found]


def run_case(
    world: World, folder: Path, changes: Case, fault: str = "", rank: int = 1, step: int = 1
) -> dict[str, Any]:
    """One run on this rank; what became of it."""
    torch.manual_seed(world.rank)
    with pytest.MonkeyPatch.context() as patch, catching(lambda words: None) as stop:
        if fault and world.rank == rank:
            FAULTS[fault](patch, step)
        made = Session(config(**changes), folder, world=world, stop=stop)
        return {**outcome(made, stop), "attempt": made.attempt}


def outcome(made: Session, stop: Stop) -> dict[str, Any]:
    try:
        results = made.run()
    except Stopped as stopped:
        return {"stopped": stopped.signal}
    except SteepestError as error:
        return {"error": str(error), "kind": type(error).__name__}
    last = results[-1]
    return {"reason": last.reason, "losses": last.curves[0].loss, "validation": last.curves[1].loss}


def dying(vocab_size: int, context: int) -> torch.nn.Module:
    """A model that kills rank 1 in its fourth training step, once: the file MARK says that it has."""
    model, mark = still(vocab_size, context), Path(os.environ["MARK"])
    steps = 0

    def count(module: torch.nn.Module, _: Any) -> None:
        nonlocal steps
        steps += module.training
        if steps == 4 and os.environ.get("RANK") == "1" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(count)
    return model


# ---------------------------------------------------------------------- faults


def at(patch: pytest.MonkeyPatch, step: int, happen: Callable[[Learner], None]) -> None:
    """Let something happen before a step's first pass, also when that is computed again."""
    original = Learner._backward

    def around(self: Learner, batch: Any, place: str) -> Any:
        if place.startswith(f"{step}/0"):
            happen(self)
        return original(self, batch, place)

    patch.setattr(Learner, "_backward", around)


def first_parameter(learner: Learner) -> torch.nn.Parameter:
    return next(p for p in learner.model.parameters() if p.requires_grad)


def nan_gradient(patch: pytest.MonkeyPatch, step: int) -> None:
    def happen(learner: Learner) -> None:
        def spoil(grad: torch.Tensor) -> torch.Tensor:
            handle.remove()
            return torch.full_like(grad, torch.nan)

        handle = first_parameter(learner).register_hook(spoil)

    at(patch, step, happen)


def nan_shard(patch: pytest.MonkeyPatch, step: int) -> None:
    """In what lies here of an exchanged gradient."""
    original, spoils = Optimizer.step, list[Learner]()
    at(patch, step, spoils.append)

    def stepping(self: Optimizer, closure: Any = None) -> Any:
        while spoils:
            grad: Any = first_parameter(spoils.pop()).grad
            grad.to_local().view(-1)[0] = torch.nan
        return original(self, closure)

    patch.setattr(Optimizer, "step", stepping)


def nan_loss(patch: pytest.MonkeyPatch, step: int) -> None:
    def happen(learner: Learner) -> None:
        original = learner.objective

        def spoiled(model: Any, batch: Any) -> Any:
            learner.objective = original
            loss, facts = original(model, batch)
            return loss * torch.nan, facts

        learner.objective = spoiled

    at(patch, step, happen)


def sigterm(patch: pytest.MonkeyPatch, step: int) -> None:
    at(patch, step, lambda learner: os.kill(os.getpid(), signal.SIGTERM))


def flipped(patch: pytest.MonkeyPatch, step: int) -> None:
    def happen(learner: Learner) -> None:
        with torch.no_grad():
            first_parameter(learner).view(-1)[3] += 0.5

    at(patch, step, happen)


def slow(patch: pytest.MonkeyPatch, step: int) -> None:
    original = Learner._backward

    def around(self: Learner, batch: Any, place: str) -> Any:
        objective = self.objective

        def late(model: Any, rows: Any) -> Any:
            time.sleep(0.05)
            return objective(model, rows)

        self.objective = late
        try:
            return original(self, batch, place)
        finally:
            self.objective = objective

    patch.setattr(Learner, "_backward", around)


def killed(patch: pytest.MonkeyPatch, step: int) -> None:
    at(patch, step, lambda learner: os.kill(os.getpid(), signal.SIGKILL))


def hung(patch: pytest.MonkeyPatch, step: int) -> None:
    at(patch, step, lambda learner: time.sleep(30))


def failing(patch: pytest.MonkeyPatch, step: int) -> None:
    def happen(learner: Learner) -> None:
        raise SteepestError("the reward function has divided by zero; mend it.")

    at(patch, step, happen)


FAULTS: Mapping[str, Callable[[pytest.MonkeyPatch, int], None]] = {
    own.__name__: own
    for own in (nan_gradient, nan_shard, nan_loss, sigterm, flipped, slow, killed, hung, failing)
}


def main(folder: Path, timeout: float) -> None:
    torch.set_num_threads(1)
    world = World.join(timeout=timeout)
    told = {}
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        told[name] = run_case(world, folder / name, **case)
        (folder / f"told-{world.rank}.json").write_text(json.dumps(told))
    if not any("Lost" in str(own.get("kind")) for own in told.values()):
        world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
