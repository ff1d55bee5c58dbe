"""A run from its first stage to its last, in a folder: saved, continued, stopped, rolled back."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steepest.contract import SteepestError
from steepest.training import saved_run
from steepest.training.archive import Archive
from steepest.training.built import Built
from steepest.training.checkpoint import Loaded, Payload
from steepest.training.config import RunConfig, save_config
from steepest.training.curve import Diverged, Progress
from steepest.training.fleet import Fleet
from steepest.training.guard import RollBack
from steepest.training.indicators import Finding
from steepest.training.journal import Journal, Unwritten
from steepest.training.learner import Learner, Update
from steepest.training.loop import Stage, train
from steepest.training.metrics import measured
from steepest.training.parts import parts
from steepest.training.result import StageResult
from steepest.training.signals import Stop
from steepest.training.stages import Builder
from steepest.training.world import ALONE, Lost, World

ROLLBACKS = 3
"""Rollbacks of one run before it is given up: more would change what it is trained on without saying so."""


class Session:
    """A run that may be killed at any moment and continued: what a generation holds is everything.

    folder: where it lives; the caller holds its lock.  watch: told of every step.  tell: told in words of
    what happens beside training (borders, vetoes, generations, findings).
    world: the ranks of the run. Each has a session of its own and all do the same, but rank 0 alone writes
    the diaries, is told, and reads the clock.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        cache: Path | None = None,
        watch: Callable[[Progress], None] | None = None,
        tell: Callable[[str], None] = lambda words: None,
        notice: Callable[[Finding], None] = lambda finding: None,
        log: Callable[[int, Mapping[str, Any]], None] = lambda step, values: None,
        stop: Stop | None = None,
        world: World = ALONE,
    ) -> None:
        self.config, self.folder, self.plan = config, folder, config.plan()
        self.world, self.fleet = world, Fleet(world)
        self.builder = Builder(config, cache, world)
        rolls = any(stage.guard.get("rollback") for stage in self.plan)
        # The newest generation may hold what makes the next loss a spike; the one before it does not.
        keep = max(config.checkpoint.keep, 2) if rolls else config.checkpoint.keep
        self.journal = Journal(folder) if world.first else Unwritten(folder)
        self.watch, self.tell, self.notice, self.log = watch, tell, notice, log
        if not world.first:
            self.watch, self.tell, self.notice, self.log = None, _unheard, _unheard, _unheard
        self.archive = Archive(config, folder, keep, world, self.tell)
        self.stop = stop or Stop()
        self.results: list[StageResult] = []
        self.skip: dict[str, list[int]] = {}
        self.rollbacks = 0
        self.vetoed: dict[str, list[int]] = {}
        self.index = 0
        self.attempt = 0
        self._ending = ""
        self.built: Built | None = None
        self._saved_at, self._saved_step, self._warned = time.monotonic(), 0, False

    # ------------------------------------------------------------ from the first stage to the last

    def run(self) -> list[StageResult]:
        """Train all stages that are not done. Raises `Stopped` after a signal, with everything saved."""
        try:
            self._begin()
            self._train()
        except Exception as error:
            self.world.farewell(str(error) or type(error).__name__)
            raise
        self._close()
        return self.results

    def _train(self) -> None:
        try:
            with self.world.within("training"):
                while self.index < len(self.plan):
                    try:
                        self._train_stage()
                    except RollBack as asked:
                        self._roll_back(asked)
                    if self.results and self.results[-1].reason is not None:
                        break
        except SteepestError as error:
            self.journal.event("error", self.attempt, reason=str(error))
            self._close()
            raise

    def _begin(self) -> None:
        found = self.archive.find(lambda: self.archive.store.load(optional=True))
        here = {"process": os.getpid(), "ranks": self.world.size}
        if found is None:
            self._save_config()
            self.journal.trim(0)
            self.journal.event("start", 0, digest=saved_run.digest(self.config), **here)
            return
        found = saved_run.upgrade(found)
        for reason in found.skipped:
            self.tell(f"a damaged generation was passed over: {reason}")
            self.journal.event("damaged", found.step, reason=reason)
        if bad := saved_run.broken(found):
            raise SteepestError(
                f"{found.generation} holds numbers that are not finite in {', '.join(bad[:3])}; "
                "go back to an earlier generation (`steepest checkpoint verify` lists them)."
            )
        self.world.all(lambda: self.restore(found))
        self._save_config()
        self.journal.trim(self.attempt)
        self.journal.event("resume", self.attempt, generation=found.generation, **here)
        over = self.index == len(self.plan)
        self.tell("this run is finished" if over else f"continued from {found.generation}")

    def _train_stage(self) -> None:
        if self.built is None:
            self.built = self.builder.enter(self.index)
            self._border(self.built)
        built, stage, place = self.built, self.built.stage, self.built.stage.place
        place.attempt = self.attempt
        stage.learner.foresees = built.crossed and place.step == 0
        stage.learner.measures = built.health is not None and built.health.due(self.attempt + 1)
        stage.skip = frozenset(self.skip.get(built.source.key, ()))
        result = StageResult(stage.name, built.config.objective_name, built.source.unit, stage.curves)
        try:
            result.trained = train(stage, watch=self.watch, after=self._after, between=self._between)
        except Diverged as diverged:
            result.reason = str(diverged)
            self.world.farewell(result.reason)  # perhaps of this rank alone
            self.journal.event("diverged", self.attempt, reason=result.reason)
        result.steps, result.seconds, result.ended = place.step, place.seconds, place.ended
        self.results.append(result)
        if result.reason is None:
            self.builder.leave(built)
            self.index, self.built = self.index + 1, None
            if self.index == len(self.plan):
                self.save("end", keep=True, wait=True)

    def _border(self, built: Built) -> None:
        """A stage begins: what crossed the border is told, and a generation kept."""
        self.journal.event(
            "stage",
            self.attempt,
            name=built.stage.name,
            objective=built.config.objective_name,
            routing=built.optimizer.routing_digest(),
            unit=built.source.unit,
            carried=built.carried,
        )
        if self.index:
            self.tell(f"stage {built.stage.name}: {built.config.objective_name}")
        if built.words:
            self.tell(built.words.splitlines()[0])
        stops, _ = self._hears()
        saved = self.save("border", keep=self.index > 0, wait=stops)
        if stops:
            self._obey(saved)

    def _close(self) -> None:
        self.journal.close()
        self.archive.close()

    def words(self, result: StageResult) -> str:
        """What a stage came to, for people."""
        final, text = result.curves[1].loss[-1], self.builder.text(result.name)
        bits = f", {text.bits_per_byte(final):.4f} bits a byte" if text is not None else ""
        what = "validation loss" if result.unit.startswith("nats") else "validation"
        return f"{what} {final:.4f} {result.unit}{bits}"

    # ------------------------------------------------------------ after a step, between rounds

    def _after(self, stage: Stage, update: Update) -> None:
        assert self.built is not None
        built, optimizer, guard = self.built, stage.learner.optimizer, stage.learner.guard
        self.attempt = stage.place.attempt
        if stage.place.step == 1:  # a generation at the border does not wait for this to be measured
            self.journal.event("baseline", self.attempt, validation=stage.place.before)
        values, findings = measured(stage, update), list[Finding]()
        if guard is not None:
            guard.observe(update.loss, update.norm, values.get("update_norm"), update.committed, self.attempt)
            findings += guard.warnings
        if not update.committed:
            self.vetoed.setdefault(built.source.key, []).append(stage.place.position)
            self._tell_veto(update)
        if stage.learner.foreseen:
            self._tell_first_step(stage.learner)
        health = built.health
        if health is not None:
            health.count(committed=update.committed, clipped=values["clipped"])
            if health.due(self.attempt):
                if (small := stage.learner.small) is not None and update.committed:
                    health.noise.add(small[0], update.norm**2, small[1], update.weight)
                step, of = stage.place.step, stage.steps
                found, layers = health.look(
                    self.attempt, optimizer, step, of, update.facts, batch=update.weight
                )
                findings += [*found, *self.fleet.look(self.attempt, stage.learner)]
                values["layers"] = layers
            stage.learner.measures = health.due(self.attempt + 1)
        self._tell_findings(stage, findings)
        self._warned |= bool(guard and guard.early_warning) or bool(health and health.early_warning)
        self.journal.metrics(self.attempt, values)
        self.log(self.attempt, values)
        if words := built.control(update, findings):
            self.journal.event("control", self.attempt, what=words)
            self.tell(words)
        self.fleet.check()
        if guard is not None and guard.rollback is not None:
            raise RollBack(stage.place.position, guard.rollback.spike)

    def _tell_veto(self, update: Update) -> None:
        """A step was not taken; nothing has moved but the position in the data."""
        culprits = update.culprits
        shown = ", ".join(culprits[:3]) + (f" and {len(culprits) - 3} more" if len(culprits) > 3 else "")
        self.journal.event("veto", self.attempt, why=update.why, culprits=list(culprits))
        self.tell(f"step {self.attempt} was not taken: {update.why}{f' in {shown}' if shown else ''}")

    def _tell_first_step(self, learner: Learner) -> None:
        """The first step after a border that state has crossed: how far it was to move, and did."""
        foreseen, learner.foreseen = learner.foreseen, {}
        told = learner.optimizer.telemetry() if learner.optimizer.observes else {}
        moved = {name: told[name]["update_norm"] for name in foreseen if name in told}
        self.journal.event("first_step", self.attempt, foreseen=foreseen, moved=moved)
        sizes = f"{math.hypot(*foreseen.values()):.4g} foreseen"
        sizes += f", {math.hypot(*moved.values()):.4g} moved" if moved else ""
        self.tell(f"first step after the border, over {len(foreseen)} tensors: {sizes}")

    def _tell_findings(self, stage: Stage, findings: Sequence[Finding]) -> None:
        for finding in findings:
            told = {key: value for key, value in asdict(finding).items() if key != "step"}
            self.journal.event("finding", self.attempt, **told)
            self.notice(finding)
            if stage.until.warning == finding.indicator and finding.level == "act":
                self._ending = f"{finding.indicator} {finding.value:.3g}"

    def _between(self, stage: Stage) -> None:
        """Where nothing is half done: a warning may end the stage, a generation is written if it is time, and
        a signal is obeyed."""
        stage.place.ended, self._ending = stage.place.ended or self._ending, ""
        if stage.place.ended or stage.place.step >= stage.steps:
            return  # a stage that is over is saved where the next one begins
        asked, late = self._hears()
        if asked:
            self._obey(self.save("signal", wait=True))
        every = self.config.checkpoint.every
        due = every is not None and stage.place.step // every > self._saved_step // every
        if self._suspect(stage):
            return
        if self._warned or late or due or self._before_peak(stage):
            self.save("warning" if self._warned else "time")

    def _hears(self) -> tuple[bool, bool]:
        """Whether a signal has asked any rank for the end; whether it is time to save by rank 0's clock."""
        minutes = self.config.checkpoint.minutes
        late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        signal, due = self.world.most([self.stop.asked or 0, late and self.world.first])
        self.stop.asked = int(signal) or None
        return signal > 0, due > 0

    def _obey(self, saved: bool) -> None:
        """Leave, because a signal has asked for it."""
        if saved:
            self.tell(f"saved at step {self.attempt}; the same command goes on from here")
        self._close()
        self.stop.check()

    def _suspect(self, stage: Stage) -> bool:
        """Whether the guard waits to see if a spike heals: what it may go back to is not pushed out."""
        guard = stage.learner.guard
        recovery = guard.recovery if guard else None
        return recovery is not None and recovery.spike is not None

    def _before_peak(self, stage: Stage) -> bool:
        """A clean state from before the highest rate is worth having: spikes come there."""
        warmup = self.built.warmup if self.built else 0
        return warmup > 2 and self._saved_step < warmup - 1 <= stage.place.step < warmup

    # ------------------------------------------------------------ generations

    def save(self, why: str, *, keep: bool = False, wait: bool = False) -> bool:
        """Write a generation, and whether that went well; one that cannot be written is told of, and
        training goes on."""
        step = self.built.stage.place.step if self.built else 0
        self._saved_at, self._saved_step, self._warned = time.monotonic(), step, False
        try:
            self.archive.save(self._payload, self.attempt, keep=keep, wait=wait)
        except Lost:
            raise
        except SteepestError as error:
            self.journal.event("checkpoint_failed", self.attempt, reason=str(error))
            self.tell(f"no generation was written: {error}")
            return False
        self.journal.event("checkpoint", self.attempt, why=why)
        return True

    def _payload(self) -> Payload:
        curves = [result.curves for result in self.results]
        curves += [self.built.stage.curves] if self.built else []
        tensors = self.builder.tensors(self.built)
        tensors["curves"] = parts(saved_run.curve_tensors(curves), self.world)
        return Payload(tensors, self._facts())

    def _facts(self) -> dict[str, Any]:
        """All numbers of the run."""
        builder = self.builder.facts(self.built)
        return {
            "version": saved_run.VERSION,
            "config": self.config.model_dump(mode="json"),
            "digest": saved_run.digest(self.config),
            "index": self.index,
            "attempt": self.attempt,
            "skip": self.skip,
            "vetoed": self.vetoed,
            "ledger": self.ledger(),
            "rollbacks": self.rollbacks,
            "results": [result.facts() for result in self.results],
            "built": self.built.facts() if self.built else None,
            "builder": builder,
            "optimizer": builder["previous"] if self.built is None else None,
        }

    def ledger(self) -> dict[str, Any]:
        """What has been read of every source, in positions (a step's batch, or a round's prompts), as ranges
        [first, last]: trained on, passed over after a rollback, read in steps that were not taken."""
        read = dict(self.builder.positions)
        if self.built is not None:
            read[self.built.source.key] = self.built.stage.place.position
        return {
            key: saved_run.ledger_of(n, self.skip.get(key, ()), self.vetoed.get(key, ()))
            for key, n in read.items()
        }

    def restore(self, found: Loaded) -> None:
        """Become what a verified generation holds. Nothing is touched before everything is known to fit."""
        found = saved_run.renamed(found, self.config.rename)
        facts = found.facts
        for words in saved_run.changed(facts["config"], self.config, self.folder):
            self.journal.event("config", facts["attempt"], changed=words)
            self.tell(f"continued with another {words}")
        self.index, self.attempt = facts["index"], facts["attempt"]
        self.skip = {key: list(value) for key, value in facts["skip"].items()}
        self.vetoed = {key: list(value) for key, value in facts["vetoed"].items()}
        self.rollbacks = max(self.rollbacks, facts["rollbacks"])
        curves = saved_run.curves_of(found.tensors["curves"])
        pairs = zip(facts["results"], curves, strict=False)  # a stage that goes on has no result
        self.results = [StageResult(**record, curves=own) for record, own in pairs]
        self.built = self.builder.restore(self.index, found.tensors, facts["builder"], facts["built"])
        if self.built is not None:
            self.built.stage.curves = curves[-1]
        self._saved_step = self.built.stage.place.step if self.built else 0

    def _roll_back(self, asked: RollBack) -> None:
        """Back to the last good generation of this stage; what has been read since is not read again."""
        self.rollbacks += 1
        if self.rollbacks > ROLLBACKS:
            raise SteepestError(
                f"the run was rolled back {ROLLBACKS} times and spiked again; lower the learning rate, or "
                f"look at the data (`steepest doctor {self.folder}` says more)."
            )
        key = self.built.source.key if self.built else ""
        found = self.archive.find(lambda: saved_run.before(self.archive.store, self.index, asked.spike))
        assert found is not None
        found = saved_run.upgrade(found)
        self.restore(found)
        assert self.built is not None
        first = self.built.stage.place.position
        self.skip.setdefault(key, []).extend(range(first, asked.position + 1))
        self.journal.trim(self.attempt)
        self.journal.event(
            "rollback", self.attempt, generation=found.generation, skipped=[first, asked.position]
        )
        self.tell(f"rolled back to step {self.attempt}; batches {first} to {asked.position} are skipped")
        self.save("rollback")

    def _save_config(self) -> None:
        if self.world.first:
            save_config(self.config, self.folder)


def _unheard(*_: Any) -> None:
    """What ranks other than the first have to say beside training."""
