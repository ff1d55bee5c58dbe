"""The health of a run: its indicators, measured every few steps from what the optimizer knows anyway."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from steepest.codecs import stored_name
from steepest.contract import Live, Rule, SteepestError, expand
from steepest.optimizer import Optimizer
from steepest.rules import find_rule
from steepest.training.history import History, norms
from steepest.training.indicators import INDICATORS, RUN, TABLE, Finding, Indicator, Level

__all__ = ["RUN", "TABLE", "Finding", "Health", "Level", "NoiseScale", "square_norm"]

WINDOW, MINIMUM = 128, 32
"""Looks of history of an update's size, and how many are needed before it is judged."""
SETTLE = 100
"""Steps of a stage before the size of its updates is judged: what starts from zero grows fast at first."""
RATES = 1000
"""Steps that the clip and skip rates are over."""
FLOOR = 0.05
"""The least deviation of an update's size to count with, as a share of its mean."""
RARELY = 10
"""Second moments are read in every tenth look: they are as large as the model."""
MEDIAN = 5
"""Readings of the second moments that a median is of."""

Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class Layer:
    """A trainable tensor under its group's settings.

    inertia: κ, by how much updates that repeat themselves outweigh independent ones.
    second:  the sum of its second moment is this tensor's, over the second number: None without a plain one.
    """

    group: str
    elements: int
    matrix: bool
    rate: float
    decay: float
    inertia: float
    second: tuple[Tensor, float] | None


@dataclass(slots=True)
class Course:
    """What a group's learning rate has done so far in the stage.

    lives: half-lives of ‖θ‖² under its weight decay that have passed after `done` steps.
    steady: whether the rate is past its rise, and not low.
    """

    rate: float = 0.0
    peak: float = 0.0
    lives: float = 0.0
    done: int = 0
    steady: bool = False

    def follow(self, rate: float, decay: float, done: int) -> None:
        self.steady = rate <= self.rate and 2 * rate >= self.peak
        self.rate, self.peak = rate, max(rate, self.peak)
        self.lives += 2 * rate * decay * (done - self.done) / math.log(2)
        self.done = done


class Health:
    """Looks at a stage every `every` steps. One object a stage; `state` goes into the checkpoint.

    noise: feed it where gradients are accumulated, see `NoiseScale`.
    early_warning: whether this step's look has told of something that comes before trouble with the loss: a
    checkpoint is worth its time.
    """

    def __init__(self, every: int = 10) -> None:
        self.every, self.noise, self.early_warning = every, NoiseScale(), False
        self._looks = 0
        self._outcomes: deque[str] = deque(maxlen=RATES)
        self._sizes: dict[str, History] = {}
        self._ratios: dict[str, list[float]] = {}
        self._courses: dict[str, Course] = {}
        self._out: dict[str, dict[str, list[int]]] = {}
        self._entropy: float | None = None

    def due(self, step: int) -> bool:
        """Whether to look after this step."""
        return self.every > 0 and step % self.every == 0

    def count(self, *, committed: bool, clipped: bool | None) -> None:
        """Call it after every step, before the look. clipped: None where there is no clipping."""
        self.early_warning = False
        self._outcomes.append("s" if not committed else "-" if clipped is None else "c" if clipped else ".")

    def look(
        self,
        step: int,
        optimizer: Optimizer,
        done: int,
        of: int,
        facts: Mapping[str, float] | None = None,
        batch: float | None = None,
    ) -> tuple[list[Finding], dict[str, Values]]:
        """What is out of its range, and the indicators of every tensor that moved, by its name.

        step: as findings state it.  done, of: the stage's steps, so far and in all.  facts: the objective's.
        batch: its size, in the unit that `noise` was fed with.
        The optimizer must have been built with `telemetry=True`, from named parameters.
        """
        self._looks += 1
        layers = dict(_layers(optimizer))
        for layer in {layer.group: layer for layer in layers.values()}.values():
            self._courses.setdefault(layer.group, Course()).follow(layer.rate, layer.decay, done)
        values = self._measure(optimizer, layers)
        judged = {RUN: self._of_run(facts or {}, batch), **self._equilibrium(layers, of)}
        judged |= {name: self._of_tensor(name, own, layers[name], done) for name, own in values.items()}
        found = list(self._find(step, judged))
        self.early_warning = any(TABLE[finding.indicator].early for finding in found)
        return found, values

    # ------------------------------------------------------------ measuring

    def _measure(self, optimizer: Optimizer, layers: Mapping[str, Layer]) -> dict[str, Values]:
        """The indicators of every tensor; none after a step that moved none."""
        if optimizer.last_verdict is None or not optimizer.last_verdict.commit:
            return {}
        moved = optimizer.telemetry()
        values = {
            name: measure(moved[name], layer) if name in moved else {"dead": 1.0}
            for name, layer in layers.items()
        }
        if self._looks % RARELY == 0:
            for name, ratio in _staleness(optimizer, moved, layers).items():
                values[name] |= {"staleness": math.sqrt(ratio), "faded": self._median(name, ratio)}
        return values

    def _median(self, name: str, ratio: float) -> float:
        """Of the last readings; NaN before there are enough."""
        last = self._ratios.setdefault(name, [])
        if math.isfinite(ratio):
            last[:] = [*last, ratio][-MEDIAN:]
        return statistics.median(last) if len(last) == MEDIAN else math.nan

    def _of_run(self, facts: Mapping[str, float], batch: float | None) -> Values:
        """The indicators of the whole run that can be judged."""
        out = {
            name: float(facts[name]) for name in ("clip_fraction", "zero_variance_groups") if name in facts
        }
        if "entropy" in facts and math.isfinite(entropy := float(facts["entropy"])):
            if self._entropy is None and entropy > 0:
                self._entropy = entropy
            if self._entropy is not None:
                out["entropy"] = entropy / self._entropy
        if batch and self.noise.ready:
            out["noise_scale"] = self.noise.value / batch
        count = {kind: self._outcomes.count(kind) for kind in "s-c."}
        out["skip_rate"] = count["s"] / RATES  # steps that were not taken yet count as taken
        if len(self._outcomes) == RATES and not count["-"]:
            out["clip_rate"] = count["c"] / RATES
        return out

    def _equilibrium(self, layers: Mapping[str, Layer], of: int) -> dict[str, Values]:
        """How long weight decay takes in a group, against the stage."""
        speeds = {layer.group: 2 * layer.rate * layer.decay for layer in layers.values()}
        return {
            group: {"equilibrium": 1 / speed / max(of, 1)}
            for group, speed in speeds.items()
            if speed > 0 and self._courses[group].steady
        }

    def _of_tensor(self, name: str, values: Values, layer: Layer, done: int) -> Values:
        """What of a tensor's values can be judged now; the size of its update in deviations."""
        course, out = self._courses[layer.group], dict(values)
        if "update_rms" in out:
            sizes = self._sizes.setdefault(name, History(FLOOR, size=WINDOW))
            size, old = out.pop("update_rms"), sizes.count >= MINIMUM
            if old:
                out["update_rms"] = sizes.sigmas(size)
            sizes.add(min(size, sizes.limit(TABLE["update_rms"].act[1])) if old else size)
        if "update_ratio" in out:
            low = out["update_ratio"] < TABLE["update_ratio"].warn[0]
            if not layer.matrix or done < SETTLE or (low and not course.steady):
                del out["update_ratio"]
        if course.lives < 2:
            out.pop("balance", None)
        return out

    # ------------------------------------------------------------ judging

    def _find(self, step: int, judged: Mapping[str, Values]) -> Iterator[Finding]:
        """What is out and is news: one finding for each indicator and level, about the worst place."""
        for indicator in INDICATORS:
            news: dict[Level, list[tuple[float, str, float, float]]] = {}
            for where, value in (
                (w, own[indicator.name]) for w, own in judged.items() if indicator.name in own
            ):
                found = indicator.judge(value)
                if self._is_news(indicator, where, found) and found is not None:
                    level, limit = found
                    news.setdefault(level, []).append((abs(value - limit), where, value, limit))
            for level, places in news.items():
                _, where, value, limit = max(places)
                more = f" and {len(places) - 1} more" if len(places) > 1 else ""
                yield indicator.finding(step, where + more, value, limit, level)

    def _is_news(self, indicator: Indicator, where: str, found: tuple[Level, float] | None) -> bool:
        """Keep count of the looks at which a value is out: the first is told of, then the second, the fourth,
        the eighth, ..., once it has been out long enough."""
        places = self._out.setdefault(indicator.name, {})
        row, told = places.get(where, (0, 0))
        if found is None:
            if row:
                places[where] = [0, told]
            return False
        counts = found[0] == "act" or row + 1 >= indicator.patience
        told += counts
        places[where] = [row + 1, told]
        return counts and told & (told - 1) == 0

    # ------------------------------------------------------------ saving

    def state(self) -> dict[str, Any]:
        """All that it remembers: JSON, and finite."""
        return {
            "looks": self._looks,
            "outcomes": "".join(self._outcomes),
            "sizes": {name: history.state() for name, history in self._sizes.items()},
            "ratios": self._ratios,
            "courses": {group: asdict(course) for group, course in self._courses.items()},
            "out": self._out,
            "entropy": self._entropy,
            "noise": self.noise.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` was."""
        self._looks, self._entropy = state["looks"], state["entropy"]
        self._outcomes = deque(state["outcomes"], maxlen=RATES)
        self._sizes = {}
        for name, own in state["sizes"].items():
            self._sizes[name] = History(FLOOR, size=WINDOW)
            self._sizes[name].load(own)
        self._ratios = {name: list(last) for name, last in state["ratios"].items()}
        self._courses = {group: Course(**own) for group, own in state["courses"].items()}
        self._out = {
            name: {where: list(own) for where, own in out.items()} for name, out in state["out"].items()
        }
        self.noise.load(state["noise"])


def measure(row: Mapping[str, float], layer: Layer) -> Values:
    """A tensor's indicators from the telemetry of its last update, without those that would divide by 0."""
    gradient, update, size = (row[key] for key in ("grad_norm", "update_norm", "param_norm"))
    out = {"dead": float(gradient == 0), "lost": row["lost"] / max(layer.elements, 1)}
    if layer.rate > 0 and layer.elements:
        out["update_rms"] = update / (layer.rate * math.sqrt(layer.elements))
    if size > 0:
        out["update_ratio"] = update / size
    if layer.decay > 0 and update > 0:
        pull = layer.rate * layer.decay * size
        out["decay_share"] = pull / update
        out["balance"] = 2 * (pull / update) * (size / (layer.inertia * update))
    return out


def _layers(optimizer: Optimizer) -> Iterator[tuple[str, Layer]]:
    """The trainable tensors, by name."""
    for g, group in enumerate(optimizer.param_groups):
        if "param_names" not in group:
            raise SteepestError("health goes by name: build the optimizer from model.named_parameters().")
        rule = find_rule(group["rule"])
        h = expand({name: group[name] for name in rule.hyper}, 1)
        decay = h.weight_decay if rule.decay == "decoupled" else 0.0
        keeps = [getattr(h, s.average) or 0.0 for s in rule.slots.values() if s.average and s.of != "square"]
        keep = keeps[0] if keeps else 0.0
        inertia = (1 + keep) / (1 - keep)
        for name, p in zip(group["param_names"], group["params"], strict=True):
            if p.requires_grad:
                state = optimizer.state.get(p, {})
                second = next(_second_moments(rule, h, state, p), None)
                yield name, Layer(f"group {g}", p.numel(), p.ndim > 1, h.lr, decay, inertia, second)


def _second_moments(
    rule: Rule, h: Live, state: Mapping[str, Any], p: Tensor
) -> Iterator[tuple[Tensor, float]]:
    """Averages of squared gradients that are stored as plain numbers, with the share of them that the zero
    they started from has not."""
    for name, slot in rule.slots.items():
        stored = state.get(name)
        if slot.of != "square" or not slot.average or not isinstance(stored, Tensor):
            continue
        if stored.is_floating_point() and stored_name(name, "scale") not in state:
            yield stored, 1 - getattr(h, slot.average) ** state["step"]


def _staleness(
    optimizer: Optimizer, moved: Mapping[str, Mapping[str, float]], layers: Mapping[str, Layer]
) -> Values:
    """‖g‖² over the second moment's sum, for every tensor that has one."""
    there = [layer.second for layer in layers.values() if layer.second is not None]
    sums = iter(norms([v for v, _ in there], 1) if there else ())
    rows = [next(sums) / layer.second[1] if layer.second is not None else 0.0 for layer in layers.values()]
    totals = torch.tensor(rows, dtype=torch.float64)[:, None]
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    optimizer.placement.add_rows(totals, trained)  # of a tensor that is cut, or another rank's, too
    return {
        name: moved[name]["grad_norm"] * moved[name]["grad_norm"] / total
        for name, total in zip(layers, totals.flatten().tolist(), strict=True)
        if name in moved and total > 0
    }


def square_norm(grads: Sequence[Tensor], weight: float = 1.0) -> float:
    """‖g‖² of gradients that are sums over `weight`: what `NoiseScale` is fed with."""
    return sum(norm * norm for norm in norms(grads)) / weight**2


class NoiseScale:
    """How large a batch its own gradient asks for: tr Σ / |G|², in the unit batches are counted in
    (arXiv:1812.06162, appendix A).

    It needs the squared gradient norm at two batch sizes: that of a step, and that of its first micro-batch,
    whose gradient stands alone before the second is added. Both parts are averaged apart, for each alone is
    noisy and may be negative.
    """

    def __init__(self, keep: float = 0.99) -> None:
        self.keep, self.count, self.signal, self.noise = keep, 0, 0.0, 0.0

    def add(self, small_square: float, big_square: float, small: float, big: float) -> None:
        """|g|² of a mean gradient over `small`, and of one over `big`, which holds it."""
        if not (0 < small < big and math.isfinite(small_square) and math.isfinite(big_square)):
            return
        signal = (big * big_square - small * small_square) / (big - small)
        noise = (small_square - big_square) / (1 / small - 1 / big)
        if not (math.isfinite(signal) and math.isfinite(noise)):
            return
        self.count += 1
        self.signal += (1 - self.keep) * (signal - self.signal)
        self.noise += (1 - self.keep) * (noise - self.noise)

    @property
    def ready(self) -> bool:
        """Whether there are enough readings, and a gradient to be seen in them."""
        return self.count >= MINIMUM and self.signal > 0

    @property
    def value(self) -> float:
        return self.noise / self.signal

    def state(self) -> list[float]:
        return [self.count, self.signal, self.noise]

    def load(self, state: Sequence[float]) -> None:
        self.count, self.signal, self.noise = int(state[0]), state[1], state[2]
