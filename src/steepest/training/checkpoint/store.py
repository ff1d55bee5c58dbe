"""The generations of one run: saved beside training, loaded only when everything has been verified."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor

from steepest.contract import SteepestError
from steepest.training.checkpoint.assemble import Part, nothing, read
from steepest.training.checkpoint.disk import Disk, leftovers, words
from steepest.training.checkpoint.manifest import Damaged, Manifest
from steepest.training.checkpoint.ranks import Ranks
from steepest.training.checkpoint.read import current, in_order, names_in, read_manifest
from steepest.training.checkpoint.stage import Payload, Staged, stage
from steepest.training.checkpoint.write import Save, Saved, write_generation


@dataclass(frozen=True)
class Loaded:
    """A verified generation. tensors: by group, on the CPU.

    skipped: "generation: why" of damaged ones that were passed over.  leftovers: what saves that did not end
    have left; the next save removes it.  nonfinite: "group/name" of tensors with NaN or infinite elements.
    """

    generation: str
    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]
    manifest: Manifest
    skipped: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()

    @property
    def nonfinite(self) -> tuple[str, ...]:
        return tuple(f"{group}/{name}" for group, name, fact in self.manifest.tensors() if fact.nonfinite)


@dataclass(frozen=True)
class Verified:
    """One generation, looked at. problem: None, or what is wrong with it. A manifest that cannot be read
    leaves no more than the name."""

    generation: str
    problem: str | None
    manifest: Manifest | None = None
    current: bool = False


class Handle:
    """A save that may still go on. told: whether somebody has heard of its failure."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.told = False
        self._future: Future[Saved] = Future()

    def done(self) -> bool:
        return self._future.done()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it is done, after at most `timeout` seconds; its failure stays unheard."""
        return bool(wait([self._future], timeout).done)

    def late(self, seconds: float) -> str:
        """The sentence for a save that has not ended in time."""
        return f"the checkpoint of step {self.step} is not written after {seconds:g} s: the storage hangs."

    def result(self, timeout: float | None = None) -> Saved:
        """What was saved, once it is. Raises SteepestError if it failed, or after `timeout` seconds."""
        if not self.wait(timeout):
            raise SteepestError(self.late(timeout or 0.0))
        self.told = True
        return self._future.result()

    def failure(self) -> str | None:
        """The sentence of a failure that nobody has heard of; asking does not wait, and counts as hearing."""
        if self.told or not self.done() or (error := self._future.exception()) is None:
            return None
        self.told = True
        return str(error)

    def run(self, write: Callable[[], Saved], newest: Callable[[], str | None]) -> None:
        """Write, and turn whatever goes wrong into one sentence; nothing is left to die in a thread."""
        stands = None
        try:
            stands = newest()
            saved = write()
        except Exception as error:
            self._fail(words(error), stands, error)
        except BaseException as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(saved)

    def _fail(self, why: str, stands: str | None, cause: BaseException) -> None:
        rest = f"; {stands} stands as it was." if stands else "."
        error = SteepestError(f"the checkpoint of step {self.step} was not saved: {why.rstrip('.')}{rest}")
        error.__cause__ = cause
        self._future.set_exception(error)


class Store:
    """The checkpoints of a run: `folder` holds generations, and CURRENT names the one to load.

    keep:     how many of the newest good ones remain, and those that are marked; at least 1.
    verify:   read every save back from the disk before it counts.
    patience: seconds to wait for a save that has not ended, before giving up with a sentence.
    disk:     the operations it is made of.
    ranks:    of several processes that save together, which one this is; None for one alone. Each makes a
              store of the same folder, and calls `save` as often as the others, for the same steps. A save
              fails for all of them if it fails for one, or if one is not heard of for `patience` seconds;
              rank 0 says why, so what the run does next is for rank 0 to decide.

    One run at a time: its own lock sees to that. Close it, or use it as a context, at the end, to
    hear of a failure of the last save; a process that ends without doing so still finishes that save.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 3,
        verify: bool = True,
        patience: float = 600.0,
        disk: Disk | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if keep < 1:
            raise SteepestError(f"keep={keep} would leave no checkpoint; give at least 1.")
        self.folder, self.keep, self.verify, self.patience = Path(folder), keep, verify, patience
        self.disk = disk or Disk()
        self.ranks = ranks if ranks is not None and ranks.world > 1 else None
        self._count = 0
        self._last: Handle | None = None
        self._parent: str | None = None

    def save(self, payload: Payload, *, step: int, keep: bool = False, wait: bool = False) -> Handle:
        """Copy the payload and write it beside training; with `wait`, return when it is on the disk.

        keep: never remove this one to make room. One save at a time: the next waits for the one before.
        Raises SteepestError, after which training may go on: for a payload that could not be read back (with
        other ranks, that is a save which fails for all), for
        a save before this one that failed unheard (this one is then written all the same), for a save
        before this one that hangs, and with `wait` for this one.
        """
        self._count += 1  # also where this rank fails before it writes: the next save is the same one for all
        self._settle()
        staged = self._stage(payload)
        handle = Handle(step)
        save_id = self.ranks.save_id(self._count, step) if self.ranks else uuid.uuid4().hex
        task = Save(self.disk, self.folder, step, save_id, self.verify, self.patience, self.ranks)

        def write() -> Saved:
            saved = write_generation(task, staged, keep=keep, retain=self.keep, parent=self._parent)
            self._parent = saved.generation
            return saved

        try:
            threading.Thread(target=handle.run, args=(write, self.newest), name="checkpoint").start()
        except RuntimeError as error:
            raise SteepestError(f"the checkpoint of step {step} was not saved: {error}.") from error
        earlier, self._last = self.failure(), handle
        try:
            if wait:
                handle.result(self._limit)
        except SteepestError as error:
            raise SteepestError(f"{earlier} {error}" if earlier else str(error)) from error
        if earlier:
            raise SteepestError(f"{earlier} That of step {step} is {'written' if wait else 'being written'}.")
        return handle

    def failure(self) -> str | None:
        """The sentence of a save that failed and that nobody has heard of yet; asking does not wait."""
        return self._last.failure() if self._last else None

    def close(self) -> None:
        """Wait for a save that has not ended; raises SteepestError if it failed unheard, or hangs."""
        self._settle()
        if (earlier := self.failure()) is not None:
            raise SteepestError(earlier)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stage(self, payload: Payload) -> Staged | Exception:
        """The copy of a payload; where a rank cannot make one, the others hear of it: the save fails."""
        try:
            return stage(payload)
        except Exception as error:
            if self.ranks is None:
                raise
            return error

    @property
    def _limit(self) -> float:
        """Seconds after which a save hangs. One that waits for other ranks in vain says so itself, before."""
        return self.patience if self.ranks is None else 4 * self.patience

    def late(self) -> bool:
        """Whether a save still goes on after `patience` seconds more."""
        return self._last is not None and not self._last.wait(self.patience)

    def _settle(self) -> None:
        """Wait until no save goes on; raises if it hangs, and leaves its failure to be heard of."""
        if self._last is not None and not self._last.wait(self._limit):
            raise SteepestError(self._last.late(self._limit))

    # ------------------------------------------------------------ reading

    def generations(self) -> list[str]:
        """Whatever has a generation's name here, damaged or not."""
        return names_in(self.folder)

    def leftovers(self) -> list[str]:
        """What saves that did not end have left here; the next save removes it."""
        return leftovers(self.folder)

    def newest(self) -> str | None:
        """The generation that would be loaded, as far as can be seen without reading tensors."""
        return next(iter(in_order(self.folder)[0]), None)

    @overload
    def load(
        self, generation: str | None = None, *, optional: Literal[False] = False, part: Part | None = None
    ) -> Loaded: ...
    @overload
    def load(
        self, generation: str | None = None, *, optional: bool, part: Part | None = None
    ) -> Loaded | None: ...
    def load(
        self, generation: str | None = None, *, optional: bool = False, part: Part | None = None
    ) -> Loaded | None:
        """The newest generation of which every byte is as it was saved, or one by its name.

        Damaged ones are passed over and said in `skipped`; one asked for by name is not replaced by another.
        optional: None where nothing was ever saved. A save that goes on is waited for.
        part: which slices of each tensor to keep in memory; everything is read and verified all the same. On
        however many ranks a generation was saved, it is loaded on any number: let rank 0 choose it, and the
        others load that one by its name.
        """
        self._settle()
        good, bad = in_order(self.folder)
        if generation is not None:
            good = {name: manifest for name, manifest in good.items() if name == generation}
            bad = {generation: bad.get(generation, "there is none of this name")} if not good else {}
        elif optional and not names_in(self.folder):
            return None
        for name, manifest in good.items():
            try:
                tensors = read(self.folder / name, manifest, part)
            except Damaged as damaged:
                bad[name] = str(damaged)
                continue
            self._parent = name
            skipped = tuple(f"{name}: {why}" for name, why in bad.items())
            rest = tuple(self.leftovers())
            return Loaded(name, manifest.step, tensors, manifest.facts, manifest, skipped, rest)
        listed = "; ".join(f"{name}: {why}" for name, why in bad.items())
        raise SteepestError(
            f"no checkpoint in {self.folder} can be used ({listed})."
            if listed
            else f"there is no checkpoint in {self.folder}."
        )

    def check(self) -> list[Verified]:
        """Read everything and say of each generation whether it is what was saved, by step."""
        pointed, names = current(self.folder), names_in(self.folder)
        lost = [pointed] if pointed and pointed not in names else []
        return [check(self.folder / name, current=name == pointed) for name in [*names, *lost]]


def check(folder: Path, *, current: bool = False) -> Verified:
    """Read one generation and say whether it is what was saved."""
    manifest = None
    try:
        manifest = read_manifest(folder)
        read(folder, manifest, nothing, from_disk=True)
    except Damaged as damaged:
        return Verified(folder.name, str(damaged), manifest, current)
    return Verified(folder.name, None, manifest, current)
