"""Stepping inside the backward pass: a gradient is used as soon as it is whole, and let go of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steepest.contract import AddUp, SteepestError
from steepest.engines import Engine, find_engine
from steepest.optimizer.optimizer import Optimizer
from steepest.optimizer.state import Held
from steepest.optimizer.step import Lot
from steepest.optimizer.verdict import NON_FINITE, Verdict, decide


class Release:
    """An optimizer whose parameters are stepped one by one while the backward pass goes on, so that the
    gradients of a whole model never exist together.

        release = steepest.Release(optimizer)
        loss.backward()                 # every parameter moves as soon as its gradient is whole
        release.finish()                # in place of optimizer.step() and zero_grad()

    A step's verdict has to be known before its first parameter moves. Two policies:

    - One pass, as above. Where `max_grad_norm` clips, the norm of the step before stands for this one's (the
      first step is not clipped). A gradient that is not finite stops its own parameter and those after it,
      while those before it have moved; `finish` counts that as a skipped step.
    - Two passes: `release.exact(backward)` calls a function twice that does the backward pass. The first time
      gradients are only measured, so clipping is that of an ordinary step and a veto moves nothing. The
      second has to give the same gradients (where there is dropout, seed it in the function).

    Micro-batches before a step's last one go into `with release.holding():`, where gradients are added up as
    usual: numbers are those of an ordinary step, and memory is saved in the last backward pass.

    Parameters that `fully_shard` has cut take two passes, so that ranks agree. Not under
    DistributedDataParallel, which averages gradients only after they were used here.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if optimizer.judge is not None:
            raise SteepestError("a judge is asked with all gradients at once; use step() with it.")
        if optimizer.placement.name == "owned":
            raise SteepestError(
                "gradients that go to owners are not released here; use placement zero2 or fsdp."
            )
        self.optimizer = optimizer
        self._held = {held.place: held for held in optimizer.holdings()}
        self._lots: dict[int, tuple[Engine, Lot]] = {}
        self._squares: dict[AddUp | None, float] = {}
        self._last: Verdict | None = None
        self._given: Verdict | None = None
        self._moved: list[tuple[Lot, Tensor | None]] = []
        self._bad: list[str] = []
        self._do: Callable[[Held, Tensor], Any] | None = self._step
        trained = [held for held in self._held.values() if held.p.requires_grad]
        self._hooks = [held.p.register_post_accumulate_grad_hook(self._hook(held)) for held in trained]

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Backward passes in here only add to gradients."""
        before, self._do = self._do, None
        try:
            yield
        finally:
            self._do = before

    def exact(self, backward: Callable[[], Any]) -> Any:
        """One whole step by two backward passes over all its micro-batches; returns what `backward` gave."""
        try:
            self._do = self._measure
            found = backward()
            self._rest()
            own, norm = self.optimizer, self._norm()
            self._given = decide(norm, max_norm=own.max_grad_norm, clip_eps=own.clip_eps)
            if self._given.commit:
                self._do = self._step
                found = backward()
        finally:
            self._do = self._step
        self.finish()
        return found

    @torch.no_grad()
    def finish(self) -> Verdict:
        """The backward pass is over: count the step, move schedules on, and say what became of it."""
        if self._given is None or self._given.commit:
            self._rest()  # what only earlier micro-batches had a gradient for
        verdict = self._given or self._after_one_pass()
        for lot, _ in self._moved:
            lot.advance()
        self.optimizer.conclude(
            verdict, [(lot.members, s) for lot, s in self._moved if s is not None], self._bad
        )
        self._last, self._given, self._moved, self._bad = verdict, None, [], []
        self._squares.clear()
        return verdict

    def remove(self) -> None:
        """Give the optimizer back to `step()`."""
        for hook in self._hooks:
            hook.remove()

    # ------------------------------------------------------------ one gradient

    def _hook(self, held: Held) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def arrived(p: Tensor) -> None:
            if self._do is not None and p.grad is not None:
                self._do(held, self.optimizer.placement.local(p.grad))
                p.grad = None

        return arrived

    def _rest(self) -> None:
        for held in self._held.values():
            if self._do is not None and held.p.grad is not None:
                self._do(held, self.optimizer.placement.local(held.p.grad))
                held.p.grad = None

    def _measure(self, held: Held, grad: Tensor) -> float:
        over = self.optimizer.placement.add_up(held.p)
        norm = self._lot(held)[0].measure([grad])
        self._squares[over] = self._squares.get(over, 0.0) + norm**2
        return norm

    def _step(self, held: Held, grad: Tensor) -> None:
        engine, lot = self._lot(held)
        if self._given is None:
            if held.shard is not None:
                raise SteepestError(
                    "parameters that are cut over ranks are released by exact(), or not at all."
                )
            if not math.isfinite(self._measure(held, grad)):
                self._bad.append(held.name)
        if self._bad:
            return
        verdict = self._given or Verdict(True, math.nan, self._clip())
        (sums,) = engine.run([self.optimizer.bucket(lot, {held.place: grad}, verdict)])
        self._moved.append((lot, sums))

    def _lot(self, held: Held) -> tuple[Engine, Lot]:
        """A parameter's own engine, which keeps its plan, and its lot of one."""
        found = self._lots.get(held.place)
        state = self.optimizer.state[held.p]
        if found is None or not found[1].holds() or found[1].states[0] is not state:
            add_up = self.optimizer.placement.add_up(held.p) if held.shard is not None else None
            lot = Lot(held.index, held.rule, held.codecs, state["step"], add_up=add_up)
            lot.add(held.place, held.local, state, held.shard)
            lot.close()
            found = self._lots[held.place] = find_engine(self.optimizer.engine), lot
        return found

    # ------------------------------------------------------------ the verdict

    def _clip(self) -> float | None:
        """The factor of clipping in one pass, from the step before."""
        if self._last is None or not math.isfinite(self._last.norm):
            return None
        own = self.optimizer
        return decide(self._last.norm, max_norm=own.max_grad_norm, clip_eps=own.clip_eps).scale

    def _after_one_pass(self) -> Verdict:
        norm, scale = self._norm(), self._clip()
        finite = math.isfinite(norm) and not self._bad
        return Verdict(finite, norm, scale if finite else None, why="" if finite else NON_FINITE)

    def _norm(self) -> float:
        """Of all gradients, over all ranks."""
        square = 0.0
        for add_up, own in self._squares.items():
            vector = torch.tensor([own], dtype=torch.float64)
            if add_up is not None:
                add_up(vector)
            square += float(vector)
        self._squares.clear()
        return math.sqrt(square)
