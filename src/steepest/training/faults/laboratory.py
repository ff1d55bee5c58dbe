"""Provokes the faults of the list one by one, in real processes, on a run of the user's own config."""

from __future__ import annotations

import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from steepest.contract import SteepestError
from steepest.training.config import RunConfig, parse_config
from steepest.training.faults import injections, oracles, tampering
from steepest.training.faults.bench import Bench, ready
from steepest.training.faults.crew import Crew
from steepest.training.faults.results import Result
from steepest.training.faults.terms import (
    STEPS,
    Above,
    Failed,
    Here,
    Inject,
    Oracle,
    Row,
    Run,
    Scenario,
    Staged,
    Together,
    Trial,
)
from steepest.training.faults.worker import End, Order

TIMEOUT = 12.0
"""Seconds that ranks of the laboratory wait for each other."""
WARM = (
    *(
        "llvmlite.binding",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
        "torch.nn.parallel.distributed",
    ),
    *("steepest.training.faults.rows", "steepest.training.faults.oracles"),
)
"""What every process needs, beside what building the model has imported."""
ROOMS = ("steepest", "transformers")


@dataclass(frozen=True)
class Seen:
    """What oracles look at: a scenario that was played.

    folder: of the run.  reference: of the undisturbed run; undisturbed: how its processes ended.
    starts: how those of each start have; ends: of the last.  before: digests of the files before it.
    sentences: in which each start has ended; empty for one that finished.
    """

    folder: Path
    reference: Path
    undisturbed: list[End]
    starts: list[list[End]]
    before: Mapping[str, str]
    sentences: list[str]
    ranks: int
    placement: str
    above: Above

    @property
    def ends(self) -> list[End]:
        return self.starts[-1]

    @property
    def sentence(self) -> str:
        return self.sentences[-1]


def small(config: RunConfig, ranks: int, placement: str) -> dict[str, Any]:
    """A config as the laboratory runs it: its first stage, a few steps, each of them saved; as plain values.

    The model, the data, the optimizer, precision and guards are the user's own.
    """
    first = config.plan()[0].model_dump(mode="json")
    own = config.model_dump(mode="json") | first
    own |= {"name": "", "steps": STEPS, "until": {}, "evals": 1, "stages": [], "sinks": [], "threads": 1}
    own |= {"checkpoint": {"every": 1, "minutes": None, "keep": 100, "background": False}}
    own |= {"health": {"every": 1}, "device": "cpu", "compile": False, "timeout": TIMEOUT}
    own |= {"placement": placement, "batch": max(first["batch"], ranks + 1)}
    own["validation_windows"] = min(first["validation_windows"], 2 * own["batch"])
    return parse_config(own, "the config").model_dump(mode="json")


def merged(config: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other values; of checkpoint and health only the keys that are given."""
    deep = ("checkpoint", "health")
    return {**config, **{k: {**config[k], **value} if k in deep else value for k, value in change.items()}}


@dataclass
class Laboratory:
    """Plays scenarios and has them judged.

    config: as `small` gives it.  out: a folder of its own.  also: put into every process beside the faults.
    """

    config: Mapping[str, Any]
    out: Path
    ranks: int = 2
    seed: int = 0
    above: Above = field(default_factory=Above)
    also: tuple[Inject, ...] = ()
    _seen: dict[Scenario, Seen | Failed] = field(default_factory=dict, init=False)
    _whole: dict[str, tuple[Path, list[End]]] = field(default_factory=dict, init=False)
    _bases: dict[Scenario, Path] = field(default_factory=dict, init=False)
    _kept: set[Path] = field(default_factory=set, init=False)
    _made: list[Path] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not 2 <= self.ranks <= 4:
            raise SteepestError(f"the laboratory has 2 to 4 processes, not {self.ranks}.")
        shutil.rmtree(self.out / "work", ignore_errors=True)
        Bench(self.config, self.out, self.seed).model()  # mistakes of the config come out here
        loaded = [name for name in sys.modules if name.partition(".")[0] in ROOMS]
        self.crew = Crew([*WARM, *loaded])
        self.trial(Here(ready))

    @property
    def placement(self) -> str:
        return str(self.config["placement"])

    def disarmed(self, *inject: Inject) -> Laboratory:
        """The same laboratory with more in every process but the undisturbed runs', which are shared."""
        folder = self.out / f"disarmed-{len([*self.out.glob('disarmed-*')])}"
        other = replace(self, out=folder, also=(*self.also, *inject))
        other._whole = self._whole
        return other

    # ------------------------------------------------------------ rows

    def rows(self, rows: Sequence[Row], begin: Callable[[Row], None] = lambda row: None) -> Iterator[Result]:
        """Provoke one row after the other. begin: told of each before."""
        for row in rows:
            begin(row)
            yield self.row(row)

    def row(self, row: Row) -> Result:
        """Provoke one fault in every way that the row knows."""
        start, words, first = time.monotonic(), list[str](), len(self._made)
        passed = True
        try:
            for trial in row.trials:
                words.append(self.trial(trial))
        except Failed as failed:
            passed, words = False, [str(failed)]
            played = [trial.scenario for trial in row.trials if isinstance(trial, Trial)]
            self._kept.update(self._made[first:], (self._bases[one] for one in played if one in self._bases))
        happened = "; ".join(dict.fromkeys(word for word in words if word))
        return Result(row.number, row.fault, row.must, passed, happened, time.monotonic() - start)

    def trial(self, trial: Trial | Here | Together | Staged) -> str:
        """What happened, in words; raises `Failed`."""
        if isinstance(trial, Staged):
            return trial.play(self)
        if isinstance(trial, Here | Together):
            return self._ask(trial)
        seen = self.see(trial.scenario)
        return "; ".join(words for oracle in trial.oracles if (words := self._judged(oracle, seen)))

    def _judged(self, oracle: Oracle, seen: Seen) -> str:
        try:
            return oracle(seen)
        except (KeyError, IndexError, StopIteration, SteepestError) as error:
            name = getattr(oracle, "__name__", type(oracle).__name__)
            raise Failed(f"what {name} looks for is not there ({type(error).__name__}: {error})") from error

    def _ask(self, question: Here | Together) -> str:
        ranks = self.ranks if isinstance(question, Together) else 1
        ends = self.crew.run(self.order(self.fresh("ask"), self.config, ranks=ranks, ask=question))
        bad = [
            f"rank {i}: {end.words}" if ranks > 1 else end.words
            for i, end in enumerate(ends)
            if end.kind != "done"
        ]
        if bad:
            raise Failed(bad[0])
        return ends[0].words

    # ------------------------------------------------------------ scenarios

    def see(self, scenario: Scenario) -> Seen:
        """Play a scenario, or remember how it went."""
        if scenario not in self._seen:
            try:
                self._seen[scenario] = self._play(scenario)
            except Failed as failed:
                self._seen[scenario] = failed
        seen = self._seen[scenario]
        if isinstance(seen, Failed):
            raise seen
        return seen

    def _play(self, scenario: Scenario) -> Seen:
        ranks = max(self.ranks, scenario.ranks)
        allowed = scenario.placements
        placement = self.placement if self.placement in (allowed or (self.placement,)) else allowed[0]
        config = merged(self.config, {**scenario.change, "placement": placement})
        noise = (Inject(injections.without_noise),) if scenario.still else ()
        reference, undisturbed = self.whole(config, ranks, noise)
        base = self._bases[scenario] = self.fresh("scenario")
        folder = base / "run"
        named = [getattr(tamper, "func", tamper).__name__ for tamper in scenario.tamper]
        draw = Random(f"{self.seed}/{named}")
        if scenario.cut is not None:
            tampering.cut(reference, folder, scenario.cut)
            for tamper in scenario.tamper:
                tamper(folder, draw)
        before: Mapping[str, str] = {}
        starts, sentences = list[list[End]](), list[str]()
        for i, run in enumerate(scenario.runs):
            before = oracles.files(folder)
            change = run.change(folder) if callable(run.change) else run.change
            own = merged(config, {"placement": run.placement or placement, **change})
            order = self.order(base, own, ranks=run.ranks or ranks, inject=(*noise, *run.inject), start=i)
            ends = self.crew.run(order, alone=run.alone)
            starts.append(ends)
            sentences.append(judge_end(run, ends))
        return Seen(folder, reference, undisturbed, starts, before, sentences, ranks, placement, self.above)

    def whole(
        self, config: Mapping[str, Any], ranks: int, noise: tuple[Inject, ...] = ()
    ) -> tuple[Path, list[End]]:
        """The undisturbed run of a config, which is made once: its folder, and how its processes ended."""
        key = repr((sorted(config.items()), ranks, noise))
        if key not in self._whole:
            base = self.fresh("undisturbed")
            # Without what is put into every process: this run is what the others are compared with.
            ends = self.crew.run(replace(self.order(base, config, ranks=ranks), inject=noise))
            judge_end(Run(), ends, "the undisturbed run: ")
            self._whole[key] = base / "run", ends
        return self._whole[key]

    def order(
        self,
        base: Path,
        config: Mapping[str, Any],
        *,
        ranks: int,
        inject: tuple[Inject, ...] = (),
        ask: Here | Together | None = None,
        start: int = 0,
    ) -> Order:
        """What processes are told to do in a folder of the laboratory."""
        notes = base / f"start-{start}"
        return Order(config, base / "run", notes, ranks, self.seed, (*self.also, *inject), ask, self.above)

    def close(self) -> None:
        """Delete what is left of rows that went well."""
        for folder in (self.out / "work").iterdir():
            if folder not in self._kept:
                shutil.rmtree(folder, ignore_errors=True)

    def fresh(self, kind: str) -> Path:
        """An empty folder."""
        folder = self.out / "work" / f"{len(self._made) + 1:03}-{kind}"
        folder.mkdir(parents=True)
        self._made.append(folder)
        return folder


def judge_end(run: Run, ends: Sequence[End], where: str = "") -> str:
    """The sentence in which a start has ended, empty if it finished; raises `Failed` if it did not end so."""
    fatal = [inject for inject in run.inject if inject.fatal]
    hit = {i for i in range(len(ends)) for inject in fatal if inject.hits(i, len(ends))}
    if run.either and all(end.kind == "done" for end in ends):
        return ""
    # Who had to be killed has nothing to say; who ended first has.
    for i, end in sorted(enumerate(ends), key=lambda one: one[1].kind == "gone"):
        if end.kind == "crash":
            raise Failed(f"{where}rank {i} broke off without a sentence: {end.words}")
        if end.code < 0 and end.code != -signal.SIGKILL and i not in hit:
            raise Failed(f"{where}rank {i} was ended by {signal.Signals(-end.code).name}, without a sentence")
        if run.ends is None and end.kind != "done":
            raise Failed(f"{where}rank {i} did not finish: {end.words}")
        if run.ends is not None and end.kind == "done":
            raise Failed(f"{where}rank {i} finished, as if nothing were wrong")
    if run.ends is None:
        return ""
    if run.alone and (lost := [i for i, end in enumerate(ends) if end.kind == "gone" and i not in hit]):
        raise Failed(f"{where}rank {lost[0]} did not end by itself after another one was gone")
    said = [end.words for end in ends if end.kind in ("error", "stopped")]
    wanted = run.ends.format(last=len(ends) - 1)
    fitting = [words for words in said if re.search(wanted, words, re.IGNORECASE | re.DOTALL)]
    if wanted and not fitting:
        raise Failed(f"{where}nobody says {wanted!r}, but: {' | '.join(said) or 'nothing'}")
    return next(iter(fitting), "")
