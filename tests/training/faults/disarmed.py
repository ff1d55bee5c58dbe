"""Protections, taken away one by one: what a laboratory has to notice."""

from __future__ import annotations

from typing import Any

from steepest.optimizer import optimizer
from steepest.optimizer.verdict import Verdict, decide
from steepest.training import saved_run
from steepest.training.checkpoint import assemble, read
from steepest.training.faults.scene import Scene


class Any256(str):
    """A checksum that is equal to every other."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def no_checksums(scene: Scene) -> None:
    vars(read)["digest"] = lambda data: Any256()
    vars(assemble)["TOLERANCE"] = 1e30


def no_verdict(scene: Scene) -> None:
    def always(norm: Any, **named: Any) -> Verdict:
        found = decide(norm, **named)
        return found if found.commit else Verdict(True, found.norm)

    vars(optimizer)["decide"] = always


def no_look_at_numbers(scene: Scene) -> None:
    vars(saved_run)["broken"] = lambda found: []


def no_look_at_the_config(scene: Scene) -> None:
    vars(saved_run)["changed"] = lambda *given: []
