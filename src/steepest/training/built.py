"""A stage as it runs: its loop, what it stands on, and all of it as tensors and numbers of a generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from steepest.optimizer import Optimizer
from steepest.training.controls import Controls
from steepest.training.health import Health
from steepest.training.indicators import Finding
from steepest.training.learner import Update
from steepest.training.loop import Place, Stage
from steepest.training.parts import Given, parts, state_parts
from steepest.training.sources import Source
from steepest.training.stage_config import StageConfig
from steepest.training.weights import check_weights, load_weights, weights

Tensors = Mapping[str, Mapping[str, Tensor]]


@dataclass
class Built:
    """A stage and what it stands on. reference: the policy as it was when the stage began, where its
    objective asks for it.  carried: what became of the optimizer's state at the border, as JSON; words: the
    same for people."""

    config: StageConfig
    stage: Stage
    source: Source
    reference: nn.Module | None = None
    health: Health | None = None
    controls: Controls | None = None
    carried: Mapping[str, Any] | None = None
    words: str = ""

    def control(self, update: Update, findings: Sequence[Finding]) -> str:
        """Let the controllers look at a step; what they changed, in words."""
        return self.controls.look(self.stage, update, findings) if self.controls else ""

    @property
    def model(self) -> nn.Module:
        return self.stage.learner.model

    @property
    def optimizer(self) -> Optimizer:
        return self.stage.learner.optimizer

    @property
    def crossed(self) -> bool:
        """Whether state of the stage before goes on in this one."""
        return any(row["old_rule"] is not None for row in (self.carried or {}).get("rows", ()))

    @property
    def warmup(self) -> int:
        """Steps of warm-up of the learning rate."""
        return self.config.schedule.build(1.0, self.config.steps).warmup

    def tensors(self) -> dict[str, Given]:
        """What this rank gives of it to a generation, by group."""
        world = self.stage.learner.world
        out = {"model": parts(weights(self.model), world), "optimizer": state_parts(self.optimizer, world)}
        if self.reference is not None:
            out["reference"] = parts(weights(self.reference), world)
        if self.source.tables:
            out["tables"] = parts(self.source.tables, world)
        return out

    def facts(self) -> dict[str, Any]:
        """The numbers beside: JSON."""
        learner = self.stage.learner
        return {
            "place": asdict(self.stage.place),
            "optimizer": self.optimizer.export_state()[1],
            "guard": learner.guard.state() if learner.guard else None,
            "precision": learner.precision.state(),
            "health": self.health.state() if self.health else None,
            "controls": self.controls.state() if self.controls else None,
            "carried": self.carried,
        }

    def load(self, tensors: Tensors, facts: Mapping[str, Any]) -> None:
        """Become what was saved; a mismatch raises before anything is changed."""
        learner = self.stage.learner
        models = {
            "model": self.model,
            **({"reference": self.reference} if self.reference is not None else {}),
        }
        for group, model in models.items():
            check_weights(model, tensors[group])
        if self.controls is not None and facts["controls"] is not None:
            self.controls.load(facts["controls"])  # first: the optimizer asks its schedules for the next rate
        self.optimizer.import_state(tensors["optimizer"], facts["optimizer"])
        for group, model in models.items():
            load_weights(model, tensors[group])
        self.source.tables.update(tensors.get("tables", {}))
        self.stage.place = Place(**facts["place"])
        if learner.guard is not None and facts["guard"] is not None:
            learner.guard.load(facts["guard"])
        if self.health is not None and facts["health"] is not None:
            self.health.load(facts["health"])
        learner.precision.load(facts["precision"])
        self.carried = facts["carried"]
