"""What is asked: which optimizers, on which model and data, within which budget."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from steepest.contract import SteepestError
from steepest.rules import find_card

MIN_STEPS = 20
"""A schedule with its warm-up and its cooldown needs this many steps to mean anything."""
GRID_FACTOR = 2.0
START = (-1, 0, 1)
"""First grid points, as powers of the factor around the prior."""
LARGEST_GRID = 9
"""An optimizer whose best rate is still at the edge of this many is reported so, not searched further."""
HIGHEST_PRIOR = 4e-3
"""No AdamW sweep of the sources has its best rate above 8e-3 (Marin's 130M model, at batches a thousand
times larger than a comparison's, which want a higher rate)."""


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
"""What a model folder holds if it has a tokenizer of its own."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much training: seconds for the whole study, or tokens or steps for each trial."""

    amount: float
    unit: Literal["seconds", "tokens", "steps"]


def parse_budget(text: str) -> Budget:
    """Read "90s", "5m", "2h" (the whole study) or "200steps", "100ktok", "2Mtok" (each trial)."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]+)\s*", text)
    units: dict[str, tuple[float, Literal["seconds", "tokens", "steps"]]] = {
        "s": (1, "seconds"),
        "m": (60, "seconds"),
        "min": (60, "seconds"),
        "h": (3600, "seconds"),
        "step": (1, "steps"),
        "steps": (1, "steps"),
        "tok": (1, "tokens"),
        "tokens": (1, "tokens"),
        "ktok": (1e3, "tokens"),
        "Mtok": (1e6, "tokens"),
    }
    if match is None or match[2] not in units:
        raise SteepestError(
            f"budget {text!r} is not understood; give a time for the whole study (90s, 5m, 2h) or a length "
            "for each trial (200steps, 100ktok)."
        )
    factor, unit = units[match[2]]
    amount = float(match[1]) * factor
    if not 0 < amount < math.inf:
        raise SteepestError(f"budget {text!r} is not a positive, finite time or length; give one, as in 5m.")
    return Budget(amount, unit)


@dataclass(frozen=True)
class Question:
    """A comparison before it is planned. Every field is what the command line says.

    tokenizer: None for the model folder's own where there is one, else bytes.
    seeds: how many paired evaluation seeds; the learning rates are tuned on another one.
    workers: trials at once, None for one a core (one in all on an accelerator).
    """

    model: str = "tiny"
    data: str = "stdlib"
    text_key: str = "text"
    tokenizer: str | None = None
    optimizers: tuple[str, ...] = ()
    budget: Budget = field(default_factory=lambda: Budget(160, "steps"))
    seeds: int = 5
    batch: int = 8
    context: int = 64
    clip: float | None = 1.0
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "cosine", "warmup": 0.1})
    baseline: str = "adamw"
    seed: int = 0
    device: str = "cpu"
    workers: int | None = None
    command: str = "steepest compare"

    def __post_init__(self) -> None:
        names = [find_card(name).name for name in self.optimizers]
        base = find_card(self.baseline).name
        object.__setattr__(self, "optimizers", tuple(dict.fromkeys([base, *names])))
        object.__setattr__(self, "baseline", base)
        if self.tokenizer is None:
            own = any((Path(self.model) / name).exists() for name in TOKENIZER_FILES)
            object.__setattr__(self, "tokenizer", "model" if own else "bytes")
        if self.seeds < 1:
            raise SteepestError(f"--seeds {self.seeds} leaves nothing to compare; give at least 2.")
        if self.workers is not None and self.workers < 1:
            raise SteepestError(f"--workers {self.workers} cannot run a trial; give at least 1.")

    @property
    def tuning_seed(self) -> int:
        """The seed of all tuning trials; no evaluation uses it."""
        return self.seed

    @property
    def evaluation_seeds(self) -> list[int]:
        """Fresh seeds, the same for every optimizer."""
        return [self.seed + 101 + i for i in range(self.seeds)]

    def trials(self) -> int:
        """Trials that will probably run: a grid usually grows once or twice beyond its first points."""
        return math.ceil(len(self.optimizers) * (len(START) + 1.3 + self.seeds))

    def steps(self, seconds_per_step: float, workers: int) -> int:
        """Steps of a trial under the budget, rounded down to two digits so that equal machines agree."""
        if self.budget.unit == "steps":
            steps = int(self.budget.amount)
        elif self.budget.unit == "tokens":
            steps = int(self.budget.amount // (self.batch * self.context))
        else:
            each = self.budget.amount * workers / self.trials()
            steps = int(each / (1.2 * seconds_per_step))  # validation takes about a fifth more
            digits = max(0, len(str(steps)) - 2)
            steps = steps // 10**digits * 10**digits
        if steps < MIN_STEPS:
            raise SteepestError(
                f"the budget gives each trial {steps} steps and one needs {MIN_STEPS}; give at least "
                f"{self._least(seconds_per_step, workers)}, or compare fewer optimizers or seeds."
            )
        return steps

    def _least(self, seconds_per_step: float, workers: int) -> str:
        if self.budget.unit == "steps":
            return f"{MIN_STEPS}steps"
        if self.budget.unit == "tokens":
            return f"{MIN_STEPS * self.batch * self.context}tok"
        seconds = 1.2 * MIN_STEPS * seconds_per_step * self.trials() / workers
        return f"{math.ceil(seconds) + 1}s"


def prior_lr(parameters: int, tokens: int) -> float:
    """Where to look for AdamW's learning rate first: Step Law's 1.79 N^-0.713 D^0.307 (arXiv:2503.04715)
    for N parameters and D tokens, held below the highest rate any sweep has found best."""
    return min(1.79 * parameters**-0.713 * tokens**0.307, HIGHEST_PRIOR)


def grid_rate(prior: float, k: int) -> float:
    """The k-th learning rate of the grid through 1e-3 nearest to the prior, to three digits."""
    anchor = round(math.log(prior / 1e-3, GRID_FACTOR))
    return float(f"{1e-3 * GRID_FACTOR ** (anchor + k):.3g}")
