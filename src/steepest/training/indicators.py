"""The indicators of a run's health: what each is, where it is healthy, what it means and what to do.

Sources: arXiv:2304.13013 (staleness, updates before spikes), arXiv:2506.04805 (second moments that decay),
arXiv:2305.17212 (balance, equilibrium), arXiv:1812.06162 (noise scale). docs/health.md explains them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Level = Literal["note", "warn", "act"]
Range = tuple[float, float]

ANY: Range = (-math.inf, math.inf)
RUN = "the run"
"""Where an indicator of the whole run is found."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An indicator outside its healthy range.

    where: a tensor's name (and how many more there are), a group, or the run.  limit: what `value` crossed.
    level: "note" (worth knowing), "warn" (look at it), "act" (the run is in danger).
    """

    step: int
    indicator: str
    where: str
    value: float
    limit: float
    level: Level
    means: str
    do: str


@dataclass(frozen=True, slots=True)
class Advice:
    """What it means that an indicator is out, and what to do."""

    means: str
    do: str


@dataclass(frozen=True, slots=True)
class Indicator:
    """A number with a healthy range.

    formula: in words and symbols: θ parameter, Δθ its last update, g its gradient, η learning rate, λ weight
             decay, n elements, β1 and β2 the decays of the averages.
    warn, act: the ranges outside of which there is a finding of level `level`, and of level "act".
    spread:  whether the ranges count standard deviations above the value's own history.
    patience: looks in a row that a value must be out for a finding below "act".
    early:   whether it comes before trouble with the loss: a checkpoint is worth its time.
    """

    name: str
    formula: str
    above: Advice | None
    below: Advice | None = None
    warn: Range = ANY
    act: Range = ANY
    spread: bool = False
    level: Level = "warn"
    patience: int = 1
    early: bool = False

    def judge(self, value: float) -> tuple[Level, float] | None:
        """The level of a value that is out, and the limit it crossed; None also where it is not finite."""
        if math.isfinite(value):
            for level, (low, high) in (("act", self.act), (self.level, self.warn)):
                if not low <= value <= high:
                    return level, high if value > high else low  # type: ignore[return-value]
        return None

    def finding(self, step: int, where: str, value: float, limit: float, level: Level) -> Finding:
        """What is said of a value that crossed a limit."""
        advice = (self.above if value > limit else self.below) or Advice("", "")
        return Finding(step, self.name, where, value, limit, level, advice.means, advice.do)


def upto(high: float) -> Range:
    return -math.inf, high


INDICATORS = (
    Indicator(
        "loss_spike",
        "the loss, against its own last 128 steps",
        Advice(
            "the loss jumped: an odd batch, or a step that was too large shortly before",
            "look at this step's batch and the update norm before it; guard: {skip: true} vetoes such steps",
        ),
        warn=upto(3.0),
        act=upto(6.0),
        spread=True,
    ),
    Indicator(
        "grad_norm_spike",
        "‖g‖ of the whole model, against its own last 128 steps",
        Advice(
            "the gradients jumped: an odd batch, or the loss has become steep",
            "look at this step's batch; if it comes back, clip lower, or guard: {zclip: true}",
        ),
        warn=upto(3.0),
        act=upto(6.0),
        spread=True,
    ),
    Indicator(
        "update_norm_spike",
        "‖Δθ‖ of the whole model, against its own last 128 steps",
        Advice(
            "the optimizer took a far larger step than before; a spike of the loss often follows",
            "lower the peak learning rate or beta2, warm up longer, or guard: {update_clip: true}",
        ),
        early=True,
        warn=upto(3.0),
        act=upto(6.0),
        spread=True,
    ),
    Indicator(
        "update_rms",
        "‖Δθ‖ / (η √n), against its own last 128 looks",
        Advice(
            "this tensor's updates are far larger than they were, at the same learning rate",
            "lower beta2 or raise eps for its group; guard: {update_clip: true} bounds the whole update",
        ),
        patience=2,
        early=True,
        warn=upto(3.0),
        act=upto(6.0),
        spread=True,
    ),
    Indicator(
        "update_ratio",
        "‖Δθ‖ / ‖θ‖, of matrices",
        Advice(
            "a step changes these weights by more than a hundredth of their size: their rate is too high",
            "lower the learning rate of their group, or warm up longer",
        ),
        Advice(
            "a step hardly changes these weights: they are all but frozen",
            "raise the learning rate of their group, if they are meant to be trained",
        ),
        warn=(1e-5, 1e-2),
        act=upto(0.1),
        patience=3,
    ),
    Indicator(
        "decay_share",
        "η λ ‖θ‖ / ‖Δθ‖",
        Advice(
            "most of the update is weight decay: the weights shrink, and the gradient says little",
            "lower weight_decay for this group",
        ),
        warn=upto(0.5),
        act=upto(0.9),
        patience=3,
    ),
    Indicator(
        "balance",
        "2 λ η ‖θ‖² / (κ ‖Δθ‖²), κ = (1 + β1) / (1 - β1), after two half-lives of ‖θ‖²",
        Advice(
            "weight decay outweighs the updates: the weights still shrink, and their effective rate rises",
            "lower weight_decay or raise the learning rate",
        ),
        Advice(
            "the updates outweigh weight decay: the weights still grow, and their effective rate falls",
            "raise weight_decay or lower the learning rate",
        ),
        warn=(0.5, 2.0),
        patience=3,
    ),
    Indicator(
        "equilibrium",
        "1 / (2 η λ) steps, over the steps of the stage",
        Advice(
            "weight decay needs far longer than this stage to balance the updates; it does next to nothing",
            "raise weight_decay if it is meant to matter; otherwise leave it",
        ),
        warn=upto(10.0),
        level="note",
    ),
    Indicator(
        "lost",
        "elements whose update was lost to rounding, over n",
        Advice(
            "updates are smaller than the weights' own resolution: training stalls without a sign of it",
            "store the weights so that they can take them: optimizer: {param: split24}, or precision: bf16",
        ),
        warn=upto(0.2),
        act=upto(0.5),
        patience=2,
    ),
    Indicator(
        "dead",
        "1 where a trainable tensor has no gradient, or only zeros",
        Advice(
            "the loss does not depend on this tensor: it is disconnected, masked, or behind a dead unit",
            "freeze it if that is meant; otherwise look at how the model uses it",
        ),
        warn=upto(0.5),
        patience=3,
    ),
    Indicator(
        "staleness",
        "‖g‖ / √(Σ v / (1 - β2^t))",
        Advice(
            "the gradient is far larger than the second moment knows: the next updates are too large",
            "lower beta2 (0.95), clip lower, or warm up longer",
        ),
        warn=upto(2.3),
        act=upto(5.0),
        early=True,
    ),
    Indicator(
        "faded",
        "median over the last looks of ‖g‖² / (Σ v / (1 - β2^t))",
        None,
        Advice(
            "the gradient has been far smaller than the second moment for long; that decays, and a later "
            "gradient of the usual size will be a spike",
            "lower beta2 or raise eps for this group",
        ),
        warn=(0.1, math.inf),
        early=True,
    ),
    Indicator(
        "noise_scale",
        "gradient noise scale (tr Σ / |G|²) over the batch, in the batch's unit",
        Advice(
            "the gradient is mostly noise: a larger batch, or more accumulation, would make each step better",
            "raise batch or accumulate, if tokens are plenty and steps are what is dear",
        ),
        Advice(
            "the batch is larger than its gradient's noise asks for: tokens are spent for little",
            "lower batch or accumulate and take more steps",
        ),
        warn=(0.5, 10.0),
        level="note",
    ),
    Indicator(
        "clip_rate",
        "steps whose gradient was clipped, over the last 1000",
        Advice(
            "so many steps are clipped that the threshold sets the step's length, not the gradient",
            "raise clip, to the 90th percentile of the gradient norms or above",
        ),
        Advice(
            "clipping never happens: its threshold protects from nothing",
            "lower clip towards the largest ordinary gradient norm",
        ),
        warn=(0.001, 0.3),
        level="note",
    ),
    Indicator(
        "skip_rate",
        "steps that were vetoed, over the last 1000",
        Advice(
            "vetoes are no accident any more: they hide a fault, or the guard is set too tight",
            "stop and read the reasons in journal.jsonl; go back to a generation from before the first veto",
        ),
        warn=upto(0.002),
        act=upto(0.01),
    ),
    Indicator(
        "clip_fraction",
        "tokens whose probability ratio was clipped, over all (policy gradient)",
        Advice(
            "the policy moves further between two rounds of answers than the objective allows",
            "lower the learning rate or rollout: {updates: ...}; controller: {rate: {}} does so by itself",
        ),
        warn=upto(0.3),
        act=upto(0.6),
        patience=2,
    ),
    Indicator(
        "entropy",
        "the policy's entropy over that at the start of the stage",
        None,
        Advice(
            "the policy is all but certain: its answers no longer differ, so nothing is left to learn",
            "raise objective: {entropy_coef: ...} or rollout: {temperature: ...}, or lower the learning rate",
        ),
        warn=(0.2, math.inf),
        act=(0.05, math.inf),
        patience=2,
    ),
    Indicator(
        "zero_variance_groups",
        "groups whose answers all got the same reward, over all",
        Advice(
            "most groups say nothing: their prompts are too easy or too hard for the policy",
            "mix prompts of other difficulty, or raise rollout: {group: ...}",
        ),
        warn=upto(0.7),
        act=upto(0.95),
        patience=3,
    ),
)

TABLE = {indicator.name: indicator for indicator in INDICATORS}
