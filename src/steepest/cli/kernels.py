"""`steepest kernels`: what an optimizer's step really computes."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console
from rich.syntax import Syntax

from steepest.rules import find_card

if TYPE_CHECKING:
    from steepest.kernels import Kernel

app = typer.Typer(help="Look at the compiled kernels: one pass over memory a step.", no_args_is_help=True)


class Form(StrEnum):
    """How a kernel is printed."""

    listing = "listing"
    llvm = "llvm"
    triton = "triton"


@app.callback()
def kernels() -> None:
    """Look at the compiled kernels: what is read, computed and written in each pass over memory."""


@app.command()
def show(
    rule: Annotated[str, typer.Argument(help="An optimizer, as `steepest optimizers` lists them: lamb.")],
    codec: Annotated[
        str,
        typer.Option(
            "--codec",
            "-c",
            help="How state and parameters are stored: fp32; int8, fp8, ... for all state; m=int4+v=fp8 slot "
            "by slot; split24, kahan, ... for bfloat16 parameters; split24/int8 for both.",
        ),
    ] = "fp32",
    to: Annotated[
        Form,
        typer.Option(
            help="listing: in the notation of the rules; llvm: as compiled for the CPU; triton: for a GPU."
        ),
    ] = Form.listing,
    shape: Annotated[
        str, typer.Option(help="The shape of the parameter: 256x512, 4096. It decides which codecs serve.")
    ] = "256x512",
    options: Annotated[
        str | None, typer.Option(help='Hyperparameters as JSON: {"amsgrad": true}, {"dialect": "hf"}.')
    ] = None,
    telemetry: Annotated[bool, typer.Option(help="With the sums that telemetry=True reports.")] = False,
) -> None:
    """Print the kernels of one optimizer step.

    A rule is traced once and cut into passes at its sums; what follows from live numbers alone is computed
    on the host. `x'` is the new value of `x`; `p` the parameter, `g` its gradient, `m`, `v`, ... the state.
    """
    for kernel in _kernels(rule, codec, shape, json.loads(options or "{}"), telemetry):
        schedule = kernel.schedule
        passes = "1 pass" if len(schedule.passes) == 1 else f"{len(schedule.passes)} passes"
        about = f"# {rule}, {codec}: {passes}, {schedule.bytes_moved:.4g} bytes a parameter"
        _print(f"{about}\n{_text(kernel, to)}", to)


def _kernels(rule: str, codec: str, shape: str, options: dict[str, object], telemetry: bool) -> list[Kernel]:
    from steepest.contract import SteepestError
    from steepest.engines import classify
    from steepest.lab.bench import parse_storage
    from steepest.optimizer import Optimizer

    card, storage = find_card(rule), parse_storage(codec)
    try:
        size = tuple(map(int, shape.split("x")))
    except ValueError:
        raise SteepestError(f"--shape {shape!r} must be whole numbers joined by x, like 256x512.") from None
    p = torch.zeros(size, dtype=storage.dtype)
    p.grad = torch.zeros_like(p)
    chosen = {**card.settings, **options, **storage.options()}
    opt = Optimizer([p], card.rule, telemetry=telemetry, **chosen)
    found, rest = classify(opt.buckets(), "cpu")
    if rest:
        raise SteepestError(f"{card.title} has no kernel for this shape; it runs on the foreach engine.")
    return [kernel for kernel, _ in found]


def _text(kernel: Kernel, to: Form) -> str:
    from steepest.kernels import listing
    from steepest.kernels.triton import print_triton

    if to is Form.listing:
        return listing(kernel.schedule)
    if to is Form.llvm:
        return kernel.printed[0]
    return print_triton(kernel.schedule, kernel.layout).text


def _print(text: str, to: Form) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal:
        console.print(Syntax(text, {"listing": "python", "triton": "python"}.get(to, "llvm")))
    else:
        console.out(text)
