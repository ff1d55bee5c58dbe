"""A process of the laboratory as injections see it: where it is, and what they may take hold of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from steepest.training.checkpoint import Store
from steepest.training.faults.terms import Above
from steepest.training.learner import Batch, Learner, Update

Before = Callable[[int], None]
"""Called with the number of the step that is about to be taken."""


@dataclass
class Scene:
    """This process. rank, ranks: who it is.  draw: seeded, another one for every rank and fault.

    step: the one being taken, from 1.  saving: the step that is being saved.
    learner: of the present stage.  fed: digests of the rows read in each step, by its number.
    log: also called with a step and its numbers, where rank 0 logs them.  notes: left for the oracles.
    """

    rank: int
    ranks: int
    draw: Random
    above: Above = field(default_factory=Above)
    step: int = 0
    saving: int = -1
    learner: Learner | None = None
    fed: dict[int, list[str]] = field(default_factory=dict)
    log: list[Callable[[int, Mapping[str, Any]], None]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    _learners: list[Callable[[Learner], None]] = field(default_factory=list)
    _before: list[Before] = field(default_factory=list)
    _after: list[Before] = field(default_factory=list)

    def on_learner(self, act: Callable[[Learner], None]) -> None:
        """Act on every stage's learner when it has been made."""
        self._learners.append(act)

    def before_step(self, act: Before) -> None:
        self._before.append(act)

    def after_step(self, act: Before) -> None:
        self._after.append(act)

    def watch(self) -> None:
        """Take hold of the classes that a run is made of. The process is the laboratory's own, and ends."""
        make, update, save = Learner.__init__, Learner.update, Store.save

        def made(learner: Learner, *given: Any, **named: Any) -> None:
            make(learner, *given, **named)
            self.learner = learner
            for act in self._learners:
                act(learner)

        def updated(learner: Learner, micro: Sequence[Batch], attempt: int) -> Update:
            self.step = attempt + 1
            self.fed[self.step] = [one for batch in micro for one in rows(batch)]
            for act in self._before:
                act(self.step)
            out = update(learner, micro, attempt)
            for act in self._after:
                act(self.step)
            return out

        def saved(store: Store, *given: Any, **named: Any) -> Any:
            self.saving = named["step"]
            return save(store, *given, **named)

        around: Any = Learner
        around.__init__, around.update = made, updated
        store: Any = Store
        store.save = saved

    def trainable(self) -> list[tuple[str, Any]]:
        """Modules that have a trainable weight of their own, by its name."""
        assert self.learner is not None
        found = [(name, module) for name, module in self.learner.model.named_modules() if _weight(module)]
        return [(f"{name}.weight" if name else "weight", module) for name, module in found]


def _weight(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.requires_grad


def rows(batch: Batch) -> list[str]:
    """A digest of every row of a batch."""
    if isinstance(batch, Mapping):
        columns = [rows(part) for part in batch.values() if isinstance(part, (Tensor, Mapping))]
        return ["/".join(parts) for parts in zip(*columns, strict=False)]
    return [digest([row]) for row in batch]


def digest(tensors: Sequence[Tensor]) -> str:
    """Of the bytes of these tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return found.hexdigest()[:16]
