"""One optimizer step: micro-batches forward and backward, then one verdict on everything."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from steepest.data import seed_for
from steepest.optimizer import Judgement, Optimizer
from steepest.training.health import square_norm
from steepest.training.precision import Precision

if TYPE_CHECKING:
    from steepest.training.guard import Guard

Batch = Any
"""What an objective takes: token ids, or a mapping of tensors."""

Judge = Callable[[float], Judgement]

Objective = Callable[[nn.Module, Batch], tuple[Tensor, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Update:
    """What one step came to.

    loss and facts: means over `weight` (target tokens, or pairs).  tokens: read.
    norm: of the gradients, unscaled and before clipping, NaN if nobody looked.  rate: the learning rate.
    why: the reason of a veto.  seconds: of the step, and of the optimizer's part in it.
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


class Part(NamedTuple):
    """One micro-batch: its loss and facts, means over its weight, and the tokens read."""

    loss: Tensor
    facts: Mapping[str, Any]
    weight: float
    tokens: int


SHOWN = 16
"""Tensors of which the next step's size is foreseen, where that is asked for."""


class Learner:
    """A model with what trains it. Dropout's noise is a function of the seed and the attempt, so there is
    no generator to save.

    foresees: whether the size of the next step is asked for before it is taken; `foreseen` has it then, by
    the names of some tensors.  measures: whether the first of several micro-batches is to be measured alone;
    `small` then has the square of its gradient's norm, and its weight (`NoiseScale`).
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
    ) -> None:
        self.model, self.optimizer, self.objective = model, optimizer, objective
        self.seed, self.precision, self.guard = seed, precision, guard
        self.foresees, self.foreseen = False, dict[str, float]()
        self.measures, self.small = False, None

    def update(self, micro: Sequence[Batch], attempt: int) -> Update:
        """One step on these micro-batches, which together equal one batch: losses count by their weight.

        attempt: the number of this try among all of the run, committed or not. Raises SteepestError when
        the optimizer gives up (too many vetoes in a row).
        """
        optimizer = self.optimizer
        rate = float(optimizer.param_groups[0]["lr"])
        start = time.perf_counter()
        parts, scale = self._gradients(micro, str(attempt))
        middle = time.perf_counter()
        loss, facts = _mean(parts)
        before = optimizer.committed
        # Tensors, and the loss is read after the step: an optimizer on a GPU decides without the host.
        optimizer.grad_scale = self._tensor(scale)
        optimizer.found_inf = (~torch.isfinite(loss)).float()
        optimizer.judge = self._judge(loss, scale)
        try:
            if self.foresees:
                self._foresee()
            optimizer.step()
        finally:
            optimizer.zero_grad()
            optimizer.grad_scale = optimizer.found_inf = optimizer.judge = None
        value = float(loss)
        end = time.perf_counter()
        committed = optimizer.committed > before
        if self.precision.scale is not None:
            self.precision.scale.observe(committed)
        verdict = optimizer.last_verdict
        return Update(
            value,
            {name: float(x) for name, x in facts.items()},
            sum(part.tokens for part in parts),
            sum(part.weight for part in parts),
            committed,
            verdict.norm,
            rate,
            verdict.why and _why(verdict.why, [float(part.loss) for part in parts]),
            (end - start, end - middle),
        )

    @contextmanager
    def looking(self, micro: Sequence[Batch]) -> Iterator[None]:
        """Gradients of these micro-batches as a step would see them; nothing is left of them afterwards."""
        self.optimizer.grad_scale = self._tensor(self._gradients(micro, "look")[1])
        try:
            yield
        finally:
            self.optimizer.zero_grad()
            self.optimizer.grad_scale = None

    def _gradients(self, micro: Sequence[Batch], place: str) -> tuple[list[Part], float]:
        """Backward passes of all micro-batches, and what the gradients are to be divided by afterwards."""
        parts: list[Part] = []
        self.small = None
        for i, batch in enumerate(micro):
            parts.append(self._backward(batch, f"{place}/{i}", parts[0].weight if parts else 0.0))
            if self.measures and i == 0 and len(micro) > 1:
                scale = self.precision.scale.value if self.precision.scale else 1.0
                self.small = square_norm([g for _, g in self.named_gradients()], scale), parts[0].weight
        unit = parts[0].weight or 1.0
        whole = sum(part.weight for part in parts) or 1.0
        return parts, whole / unit * (self.precision.scale.value if self.precision.scale else 1.0)

    def _tensor(self, scale: float) -> Tensor | None:
        """A scale for the optimizer, on the device; None for the one that changes nothing."""
        return None if scale == 1.0 else torch.tensor(scale, device=self.precision.device)

    def _backward(self, batch: Batch, place: str, unit: float) -> Part:
        """One forward and backward pass.

        unit: the first micro-batch's weight, in units of which this one's counts; 0 for the first itself.
        Gradients then have the size of one batch's, for which float16 has room.
        """
        _reseed(seed_for(self.seed, f"dropout/{place}"), self.precision.device)
        with self.precision.region():
            loss, facts = self.objective(self.model, batch)
        weight = float(facts.get("weight", facts["tokens"]))
        whole = loss * (weight / unit) if unit else loss
        (whole if self.precision.scale is None else whole * self.precision.scale.value).backward()
        named = {name: x for name, x in facts.items() if name not in ("tokens", "weight")}
        return Part(loss.detach(), named, weight, int(facts["tokens"]))

    def _judge(self, loss: Tensor, scale: float) -> Judge | None:
        """What the guard is going to say of this step, asked with the gradients' norm; None if nothing.

        scale: what the gradients are still to be divided by.
        """
        guard, optimizer = self.guard, self.optimizer
        if guard is None or not guard.judges:
            return None
        guard.prepare(self.named_gradients(), scale)
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


def _why(why: str, losses: Sequence[float]) -> str:
    """The reason of a veto; a loss that is not finite is the reason of whatever else is not."""
    bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    if not bad:
        return why
    where = f" in micro-batch {bad[0] + 1} of {len(losses)}" if len(losses) > 1 else ""
    return f"the loss is {losses[bad[0]]}{where}"


def _mean(parts: Sequence[Part]) -> tuple[Tensor, dict[str, Any]]:
    """Loss and facts of all micro-batches, by their weights."""
    if len(parts) == 1:
        return parts[0].loss, dict(parts[0].facts)
    whole = sum(part.weight for part in parts) or 1.0  # nothing asked for: every loss is 0
    shares = [(part, part.weight / whole) for part in parts]
    total = torch.stack([part.loss * share for part, share in shares]).sum()
    return total, {name: sum(part.facts[name] * share for part, share in shares) for name in parts[0].facts}


def _reseed(seed: int, device: torch.device) -> None:
    """Seed the generators that a forward pass draws from. torch.manual_seed takes a millisecond: for every
    accelerator that might be used later it writes down where it was called from."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
