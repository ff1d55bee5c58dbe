"""Parameters of a cut model that a pass leaves out: on some ranks, or on all."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steepest.placements.blocks import blocks_of
from steepest.placements.traffic import Mover

Owns = list[tuple[nn.Module, str, int]]
"""Modules with names and places of the parameters that come and go with a unit of a cut model."""

EXCHANGE = "set_reduce_scatter_unused_params"
"""What a model that was cut has to have; older versions of torch do not."""


class Unused:
    """Lets ranks whose passes use different parameters of a cut model exchange the same gradients, and takes
    away those of parameters that no rank has used: as in one process they have none.

    `fully_shard` exchanges a zero where a pass has left a parameter out. Who was used is seen where a
    gradient is accumulated, and added up over ranks in `finish`, before a step: one collective.
    """

    def __init__(self, model: nn.Module) -> None:
        exchange: Any = getattr(model, EXCHANGE)
        exchange(True)
        self._params = list(model.parameters())
        self._used = torch.zeros(len(self._params))
        self._mover = Mover()
        places = {p: i for i, p in enumerate(self._params)}
        for unit in (*blocks_of(model), model):
            named = [
                (module, *pair)
                for module in unit.modules()
                for pair in module.named_parameters(recurse=False)
            ]
            own = [(module, name, places.pop(p)) for module, name, p in named if p in places]
            unit.register_forward_pre_hook(partial(self._watch, own))

    def _watch(self, own: Owns, module: nn.Module, args: Any) -> None:
        """Once a parameter is whole: torch keeps the same one for all passes."""
        late: Owns = []
        while own:
            within, name, place = own.pop()
            p = getattr(within, name)
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(partial(self._mark, place))
            else:
                late.append((within, name, place))  # frozen, perhaps not for ever
        own += late

    def _mark(self, place: int, p: Tensor) -> None:
        self._used[place] = 1.0

    def finish(self) -> None:
        """Before a step, on every rank: what nobody has used has no gradient."""
        self._mover.add_up(self._used)
        for p, count in zip(self._params, self._used.tolist(), strict=True):
            if not count:
                p.grad = None
        self._used.zero_()
