"""What a stage of a run came to."""

from __future__ import annotations

from collections.abc import Mapping
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

    def record(self) -> dict[str, Any]:
        curve, validation = map(asdict, self.curves)
        return {
            "name": self.name,
            "objective": self.objective,
            "unit": self.unit,
            "steps": self.steps,
            "seconds": self.seconds,
            "ended": self.ended,
            "reason": self.reason,
            "curve": curve,
            "validation": validation,
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> StageResult:
        """What `record` was made of."""
        curves = Curve(**record["curve"]), Curve(**record["validation"])
        own = {key: value for key, value in record.items() if key not in ("curve", "validation")}
        return cls(curves=curves, **own)
