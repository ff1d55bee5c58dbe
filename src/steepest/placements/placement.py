"""Where parameters, gradients and state live, and what a step has to say between ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from steepest.contract import AddUp, Scope, Shard
from steepest.placements.traffic import Traffic

Measure = Callable[[Sequence[Tensor]], float]
"""The global norm of gradients that are all here (`Engine.measure`)."""


class Placement:
    """Everything is here and is stepped here: one process, or ranks that all hold the same (DDP)."""

    name: ClassVar[str] = "whole"
    moves: ClassVar[bool] = False
    """Whether anything is cut or owned, so that ranks have to speak."""

    waves: int = 1
    """In how many parts, one after another, parameters are stepped."""

    def bind(self, params: Sequence[Tensor], scopes: Sequence[Scope]) -> None:
        """Learn of the optimizer's parameters, in order, and of their rules' scopes, before all else."""

    def local(self, tensor: Tensor) -> Tensor:
        """The part of a parameter, or of its gradient, that is here."""
        return tensor

    def shard(self, p: Tensor) -> Shard | None:
        """Which part of a parameter is here; None for the whole."""
        return None

    def owns(self, place: int) -> bool:
        """Whether the parameter of this place among all is stepped here."""
        return True

    def wave(self, place: int) -> int:
        """The part in which the parameter of this place is stepped."""
        return 0

    def add_up(self, p: Tensor) -> AddUp | None:
        """How sums over a parameter are completed; None where it is whole."""
        return None

    def survey(
        self, measure: Measure, params: Sequence[Tensor], grads: Sequence[Tensor], flag: bool
    ) -> tuple[float, bool, int]:
        """The norm of all gradients of all ranks, whether a flag is raised on any, and how many gradients
        there are, in one collective.

        params: those that have a gradient.  grads: what is here of their gradients.
        """
        return measure(grads), flag, len(grads)

    def bring(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Before a committed step: whole matrices for rules that need them, parameters and gradients, at
        their owners. Returns the gradients to step with. params: all.  grads: what is here of theirs."""
        return grads

    def arrive(self, wave: int) -> None:
        """Wait until the gradients of a part, which `bring` has sent for, are here."""

    def depart(self, wave: int) -> None:
        """A part has been stepped: its parameters may go where they belong."""

    def add_rows(self, rows: Tensor, params: Sequence[Tensor]) -> None:
        """Complete sums over parameters, float64 (parameters, n), in place; zero where nothing is here."""

    def tell(self, mine: Any) -> list[Any]:
        """Everybody's small object, by rank."""
        return [mine]

    def gather(self, state: dict[int, Any]) -> dict[int, Any]:
        """The state of all parameters, by place, from what each rank holds."""
        return state

    def publish(self, params: Sequence[Tensor]) -> None:
        """After a committed step of these parameters: everybody gets what owners have made of them."""

    def wrap(self, stored: Tensor, shape: Sequence[int], p: Tensor) -> Tensor:
        """A part of p's state as torch.distributed.checkpoint knows it. shape: as stored for the whole."""
        raise NotImplementedError

    def unwrap(self, saved: Tensor, shape: Sequence[int]) -> Tensor:
        """What `wrap` has wrapped, in the shape that is stored here; anything else as it is."""
        return saved

    def traffic(self) -> Traffic:
        """What was moved since it was last asked."""
        return Traffic()
