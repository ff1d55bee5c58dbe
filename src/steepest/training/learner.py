"""One optimizer step: micro-batches forward and backward, then one verdict on everything."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steepest.data import seed_for
from steepest.optimizer import Judgement, Optimizer
from steepest.optimizer.verdict import culprits
from steepest.placements import Placed
from steepest.training.health import square_norm
from steepest.training.precision import Precision
from steepest.training.together import Part, Sum, add_up, at_fault, unit_of
from steepest.training.world import ALONE, World

if TYPE_CHECKING:
    from steepest.training.guard import Guard

Batch = Any
"""What an objective takes: token ids, or a mapping of tensors."""

Judge = Callable[[float], Judgement]

Objective = Callable[[nn.Module, Batch], tuple[Tensor, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Update:
    """What one step came to, on all ranks together.

    loss and facts: means over `weight` (target tokens, or pairs).  tokens: read.
    norm: of the gradients, unscaled and before clipping, NaN if nobody looked.  rate: the learning rate.
    why: the reason of a veto.  seconds: of the step, and of the optimizer's part in it.  culprits: tensors
    whose gradients are not finite.
    """

    loss: float
    facts: Mapping[str, float]
    tokens: int
    weight: float
    committed: bool
    norm: float
    rate: float
    why: str
    seconds: tuple[float, float]
    culprits: tuple[str, ...] = ()


SHOWN = 16
"""Tensors of which the next step's size is foreseen, where that is asked for."""


class Learner:
    """A model with what trains it. Dropout's noise is a function of the seed, the attempt and the rank, so
    there is no generator to save.

    foresees: whether the size of the next step is asked for before it is taken; `foreseen` has it then, by
    the names of some tensors.  measures: whether the first of several micro-batches is to be measured alone;
    `small` then has the square of its gradient's norm, and its weight (`NoiseScale`).
    placed: the model over the ranks of `world`, None for one process.  busy: seconds of forward passes.
    """

    small: tuple[float, float] | None

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: Objective,
        *,
        seed: int,
        precision: Precision,
        guard: Guard | None = None,
        world: World = ALONE,
        placed: Placed | None = None,
    ) -> None:
        self.model, self.optimizer, self.objective = model, optimizer, objective
        self.seed, self.precision, self.guard = seed, precision, guard
        self.world, self.placed, self.busy = world, placed, 0.0
        self.foresees, self.foreseen = False, dict[str, float]()
        self.measures, self.small = False, None
        self._unit: float | None = None

    def update(self, micro: Sequence[Batch], attempt: int) -> Update:
        """One step on these micro-batches, which together equal one batch: losses count by their weight.

        attempt: the number of this try among all of the run, committed or not. Raises SteepestError when
        the optimizer gives up (too many vetoes in a row).
        """
        with self.world.within(f"taking step {attempt + 1}"):
            return self._update(micro, str(attempt))

    def _update(self, micro: Sequence[Batch], place: str) -> Update:
        optimizer = self.optimizer
        rate = float(optimizer.param_groups[0]["lr"])
        start = time.perf_counter()
        parts, told, scale = self._gradients(micro, place)
        middle = time.perf_counter()
        before = optimizer.committed
        # Tensors, and the loss is read after the step: an optimizer on a GPU decides without the host.
        optimizer.grad_scale = self._tensor(scale)
        optimizer.found_inf = (~torch.isfinite(told.loss)).float()
        optimizer.judge = self._judge(told.loss, scale)
        try:
            if self.foresees:
                self._foresee()
            optimizer.step()
        finally:
            optimizer.zero_grad()
            optimizer.grad_scale = optimizer.found_inf = optimizer.judge = None
        loss = float(told.loss)
        end = time.perf_counter()
        committed = optimizer.committed > before
        if self.precision.scale is not None:
            self.precision.scale.observe(committed)
        verdict = optimizer.last_verdict
        why, names = verdict.why, verdict.culprits
        if why:
            again = (lambda: self._again(micro, place)) if self._replayable else None
            why, names = at_fault(verdict, [float(part.loss) for part in parts], self.world, again)
        return Update(
            loss,
            {name: float(x) for name, x in told.facts.items()},
            told.tokens,
            told.weight,
            committed,
            verdict.norm,
            rate,
            why,
            (end - start, end - middle),
            names,
        )

    @contextmanager
    def looking(self, micro: Sequence[Batch]) -> Iterator[None]:
        """Gradients of these micro-batches as a step would see them; nothing is left of them afterwards."""
        self.optimizer.grad_scale = self._tensor(self._gradients(micro, "look")[2])
        try:
            yield
        finally:
            self.optimizer.zero_grad()
            self.optimizer.grad_scale = None

    def _gradients(self, micro: Sequence[Batch], place: str) -> tuple[list[Part], Sum, float]:
        """Backward passes of all micro-batches, what they came to on all ranks, and what the gradients are
        to be divided by afterwards. On ranks gradients are means over ranks of sums by weight."""
        parts: list[Part] = []
        self.small = None
        if self.world.size == 1:
            self._unit = None
        for i, batch in enumerate(micro):
            with nullcontext() if i + 1 == len(micro) else self._holding():
                parts.append(self._backward(batch, f"{place}/{i}"))
            if self.measures and i == 0 and len(micro) > 1:
                self.small = self._measure(parts[0])
        if self.placed is not None:
            self.placed.finish()
        told = add_up(parts, self.world)
        whole = self._in_units(told.weight or 1.0) / self.world.size
        return parts, told, whole * self._loss_scale

    def _holding(self) -> AbstractContextManager[None]:
        """Gradients of passes in here stay on their rank until a pass outside."""
        return self.placed.holding() if self.placed is not None else nullcontext()

    @property
    def _loss_scale(self) -> float:
        return self.precision.scale.value if self.precision.scale else 1.0

    def _tensor(self, scale: float) -> Tensor | None:
        """A scale for the optimizer, on the device; None for the one that changes nothing."""
        return None if scale == 1.0 else torch.tensor(scale, device=self.precision.device)

    def _backward(self, batch: Batch, place: str) -> Part:
        """One forward and backward pass."""
        own = f"{place}/{self.world.rank}" if self.world.size > 1 else place
        _reseed(seed_for(self.seed, f"dropout/{own}"), self.precision.device)
        start = time.perf_counter()
        with self.precision.region():
            loss, facts = self.objective(self.placed.model if self.placed else self.model, batch)
        self.busy += time.perf_counter() - start
        weight = float(facts.get("weight", facts["tokens"]))
        if self._unit is None:
            self._unit = unit_of(weight, self.world)
        share = weight / self._unit
        whole = loss if share == 1.0 else loss * share
        (whole if self.precision.scale is None else whole * self.precision.scale.value).backward()
        named = {name: x for name, x in facts.items() if name not in ("tokens", "weight")}
        return Part(loss.detach(), named, weight, int(facts["tokens"]))

    def _measure(self, part: Part) -> tuple[float, float] | None:
        """The square of the gradient's norm after the first micro-batch, and its weight; means over ranks."""
        grads = [grad for _, grad in self.named_gradients()]
        if not grads or not part.weight:  # gradients that are cut are not whole before they are exchanged
            return None
        own = square_norm(grads, self._loss_scale * self._in_units(part.weight)), part.weight
        square, weight = (self.world.sum(own) / self.world.size).tolist()
        return square, weight

    def _in_units(self, weight: float) -> float:
        return weight / (self._unit or 1.0)

    @property
    def _replayable(self) -> bool:
        """Whether a rank can compute its own gradients again, apart from the others'. Without a loss scale:
        that one is lowered by ordinary overflows."""
        whole = self.placed is not None and self.placed.kind not in ("fsdp", "hybrid")
        return whole and self.precision.scale is None

    def _again(self, micro: Sequence[Batch], place: str) -> tuple[str, ...]:
        """The tensors whose gradients of this rank's own rows are not finite: the exchange has spread them
        to all ranks."""
        with self._holding():
            for i, batch in enumerate(micro):
                self._backward(batch, f"{place}/{i}")
        found = culprits(self.named_gradients())
        self.optimizer.zero_grad()
        return found

    def _judge(self, loss: Tensor, scale: float) -> Judge | None:
        """What the guard is going to say of this step, asked with the gradients' norm; None if nothing.

        scale: what the gradients are still to be divided by.
        """
        guard, optimizer = self.guard, self.optimizer
        if guard is None or not guard.judges:
            return None
        here = [(name, optimizer.placement.local(grad)) for name, grad in self.named_gradients()]
        guard.prepare(here, scale, optimizer.gradient_norms)
        value = float(loss)
        return lambda norm: guard.judge(value, norm, lambda: _size(optimizer.preview()))

    def _foresee(self) -> None:
        sample = SHOWN / max(len(self.named_gradients()), SHOWN)
        moved = self.optimizer.preview(sample, seed=self.seed)
        self.foresees, self.foreseen = False, {name: row["update_norm"] for name, row in moved.items()}

    def named_gradients(self) -> list[tuple[str, Tensor]]:
        return [(name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None]


def _size(moved: Mapping[str, Mapping[str, float]]) -> float:
    """The norm of a whole update, from those of its tensors."""
    return math.hypot(*(row["update_norm"] for row in moved.values()))


def _reseed(seed: int, device: torch.device) -> None:
    """Seed the generators that a forward pass draws from. torch.manual_seed takes a millisecond: for every
    accelerator that might be used later it writes down where it was called from."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
