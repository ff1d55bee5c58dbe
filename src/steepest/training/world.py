"""The ranks of a run: who they are, and what they say to each other. Alone, nobody says anything."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch

from steepest.contract import SteepestError
from steepest.training.pulse import Pulse, signs

T = TypeVar("T")

GRACE = 5.0
"""Seconds in which whoever is still there says so, after the ranks have lost each other."""
TOLD_BY = (
    *("gloo", "nccl", "connection reset", "connection closed", "broken pipe", "timed out", "tcpstore"),
    *("pair closure", "aborted"),
)
"""What torch.distributed says in errors that have no class of their own."""


class Lost(SteepestError):
    """Another rank is gone, or hangs; whoever hears of it can only end."""


@dataclass(frozen=True)
class World:
    """The ranks of a run, by torch.distributed; alone (`World()`) every method returns at once.

    Every method but `within` and `farewell` is called by all ranks, in the same order. Raises `Lost`, which
    names who is missing as far as that can be known, where others do not answer within `timeout` seconds.

    local_rank, local_size: the number of this rank on its machine, and how many are there.  store: where
    ranks leave their last words.  pulse: this one's signs of life in it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    timeout: float = 600.0
    store: Any = field(default=None, compare=False, repr=False)
    pulse: Pulse | None = field(default=None, compare=False, repr=False)

    @classmethod
    def join(cls, device: str = "cpu", timeout: float = 600.0) -> World:
        """The world that torchrun's environment describes; alone without one."""
        size = _number("WORLD_SIZE", 1)
        if size == 1:
            return cls()
        rank, local_rank = _number("RANK"), _number("LOCAL_RANK", 0)
        dist = _distributed()
        wait = timedelta(seconds=timeout)
        backend = "gloo"
        if device.startswith("cuda"):
            torch.cuda.set_device(local_rank)
            backend = "cpu:gloo,cuda:nccl"  # words and verdicts go by the host
        try:
            store, rank, size = next(iter(dist.rendezvous("env://", timeout=wait)))
            # A launcher that starts ranks again may keep its store, with the addresses of those who died.
            store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            ours = dist.PrefixStore("ranks", store)
            dist.init_process_group(backend, store=ours, rank=rank, world_size=size, timeout=wait)
        except (RuntimeError, ValueError) as error:
            why = str(error).partition("\n")[0]
            raise Lost(
                f"rank {rank} of {size} did not meet the others at {os.environ.get('MASTER_ADDR', '?')}:"
                f"{os.environ.get('MASTER_PORT', '?')} ({why}); start all ranks with torchrun, or --nproc."
            ) from error
        words, local_size = dist.PrefixStore("words", store), _number("LOCAL_WORLD_SIZE", size)
        return cls(rank, size, local_rank, local_size, timeout, words, Pulse(words, rank))

    @property
    def first(self) -> bool:
        """Whether this rank writes, tells, and reads the clock for all."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this name that is this rank's."""
        return f"cuda:{self.local_rank}" if self.size > 1 and name == "cuda" else name

    def rows(self, count: int) -> slice:
        """This rank's part of so many rows: they follow each other, and parts differ by one at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    # ------------------------------------------------------------ what is said

    def sum(self, numbers: Sequence[float] | torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, float64, on the CPU; in one collective."""
        return self._reduced(numbers, "SUM", "adding up numbers")

    def most(self, numbers: Sequence[float]) -> list[float]:
        """The largest of each number over all ranks."""
        return self._reduced(numbers, "MAX", "comparing numbers").tolist()

    def _reduced(self, numbers: Sequence[float] | torch.Tensor, how: str, what: str) -> torch.Tensor:
        vector = torch.as_tensor(numbers, dtype=torch.float64).detach().cpu()
        if self.size > 1:
            dist = _distributed()
            vector = vector.clone()
            with self.within(what):
                dist.all_reduce(vector, getattr(dist.ReduceOp, how))
        return vector

    def share(self, thing: T) -> T:
        """What rank 0 gives; what the others give is not read."""
        if self.size == 1:
            return thing
        dist = _distributed()
        told: list[Any] = [thing if self.first else None]
        with self.within("hearing from rank 0"):
            dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        return told[0]

    def gather(self, thing: T) -> list[T]:
        """What everybody gives, by rank; everybody gets it."""
        if self.size == 1:
            return [thing]
        dist = _distributed()
        told: list[Any] = [None] * self.size
        with self.within("telling everybody"):
            dist.all_gather_object(told, thing)
        return told

    def lead(self, function: Callable[[], T]) -> T:
        """What the function returns, or the SteepestError that it raises, on rank 0, where alone it runs."""
        told: tuple[Any, str | None] = None, None
        if self.first:
            try:
                told = function(), None
            except SteepestError as error:
                if self.size == 1:
                    raise
                told = None, str(error)
        found, why = self.share(told)
        if why is not None:
            raise SteepestError(why)
        return found

    def all(self, function: Callable[[], T]) -> T:
        """What the function returns here; where it raises a SteepestError on any rank, all raise it."""
        found, why = None, ""
        try:
            found = function()
        except SteepestError as error:
            if self.size == 1:
                raise
            why = str(error)
        if bad := [said for said in self.gather(why) if said]:
            raise SteepestError(bad[0])
        return found  # type: ignore[return-value]

    def barrier(self, what: str) -> None:
        """Wait until everybody is here. what: they wait for, as in "waiting for the checkpoint"."""
        self._reduced([0.0], "SUM", what)

    # ------------------------------------------------------------ when somebody is missing

    @contextmanager
    def within(self, what: str) -> Iterator[None]:
        """Turns what torch.distributed raises in here into the sentence that names who is missing."""
        try:
            yield
        except Lost:
            raise
        except RuntimeError as error:
            if self.size == 1 or not _is_distributed(error):
                raise
            raise self._missing(what, error) from error

    def _missing(self, what: str, error: Exception) -> Lost:
        """Those who are still there say so in the store; who does not is gone, or hangs."""
        words: dict[int, str] = {}
        late = "timed out" in str(error).lower()
        try:
            self.store.set(f"there/{self.rank}", what)
            until = time.monotonic() + GRACE
            waited = [rank for rank in range(self.size) if rank != self.rank]
            before = signs(self.store, waited)
            while waited and time.monotonic() < until:
                waited = [rank for rank in waited if not self.store.check([f"there/{rank}"])]
                time.sleep(0.05)
            ended = {rank for rank in waited if self.store.check([f"ended/{rank}"])}
            if not late:  # who gives signs waits for one that has heard of it, and will hear of it in turn
                now = signs(self.store, waited)
                waited = [r for r in waited if r in ended or now[r] == before[r]] or waited
            for rank in waited:
                words[rank] = self.store.get(f"ended/{rank}").decode() if rank in ended else ""
        except RuntimeError:
            return Lost("rank 0 is gone, with what the ranks met at; the last generation stands.")
        if not words:
            return Lost(f"the ranks have lost each other in {what} ({_line(error)}); the network is failing.")
        told = [f"rank {rank} ended: {said}" for rank, said in words.items() if said]
        gone = ", ".join(str(rank) for rank, said in words.items() if not said)
        how = f"did not answer within {self.timeout:g} s" if late else "is gone"
        if gone:
            told.append(f"rank {gone} {how}, while the others were {what}; the last generation stands.")
        return Lost(" ".join(told))

    def farewell(self, words: str) -> None:
        """Leave word of why this rank ends, for those who are going to miss it."""
        if self.size > 1:
            try:
                self.store.set(f"ended/{self.rank}", words)
            except RuntimeError:
                return
            finally:
                self._stop_pulse()

    def leave(self) -> None:
        """End well: all are done."""
        if self.size > 1:
            self._stop_pulse()
            _distributed().destroy_process_group()

    def _stop_pulse(self) -> None:
        if self.pulse is not None:
            self.pulse.stop()


ALONE = World()


def _number(name: str, default: int | None = None) -> int:
    """A whole number of torchrun's environment."""
    given = os.environ.get(name)
    if given is None and default is not None:
        return default
    if given is None or not given.isdigit():
        raise SteepestError(
            f"WORLD_SIZE is set and {name} is {given!r}; start with torchrun or --nproc, which set both."
        )
    return int(given)


def _distributed() -> Any:
    """torch.distributed, which one process has no use for."""
    return importlib.import_module("torch.distributed")


def _is_distributed(error: RuntimeError) -> bool:
    return isinstance(error, _distributed().DistError) or any(word in str(error).lower() for word in TOLD_BY)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
