"""The laboratory's words: what is provoked, in which runs, and who says whether it went as it must."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from steepest.training.faults.bench import Bench
    from steepest.training.faults.laboratory import Laboratory, Seen
    from steepest.training.faults.scene import Scene
    from steepest.training.world import World

STEPS = 4
"""Steps of a run of the laboratory, each of which is saved: generations 0 to 4."""
LAST = -1
"""The last rank."""


class Failed(Exception):
    """What must happen has not; the text says what happened instead."""


def demand(holds: bool, words: str) -> None:
    """Raise `Failed` with these words unless it holds."""
    if not holds:
        raise Failed(words)


@dataclass(frozen=True)
class Inject:
    """A fault, put into the processes of a run before they begin.

    apply: changes objects of the process it is called in; a function that can be imported by its name, or a
    `functools.partial` of one.  rank: whose process; None for all, -1 for the last.
    fatal: whether the process is to die of it, or to be stopped.
    """

    apply: Callable[[Scene], None]
    rank: int | None = None
    fatal: bool = False

    def hits(self, rank: int, ranks: int) -> bool:
        return self.rank is None or self.rank % ranks == rank


@dataclass(frozen=True)
class Run:
    """One start of a run in its folder, and how it must end.

    ends: None: every rank finishes. A regular expression: none does, and somebody says a sentence like this.
    either: or all finish.
    change: keys of the config that are not as in the run so far; or a function of the folder that gives them.
    alone: nobody ends the other ranks when one of them is gone; torchrun would.
    ranks, placement: None for the laboratory's.
    """

    inject: tuple[Inject, ...] = ()
    ends: str | None = None
    either: bool = False
    change: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]] = field(default_factory=dict)
    alone: bool = False
    ranks: int | None = None
    placement: str | None = None


Tamper: TypeAlias = Callable[[Path, Random], None]
"""Changes what a run has saved, drawing what is to be drawn from the generator."""


@dataclass(frozen=True, eq=False)
class Scenario:
    """What is done; it is done once, however many oracles look at it.

    cut: the folder begins as that of the undisturbed run stood after so many steps; None: empty.
    tamper: then this is done to it.  runs: then these are made.  change: keys of the config, of the
    undisturbed run too.  still: without dropout, in the undisturbed run too: numbers are then comparable
    between different numbers of ranks.  ranks, placements: at least so many, one of these, where the
    fault needs them.
    """

    runs: tuple[Run, ...] = (Run(),)
    cut: int | None = None
    tamper: tuple[Tamper, ...] = ()
    change: Mapping[str, Any] = field(default_factory=dict)
    still: bool = False
    ranks: int = 1
    placements: tuple[str, ...] = ()


Oracle: TypeAlias = "Callable[[Seen], str]"
"""Says in words what happened, or raises `Failed`."""


@dataclass(frozen=True)
class Trial:
    """A scenario, and who judges it."""

    scenario: Scenario
    oracles: tuple[Oracle, ...]


@dataclass(frozen=True)
class Here:
    """Something asked of the library in one process, about the config's own model."""

    check: Callable[[Bench], str]


@dataclass(frozen=True)
class Together:
    """The same in a process for each rank, which have met."""

    check: Callable[[Bench, World], str]


@dataclass(frozen=True)
class Staged:
    """Processes that are started by hand."""

    play: Callable[[Laboratory], str]


@dataclass(frozen=True)
class Row:
    """A fault of the list. must: what is to happen.  trials: ways to provoke it; all have to go well."""

    number: int
    fault: str
    must: str
    trials: tuple[Trial | Here | Together | Staged, ...]


@dataclass(frozen=True)
class Above:
    """What rooms above training lend to the laboratory.

    page: writes the page of a run's folder.  channel: carries lines to a tracker (`integrations.Channel`).
    """

    page: Callable[[Path], Path] | None = None
    channel: Callable[..., Any] | None = None
