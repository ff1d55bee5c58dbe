"""`steepest checkpoint`: are they whole, what is in them, what changed between two, in whose format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steepest.cli.words import size

if TYPE_CHECKING:
    from steepest.training.checkpoint import Change, TensorFact, Verified

app = typer.Typer(
    help="Look into checkpoints: verify, show, compare, convert. Nothing here changes one.",
    no_args_is_help=True,
)

Where = Annotated[
    Path,
    typer.Argument(
        help="A run's folder (its newest good checkpoint is meant), or one generation: "
        "runs/mine/checkpoints/gen-000120."
    ),
]
SHOWN = 40
"""Rows of a table before the rest is counted; `--all` shows every one."""


@app.callback()
def checkpoint() -> None:
    """Look into checkpoints: verify, show, compare, convert.

    A run saves generations, `checkpoints/gen-STEP`; the file CURRENT names the newest. Each is whole, with
    a checksum for every tensor, or it is not used. Nothing here changes one.
    """


@app.command()
def verify(
    where: Annotated[
        Path, typer.Argument(help="A run's folder, for all its checkpoints, or one generation of them.")
    ],
) -> None:
    """Read every byte of a run's checkpoints, or of one, and compare it with its checksum.

    Exit code 1 if any is damaged: a file missing, too short or of another save, a bit changed. Training
    passes over damaged ones by itself and goes on from the newest good one.
    """
    from steepest.training.checkpoint import check, find_store

    console = Console(highlight=False)
    store = find_store(where)
    with console.status("reading"):
        found = store.check() if store else [check(where)]
    _table(console, ("generation", "step", "size", "saved", ""), [_verdict(one) for one in found])
    if store and (left := store.leftovers()):
        console.print(f"left by saves that did not end, removed by the next: {', '.join(left)}")
    if any(one.problem for one in found):
        raise typer.Exit(1)


def _verdict(one: Verified) -> tuple[str, ...]:
    marks = [
        word for word, of in (("current", one.current), ("kept", one.manifest and one.manifest.keep)) if of
    ]
    said = f"[red]damaged:[/red] {escape(one.problem)}" if one.problem else ", ".join(["good", *marks])
    if one.manifest is None:
        return escape(one.generation), "", "", "", said
    saved = one.manifest.created.replace("T", " ").removesuffix("+00:00")
    return escape(one.generation), f"{one.manifest.step}", size(one.manifest.length()), saved, said


@app.command()
def show(
    where: Where,
    every: Annotated[bool, typer.Option("--all", help="Every tensor and fact, however many.")] = False,
) -> None:
    """Show what is in a checkpoint: groups, tensors with shape, type and norm, and the facts of the run.

    The norm is the L2 norm at the time of saving; a tensor with NaN or infinite elements says how many.
    Everything is verified first.
    """
    from steepest.training.checkpoint import flat_facts, group_sizes, load_at

    console = Console(highlight=False, soft_wrap=True)
    loaded = load_at(where)
    manifest = loaded.manifest
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    console.print(f"{loaded.generation}: step {loaded.step}, saved {manifest.created} by {versions}\n")
    sizes = [
        (group, f"{tensors}", f"{elements:,}", size(length))
        for group, (tensors, elements, length) in group_sizes(manifest).items()
    ]
    _table(console, ("group", "tensors", "elements", "size"), sizes)
    console.print()
    tensors = [
        (
            escape(f"{group}/{name}"),
            "x".join(map(str, fact.shape)) or "scalar",
            fact.dtype.lower(),
            _norm(fact),
        )
        for group, name, fact in manifest.tensors()
    ]
    _table(console, ("tensor", "shape", "type", "norm"), tensors, every)
    console.print()
    facts = flat_facts(loaded.facts).items()
    _table(console, ("fact", ""), [(escape(key), _short(value, every)) for key, value in facts], every)
    _tell_skipped(console, loaded.skipped)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="The earlier one: a run's folder, or one generation.")],
    b: Annotated[Path, typer.Argument(help="The later one.")],
    every: Annotated[bool, typer.Option("--all", help="Every tensor and fact, however many.")] = False,
) -> None:
    """Compare two checkpoints: tensors that came, went or changed, and facts that are different.

    For a changed tensor: the largest difference of an element, and the norm of the difference by the norm
    of the tensor. Two runs that should be the same differ in nothing.
    """
    from steepest.training.checkpoint import compare, load_at

    console = Console(highlight=False, soft_wrap=True)
    first, second = load_at(a), load_at(b)
    found = compare(first, second)
    for one in (first, second):
        _tell_skipped(console, one.skipped)
    console.print(f"{escape(str(a))} (step {first.step}) -> {escape(str(b))} (step {second.step})")
    rows = [
        *((escape(name), "added") for name in found.added),
        *((escape(name), "removed") for name in found.removed),
        *(_change(change) for change in found.changed),
    ]
    if rows:
        _table(console, ("tensor", "", "largest", "relative"), rows, every)
    if found.facts:
        facts = [
            (escape(key), *(_short(value, every) for value in pair)) for key, pair in found.facts.items()
        ]
        _table(console, ("fact", "before", "after"), facts, every)
    of = found.same + len(found.added) + len(found.removed) + len(found.changed)
    console.print(
        f"{found.same} of {of} tensors are the same, bit by bit."
        if found
        else f"no difference: {of} tensors and all facts are the same, bit by bit."
    )


@app.command()
def convert(
    where: Where,
    out: Annotated[Path, typer.Option("--out", help="The folder to write; it must not exist.")],
    to: Annotated[
        str,
        typer.Option(
            help="plain: GROUP.safetensors and facts.json, readable by anything. torch: optimizer.pt, which "
            "torch.optim's optimizer of the same algorithm loads, and model.pt. huggingface: weights as "
            "from_pretrained reads them. dcp: a torch.distributed.checkpoint folder. steepest: a folder of "
            "checkpoints with this one in it, in one piece on however many ranks it was saved."
        ),
    ] = "plain",
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="Read a DCP folder, although its metadata can run code of whoever made it."
        ),
    ] = False,
) -> None:
    """Write a checkpoint in another format, verified first; or one of others in ours.

    WHERE may also be a Hugging Face folder of safetensors, or with --trust a folder of
    torch.distributed.checkpoint (DCP); nothing can verify those.

    In Python: opt.load_state_dict(torch.load("OUT/optimizer.pt", weights_only=True)).
    """
    from steepest.training.checkpoint import convert as write
    from steepest.training.checkpoint import open_any

    console = Console(highlight=False)
    loaded = open_any(where, trust=trust)
    for path in write(loaded, out, to):
        console.print(f"{size(path.stat().st_size):>8}  {escape(str(path))}", soft_wrap=True)
    _tell_skipped(console, loaded.skipped)


def _table(
    console: Console, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], every: bool = True
) -> None:
    """Print a table, and unless all is asked for only its first rows."""
    table = Table(pad_edge=False, box=None, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows if every else rows[:SHOWN]:
        table.add_row(*row)
    if rows:
        console.print(table)
    if len(rows) > SHOWN and not every:
        console.print(f"... and {len(rows) - SHOWN} more (--all)")


def _norm(fact: TensorFact) -> str:
    if fact.nonfinite:
        return f"[red]{fact.nonfinite} not finite[/red]"
    return "" if fact.norm is None else f"{fact.norm:.6g}"


def _change(change: Change) -> tuple[str, ...]:
    if change.most is None:
        return escape(change.name), change.what
    return escape(change.name), "changed", f"{change.most:.3g}", f"{change.relative:.3g}"


def _short(value: Any, every: bool) -> str:
    text = "" if value is None else str(value)
    return escape(text if every or len(text) <= 60 else f"{text[:57]}...")


def _tell_skipped(console: Console, skipped: tuple[str, ...]) -> None:
    for one in skipped:
        console.print(f"[yellow]passed over:[/yellow] {escape(one)}", soft_wrap=True)
