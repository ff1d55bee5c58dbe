"""One optimizer step: micro-batches forward and backward, then one verdict on everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steepest.data import seed_for
from steepest.optimizer import Optimizer
from steepest.training.precision import Precision

if TYPE_CHECKING:
    from steepest.training.guard import Guard

Batch = Any
"""What an objective takes: token ids, or a mapping of tensors."""

Objective = Callable[[nn.Module, Batch], tuple[Tensor, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Update:
    """What one step came to.

    loss and facts: means over the step's weight (target tokens, or pairs).  tokens: read.
    norm: of the gradients, unscaled and before clipping, NaN if nobody looked.  rate: the learning rate.
    why: the reason of a veto.  seconds: of the step, and of the optimizer's part in it.
    """

    loss: float
    facts: Mapping[str, float]
    tokens: int
    committed: bool
    norm: float
    rate: float
    why: str
    seconds: tuple[float, float]


class Learner:
    """A model with what trains it. Dropout's noise is a function of the seed and the attempt, so there is
    no generator to save."""

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

    def update(self, micro: Sequence[Batch], attempt: int) -> Update:
        """One step on these micro-batches, which together equal one batch: losses count by their weight.

        attempt: the number of this try among all of the run, committed or not. Raises SteepestError when
        the optimizer gives up (too many vetoes in a row).
        """
        optimizer = self.optimizer
        rate = float(optimizer.param_groups[0]["lr"])
        start = time.perf_counter()
        parts = [self._backward(batch, f"{attempt}/{i}", len(micro) > 1) for i, batch in enumerate(micro)]
        middle = time.perf_counter()
        loss, facts, weight = _mean(parts)
        self._judge(loss)
        scale = self.precision.scale.value if self.precision.scale else 1.0
        optimizer.grad_scale = self._tensor(scale * (weight if len(micro) > 1 else 1.0))
        optimizer.found_inf = self._tensor(~torch.isfinite(loss))
        before = optimizer.committed
        try:
            optimizer.step()
        finally:
            optimizer.zero_grad()
            optimizer.grad_scale = optimizer.found_inf = None
        value = float(loss)
        end = time.perf_counter()
        committed = optimizer.committed > before
        if self.precision.scale is not None:
            self.precision.scale.observe(committed)
        verdict = optimizer.last_verdict
        return Update(
            value,
            {name: float(x) for name, x in facts.items()},
            sum(part[3] for part in parts),
            committed,
            verdict.norm,
            rate,
            verdict.why,
            (end - start, end - middle),
        )

    def _backward(
        self, batch: Batch, place: str, weighted: bool
    ) -> tuple[Tensor, Mapping[str, Any], float, int]:
        torch.manual_seed(seed_for(self.seed, f"dropout/{place}"))
        with self.precision.region():
            loss, facts = self.objective(self.model, batch)
        weight = float(facts.get("weight", facts["tokens"]))
        whole = loss * weight if weighted else loss
        (whole if self.precision.scale is None else whole * self.precision.scale.value).backward()
        named = {name: x for name, x in facts.items() if name not in ("tokens", "weight")}
        return loss.detach(), named, weight, int(facts["tokens"])

    def _judge(self, loss: Tensor) -> None:
        """Ask the guard about this step, once the optimizer knows the gradients' norm."""
        if self.guard is None or not self.guard.judges:
            return
        guard, value = self.guard, float(loss)
        guard.prepare(self.named_gradients())
        self.optimizer.judge = lambda norm: guard.judge(value, norm)

    def named_gradients(self) -> Iterable[tuple[str, Tensor]]:
        return [(name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None]

    def _tensor(self, value: Any) -> Tensor | None:
        """A number for the optimizer, on the device; None for the one that changes nothing."""
        if isinstance(value, Tensor):
            return value.float()
        return None if value == 1.0 else torch.tensor(value, device=self.precision.device)


def _mean(
    parts: Sequence[tuple[Tensor, Mapping[str, Any], float, int]],
) -> tuple[Tensor, dict[str, Any], float]:
    """Loss and facts of all micro-batches, by their weights, and the whole weight."""
    if len(parts) == 1:
        loss, facts, weight, _ = parts[0]
        return loss, dict(facts), weight
    whole = sum(weight for _, _, weight, _ in parts) or 1.0  # nothing asked for: every loss is 0
    total = torch.stack([loss * (weight / whole) for loss, _, weight, _ in parts]).sum()
    names = parts[0][1]
    means = {n: sum(facts[n] * (weight / whole) for _, facts, weight, _ in parts) for n in names}
    return total, means, whole
