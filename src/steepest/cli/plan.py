"""`steepest plan`: what a rank would hold and send, for any number of ranks, without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from steepest.cli.words import size, thousands
from steepest.contract import SteepestError

if TYPE_CHECKING:
    from steepest.placements.plan import Plan


def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="Whose shapes: a preset (tiny, small, gpt2-124m, llama-1b), a folder with a transformers "
            "config.json, or pkg.module:factory. No weights are read."
        ),
    ],
    rule: Annotated[
        str, typer.Option("--rule", "-r", help="An optimizer, as `steepest optimizers` lists them: lamb.")
    ] = "adamw",
    state: Annotated[
        str,
        typer.Option(
            "--state",
            "-s",
            help="How state and parameters are stored: fp32; int8, fp8, ... for all state; m=int4+v=fp8 slot "
            "by slot; split24, kahan, ... for bfloat16 parameters; split24/int8 for both.",
        ),
    ] = "fp32",
    placement: Annotated[
        str,
        typer.Option(
            "--placement", "-p", help="Comma-separated: ddp, zero1, zero2, fsdp, hybrid, one; or 'all'."
        ),
    ] = "all",
    ranks: Annotated[
        str, typer.Option("--ranks", "-n", help="How many, comma-separated: 64, or 8,64,1024.")
    ] = "8",
    group: Annotated[
        int | None,
        typer.Option(help="For hybrid: how many ranks share one copy of the model. Default: 8."),
    ] = None,
) -> None:
    """Say what each rank of a placement holds and sends in a step, for any number of ranks, without one.

    Parameters, gradients and state are exact: they follow from shapes, the rule's slots and how torch cuts.
    Activations are not in it. With one placement and one number of ranks it also lists what is sent.
    """
    plans = _plans(model, rule, state, placement, ranks, group)
    console = Console(highlight=False)
    console.print(_table(plans))
    if len(plans) == 1:
        console.print()
        console.print(_moves(plans[0]))
    console.print(
        "\nBytes of the rank with the most. passing: what a rank holds for a moment besides. sent: by a rank "
        "in a step. work: the largest share of the update by the mean. More: docs/placements.md.",
        style="dim",
    )


def _plans(model: str, rule: str, state: str, placement: str, ranks: str, group: int | None) -> list[Plan]:
    from steepest.lab.plan import planned_model
    from steepest.placements.plan import PLACEMENTS, plan

    try:
        worlds = [int(part) for part in ranks.split(",")]
    except ValueError:
        raise SteepestError(f"--ranks {ranks!r} must be whole numbers joined by commas, like 8,64.") from None
    names = [n for n in PLACEMENTS if n != "one"] if placement == "all" else placement.split(",")
    found = planned_model(model, rule, state)
    grouped = {"hybrid": group}
    return [plan(found, n.strip(), world, grouped.get(n.strip())) for world in worlds for n in names]


def _table(plans: list[Plan]) -> Table:
    table = Table(pad_edge=False, box=None, header_style="bold")
    table.add_column("ranks", justify="right")
    table.add_column("placement", no_wrap=True)
    for column in ("parameters", "gradients", "state", "together", "passing", "collectives", "sent", "work"):
        table.add_column(column, justify="right", no_wrap=True)
    for found in plans:
        held = (found.parameters, found.gradients, found.state, found.held)
        table.add_row(
            thousands(found.ranks),
            found.placement + (f" of {found.group}" if found.placement == "hybrid" else ""),
            *(size(int(x.max())) for x in held),
            size(found.passing),
            str(found.collectives),
            size(found.sent),
            f"{found.balance:.2f}",
        )
    return table


def _moves(found: Plan) -> Table:
    table = Table(pad_edge=False, box=None, header_style="bold")
    table.add_column("what is sent in a step")
    table.add_column("as")
    for column in ("ranks", "calls", "bytes", "sent by a rank"):
        table.add_column(column, justify="right")
    for move in found.moves:
        numbers = thousands(move.ranks), str(move.calls), size(move.bytes), size(move.sent)
        table.add_row(move.what, move.verb, *numbers)
    return table
