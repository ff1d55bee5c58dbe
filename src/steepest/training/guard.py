"""The guard: detects spikes of loss, gradients and updates, and, where asked to, steps in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field, model_validator
from torch import Tensor

from steepest.contract import SteepestError
from steepest.optimizer import Judgement
from steepest.training.clipping import AdaGC, AdaGCConfig, ZClip, ZClipConfig
from steepest.training.history import History, Window
from steepest.training.indicators import RUN, TABLE, Finding, Level, upto
from steepest.training.stage_config import Frozen

WATCHED = ("loss", "grad_norm", "update_norm")
"""What is watched, in the order `Guard.observe` takes them."""


class RollbackConfig(Frozen):
    """patience: steps after a spike until the verdict.  margin: nats that the loss may stay above where it
    was."""

    patience: int = Field(default=500, ge=4)
    margin: float = Field(default=0.05, ge=0)


LEAST = 1e-6
"""The shortest a step is made, as a share of itself; what would have to be shorter is beyond help."""

DEFAULTS: dict[str, Any] = {"zclip": {}, "adagc": {}, "rollback": {}, "update_clip": 3.0}
"""What `true` stands for."""


class GuardConfig(Frozen):
    """Detectors are always on and only tell; every intervention is asked for.

    window, minimum: steps of history, and how many of them are needed before anything is judged.
    warn, act: standard deviations above the history that are told of, and that are acted on.
    floor:     the least standard deviation to count with, as a share of the mean.
    skip:      veto a step whose loss or gradient norm lies above `act`.
    zclip:     clip the gradient norm by its own history (`ZClipConfig`, or true).
    adagc:     clip each tensor's gradient by its own history (`AdaGCConfig`, or true).
    update_clip: shorten a step whose update would lie more standard deviations above its history than this;
               true is 3. It asks for a preview of every step, which costs about as much as the step.
    rollback:  ask for a return to the last good generation after a spike that does not heal
               (`RollbackConfig`, or true).
    """

    window: int = Field(default=128, ge=8)
    minimum: int = Field(default=64, ge=2)
    warn: float = Field(default=3.0, gt=0)
    act: float = Field(default=6.0, gt=0)
    floor: float = Field(default=0.01, gt=0)
    skip: bool = False
    zclip: ZClipConfig | None = None
    adagc: AdaGCConfig | None = None
    update_clip: float | None = Field(default=None, gt=0)
    rollback: RollbackConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _switches(cls, given: Any) -> Any:
        """`zclip: true` is what people write."""
        if not isinstance(given, Mapping):
            return given
        switched = [key for key in DEFAULTS if isinstance(given.get(key), bool)]
        return {**given, **{key: DEFAULTS[key] if given[key] else None for key in switched}}

    @model_validator(mode="after")
    def _in_order(self) -> GuardConfig:
        if self.warn > self.act:
            raise SteepestError(f"warn={self.warn:g} is above act={self.act:g}; lower it.")
        return self


@dataclass(frozen=True, slots=True)
class Rollback:
    """A spike at step `spike` that did not heal: the loss (a moving average) was `before`, and is `now`."""

    spike: int
    before: float
    now: float


class Guard:
    """Judges every step before it is taken, and remembers it afterwards. What is not finite never enters a
    statistic, and neither does a step that was vetoed; a spike enters as the limit it broke, so that it does
    not hide the next one.

    warnings: findings about the last step observed; one spike is told once, and once more if it gets worse.
    rollback: set when a return to an earlier generation is asked for; a guard loaded from there has none.
    step:     the last step observed.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config, self.step = config, 0
        self.warnings: list[Finding] = []
        self.rollback: Rollback | None = None
        warn, act = upto(config.warn), upto(config.act)
        self._limits = {name: replace(TABLE[f"{name}_spike"], warn=warn, act=act) for name in WATCHED}
        self.zclip = ZClip(config.zclip) if config.zclip else None
        self.adagc = AdaGC(config.adagc) if config.adagc else None
        self.recovery = Recovery(config.rollback) if config.rollback else None
        self.rearm()

    def rearm(self) -> None:
        """Forget all history: another objective, other data or another rate begins."""
        self.history = {name: Window(self.config.floor, size=self.config.window) for name in WATCHED}
        self._told: dict[str, tuple[int, Level]] = {}
        self._rate = 1.0
        self.rollback = None
        for part in (self.zclip, self.adagc, self.recovery):
            if part is not None:
                part.rearm()

    @property
    def judges(self) -> bool:
        """Whether any step could be changed: if not, nobody needs to ask."""
        config = self.config
        return any((config.skip, config.zclip, config.adagc, config.update_clip))

    def prepare(
        self,
        named: Iterable[tuple[str, Tensor]],
        scale: float = 1.0,
        norms_of: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        """Clip the gradients of single tensors in place, if asked to. scale: what they are still to be
        divided by (a loss scale, the weight of accumulated batches).  norms_of: asked for those of all
        gradients, where only a part of them is here."""
        if self.adagc is not None:
            self.adagc.prepare(named, scale, norms_of() if norms_of is not None else None)

    def judge(self, loss: float, norm: float, predict: Callable[[], float] | None = None) -> Judgement:
        """What is to become of a step with this loss and this global gradient norm.

        predict: the norm of the update that the step would make; needed for `update_clip`, and only asked
        when there is a history to compare it with.
        """
        self._rate = 1.0
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                return Judgement(commit=False, why=f"the {name} is {value}")
        if self.config.skip:
            for name, value in (("loss", loss), ("grad_norm", norm)):
                found = self._level(name, value)
                if found is not None and found[0] == "act":
                    sigmas = self.history[name].sigmas(value)
                    return Judgement(commit=False, why=f"spike: {name} {value:.4g} is {sigmas:.1f} sigma up")
        max_norm = self.zclip.limit(norm) if self.zclip is not None else None
        if self.config.update_clip is not None and predict is not None and self._ready("update_norm"):
            predicted = predict()
            if not math.isfinite(predicted):
                return Judgement(commit=False, why=f"the update's norm would be {predicted}")
            limit = self.history["update_norm"].limit(self.config.update_clip)
            self._rate = min(1.0, max(limit / predicted, LEAST)) if predicted > 0 else 1.0
        return Judgement(max_norm=max_norm, rate=self._rate)

    def observe(
        self,
        loss: float,
        norm: float,
        update_norm: float | None,
        committed: bool,
        step: int | None = None,
    ) -> None:
        """A step is over. update_norm: of the whole update, None if unknown.  step: its number, one more than
        the last if not given."""
        self.step = self.step + 1 if step is None else step
        unclipped = math.nan if update_norm is None else update_norm / self._rate
        self._rate = 1.0
        seen = dict(zip(WATCHED, (loss, norm, unclipped), strict=True))
        out = {name: found for name, value in seen.items() if (found := self._level(name, value))}
        self.warnings = [
            self._limits[name].finding(self.step, RUN, self.history[name].sigmas(seen[name]), limit, level)
            for name, (level, limit) in out.items()
            if self._tell(name, level)
        ]
        if not committed:
            return
        if self.recovery is not None:
            verdict = self.recovery.observe(self.step, loss, spike="loss" in out and out["loss"][0] == "act")
            self.rollback = self.rollback or verdict
        if self.zclip is not None:
            self.zclip.observe(norm)
        if self.adagc is not None:
            self.adagc.observe()
        for name, history in self.history.items():
            history.add(min(seen[name], history.limit(self.config.act)) if self._ready(name) else seen[name])

    @property
    def early_warning(self) -> bool:
        """Whether the last step is worth a checkpoint: such updates come before spikes of the loss."""
        return any(TABLE[f.indicator].early and f.level == "act" for f in self.warnings)

    def _ready(self, name: str) -> bool:
        return self.history[name].count >= self.config.minimum

    def _level(self, name: str, value: float) -> tuple[Level, float] | None:
        """How far out a value is, and the limit it crossed, in deviations; None for one that is not."""
        return self._limits[name].judge(self.history[name].sigmas(value)) if self._ready(name) else None

    def _tell(self, name: str, level: Level) -> bool:
        """Whether to tell of it: nothing like it has been told within the last window."""
        step, told = self._told.get(name, (-math.inf, "note"))
        if self.step - step <= self.config.window and (told == level or told == "act"):
            return False
        self._told[name] = self.step, level
        return True

    # ------------------------------------------------------------ saving

    def state(self) -> dict[str, Any]:
        """All that it remembers: JSON, and finite."""
        parts = {"zclip": self.zclip, "adagc": self.adagc, "recovery": self.recovery}
        return {
            "step": self.step,
            "history": {name: history.state() for name, history in self.history.items()},
            "told": {name: list(told) for name, told in self._told.items()},
            **{name: part.state() for name, part in parts.items() if part is not None},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` was. An intervention that was not on then starts afresh."""
        self.rearm()
        self.step, self.warnings = state["step"], []
        for name, own in state["history"].items():
            self.history[name].load(own)
        self._told = {name: (step, level) for name, (step, level) in state["told"].items()}
        for name, part in (("zclip", self.zclip), ("adagc", self.adagc), ("recovery", self.recovery)):
            if part is not None and name in state:
                part.load(state[name])


class Recovery:
    """Whether the loss comes back down after a spike: a moving average, `patience` steps later, against the
    one before. Its weight of the spike itself has fallen to 2% by then."""

    def __init__(self, config: RollbackConfig) -> None:
        self.config = config
        self.rearm()

    def rearm(self) -> None:
        self.average = History(size=round(self.config.patience / 2))
        self.spike: int | None = None
        self.before = 0.0
        self.left = 0

    def observe(self, step: int, loss: float, *, spike: bool) -> Rollback | None:
        """Take in a committed step's loss; the verdict, if the time for it has come and it is bad."""
        if spike and self.spike is None:
            self.spike, self.before, self.left = step, self.average.mean, self.config.patience
        self.average.add(loss)
        if self.spike is None:
            return None
        self.left -= 1
        if self.left > 0:
            return None
        spike_at, self.spike = self.spike, None
        healed = self.average.mean <= self.before + self.config.margin
        return None if healed else Rollback(spike_at, self.before, self.average.mean)

    def state(self) -> dict[str, Any]:
        own = {"spike": self.spike, "before": self.before, "left": self.left}
        return {**own, "average": self.average.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.spike, self.before, self.left = state["spike"], state["before"], state["left"]
        self.average.load(state["average"])


class RollBack(Exception):
    """Go back to before this step, and do not read the data up to this position again."""

    def __init__(self, position: int, spike: int) -> None:
        super().__init__()
        self.position, self.spike = position, spike
