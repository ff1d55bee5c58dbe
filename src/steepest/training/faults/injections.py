"""Faults of a step: what is put into a process so that its gradients, its clock or its luck fail it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from steepest.contract import SteepestError
from steepest.models import build_model
from steepest.placements.sharded import local
from steepest.training import journal, stages
from steepest.training.checkpoint import write
from steepest.training.faults import rewards
from steepest.training.faults.scene import Scene
from steepest.training.learner import Learner

NEVER = 10_000.0
"""Seconds that nobody waits for."""


# ---------------------------------------------------------------------- numbers


class _Spoil(torch.autograd.Function):
    """Changes nothing on the way forward; on the way back one element of the weight's gradient is bad."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, value: float, element: int) -> Tensor:
        ctx.shape, ctx.dtype, ctx.value, ctx.element = weight.shape, weight.dtype, value, element
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        bad = torch.zeros(ctx.shape, dtype=ctx.dtype)
        bad.view(-1)[ctx.element] = ctx.value
        return given[0], bad, None, None


class _Claim(torch.autograd.Function):
    """Another value for the loss; its gradients stay what they are."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, value: float) -> Tensor:
        return torch.full_like(loss, value)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        return given[0], None


def bad_gradient(scene: Scene, value: float = float("nan"), step: int | None = None) -> None:
    """One element of one gradient is not finite, at one step or at all; `notes` say which."""

    def spoil(learner: Learner) -> None:
        name, module = scene.draw.choice(scene.trainable())
        element = scene.draw.randrange(local(module.weight).numel() or 1)
        scene.notes["spoiled"] = name

        def hook(_: nn.Module, given: Any, out: Any) -> Any:
            hit = torch.is_grad_enabled() and isinstance(out, Tensor) and step in (None, scene.step)
            return _Spoil.apply(out, module.weight, value, element) if hit else out

        module.register_forward_hook(hook)

    scene.on_learner(spoil)


def bad_loss(scene: Scene, value: float = float("inf"), step: int | None = None) -> None:
    """The loss is not finite; its gradients are."""

    def claim(learner: Learner) -> None:
        usual = learner.objective

        def objective(model: nn.Module, batch: Any) -> Any:
            loss, facts = usual(model, batch)
            hit = loss.requires_grad and step in (None, scene.step)
            return (_Claim.apply(loss, value) if hit else loss), facts

        learner.objective = objective

    scene.on_learner(claim)


def no_gradient(scene: Scene, step: int) -> None:
    """A module that leaves shapes as they are is passed by in one step: its weight has no gradient then."""

    def pass_by(learner: Learner) -> None:
        norms = [(name, m) for name, m in scene.trainable() if m.weight.ndim == 1]
        if not norms:
            raise SteepestError(
                "this model has no module that could be passed by (a norm); nothing was tried."
            )
        name, module = scene.draw.choice(norms)
        usual, scene.notes["passed_by"] = module.forward, name

        def forward(x: Tensor) -> Tensor:
            hit = torch.is_grad_enabled() and scene.step == step
            return x if hit else usual(x)

        module.forward = forward

    scene.on_learner(pass_by)


def drift(scene: Scene, step: int, what: str = "parameters") -> None:
    """One tensor of this rank is another one from now on, as after a silent error of its hardware."""

    def add(now: int) -> None:
        learner = scene.learner
        if now != step or learner is None:
            return
        model = learner.model
        name, p = scene.draw.choice([(n, p) for n, p in model.named_parameters() if p.requires_grad])
        scene.notes["drifted"] = name
        values = [p] if what == "parameters" else _state(learner, p)
        with torch.no_grad():
            for value in values:
                here = local(value).view(-1)
                here[: min(len(here), 1)] += 0.125

    scene.after_step(add)


def _state(learner: Learner, p: Tensor) -> list[Tensor]:
    held = learner.optimizer.state[p]
    return [value for value in held.values() if isinstance(value, Tensor) and value.is_floating_point()][:1]


def broken_batch(scene: Scene, rows_of: int) -> None:
    """The batch that this position of the data has breaks the model whenever it is trained on."""
    bad: list[list[str]] = []

    def break_model(now: int) -> None:
        learner, fed = scene.learner, scene.fed[now]
        if now == rows_of and not bad:
            bad.append(fed)
        if learner is None or fed not in bad:
            return
        noise = torch.Generator().manual_seed(rows_of)
        with torch.no_grad():
            for p in learner.model.parameters():
                here = local(p)
                here.copy_(2 * torch.randn(here.shape, generator=noise))

    scene.after_step(break_model)


# ---------------------------------------------------------------------- processes


def send(scene: Scene, number: int, step: int, times: int = 1) -> None:
    """A signal to this process, at the beginning of a step."""

    def hit(now: int) -> None:
        if now == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
                time.sleep(0.05)  # of two signals at once the system may deliver one

    scene.before_step(hit)


die, freeze = partial(send, number=signal.SIGKILL), partial(send, number=signal.SIGSTOP)
crash = partial(send, number=signal.SIGSEGV)
DEADLY = (die, freeze, crash)


def linger(scene: Scene, step: int, seconds: float) -> None:
    """One step takes long."""
    scene.before_step(lambda now: time.sleep(seconds) if now == step else None)


# ---------------------------------------------------------------------- clocks and chance


class Falling(datetime):
    """A clock that is set back by an hour whenever it is read."""

    reads = count()

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime(2030, 1, 1, tzinfo=UTC) - timedelta(hours=next(cls.reads))


def wild_clock(scene: Scene) -> None:
    """The time of day jumps back and forth; clocks that only go forward are left alone."""
    jumps = count()
    vars(time)["time"] = lambda: 1.9e9 + 3600.0 * (-2) ** (next(jumps) % 9)
    for room in (journal, write):
        vars(room)["datetime"] = Falling


def other_draws(scene: Scene) -> None:
    """Somebody else draws from every generator there is, between steps and before."""
    import numpy as np

    def draw(now: int) -> None:
        torch.rand(scene.draw.randrange(1, 9))
        random.random()
        np.random.rand(3)

    draw(0)
    scene.before_step(draw)
    scene.after_step(draw)


def without_noise(scene: Scene) -> None:
    """Dropout is off, also in training."""
    usual = nn.Module.train
    vars(stages)["build_model"] = lambda *given, **named: build_model(*given, **named).eval()
    module: Any = nn.Module
    module.train = lambda self, mode=True: usual(self, False)


# ---------------------------------------------------------------------- other models


class Wrapped(nn.Module):
    """The model under another module of any name."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, model)
        self.within = name
        if hasattr(model, "config"):
            self.config = model.config

    def forward(self, *given: Any, **named: Any) -> Any:
        model: Any = self._modules[self.within]
        return model(*given, **named)


def wrapped_model(scene: Scene, name: str = "wrapped") -> None:
    """Every module of the model has another name."""
    _another_model(lambda model: Wrapped(model, name))


def larger_vocabulary(scene: Scene) -> None:
    """The first table of the model has more rows, wherever it is used."""

    def grow(model: nn.Module) -> nn.Module:
        table = next(p for p in model.parameters() if p.ndim == 2)
        grown = nn.Parameter(torch.cat([table, table[:8]]).detach())
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                if p is table:
                    setattr(module, name, grown)
        return model

    _another_model(grow)


def _another_model(change: Callable[[nn.Module], nn.Module]) -> None:
    vars(stages)["build_model"] = lambda *given, **named: change(build_model(*given, **named))


# ---------------------------------------------------------------------- rewards and trackers


def bad_reward(scene: Scene, after: int) -> None:
    """A verifier whose word is NaN after so many calls."""
    calls, usual = count(), rewards.letters
    vars(rewards)["letters"] = lambda answer, row: usual(answer, row) if next(calls) < after else float("nan")


def equal_rewards(scene: Scene) -> None:
    vars(rewards)["letters"] = lambda answer, row: 0.25


class _Tracker:
    """A tracker that never answers, or refuses every line."""

    def __init__(self, hangs: bool) -> None:
        self.hangs = hangs

    def log(self, step: int, numbers: Any) -> None:
        if self.hangs:
            time.sleep(NEVER)
        raise ConnectionError("the tracker is down")

    def finding(self, finding: Any) -> None: ...

    def close(self) -> None: ...


def broken_trackers(scene: Scene) -> None:
    """Of two trackers one hangs, with room for two lines, and the other is down."""
    if scene.above.channel is None:
        raise SteepestError("the trackers are lent by the command line; run the laboratory from there.")
    said: list[str] = []
    hung, down = (
        scene.above.channel(name, partial(_Tracker, name == "hung"), room=2, tell=said.append)
        for name in ("hung", "down")
    )

    def log(step: int, values: Any) -> None:
        for channel in (hung, down):
            channel.put(lambda sink: sink.log(step, values))
        scene.notes["dropped"] = {"hung": hung.dropped, "down": down.dropped}
        scene.notes["off"] = down.off

    scene.log.append(log)
