"""What a stage of a run came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from steepest.training.curve import Curve, Trained


@dataclass
class StageResult:
    """A stage that is over. reason: why it diverged, if it did.  ended: what ended it before its last step.
    unit: of its validation."""

    name: str
    objective: str
    unit: str
    curves: tuple[Curve, Curve]
    steps: int = 0
    seconds: float = 0.0
    trained: Trained | None = None
    reason: str | None = None
    ended: str = ""

    def facts(self) -> dict[str, Any]:
        """All but the curves, as JSON."""
        return {
            "name": self.name,
            "objective": self.objective,
            "unit": self.unit,
            "steps": self.steps,
            "seconds": self.seconds,
            "ended": self.ended,
            "reason": self.reason,
        }

    def record(self) -> dict[str, Any]:
        """All of it, for run.json."""
        curve, validation = map(asdict, self.curves)
        return {**self.facts(), "curve": curve, "validation": validation}
