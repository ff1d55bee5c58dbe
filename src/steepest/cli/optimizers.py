"""`steepest optimizers`: what there is to choose from."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from steepest.rules import CARDS, Card

MATRIX = torch.Size((4096, 4096))


def optimizers() -> None:
    """List the optimizers: what each does, its memory, what learning rate to try, when to use it."""
    table = Table(pad_edge=False, box=None, header_style="bold")
    for column in ("name", "state", "sees", "lr / AdamW's"):
        table.add_column(column, no_wrap=True)
    table.add_column("what it does, and when to use it")
    for card in CARDS.values():
        table.add_row(
            card.name,
            f"{state_bytes(card):.2g} B",
            card.rule.scope.name.lower(),
            f"x {card.relative_lr:g}",
            f"{card.summary}\n[dim]{card.when}[/dim]",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "\nstate: bytes a parameter in float32, for a 4096 x 4096 matrix. sees: what the rule must see to "
        "update one element.\nlr: where to look first; `steepest compare` finds it. More: docs/optimizers/."
    )


def state_bytes(card: Card) -> float:
    """Bytes of state a parameter, from the rule's declaration."""
    hyper = {**card.rule.defaults(), **card.settings}
    slots = card.rule.slots_for(MATRIX, hyper)
    return 4 * sum(shape.numel() for shape in slots.values()) / MATRIX.numel()
