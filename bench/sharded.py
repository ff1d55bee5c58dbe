"""A step of parameters that are cut over ranks (FSDP2), beside torch's AdamW under the same placement.

    python bench/sharded.py                # writes bench/results/sharded.json

Two gloo ranks on this machine, one thread each, GPT-2-124M's shapes as `fully_shard` cuts them. Times are
interleaved in one run; peaks are of processes of their own, in which one optimizer takes three steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

RESULT = Path(__file__).parent / "results" / "sharded.json"
RANKS, ROUNDS, LR = 2, 15, 1e-6


def model_of(name: str) -> nn.Module:
    """The model's shapes, cut over the ranks, with gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from steepest.lab.bench.shapes import shapes_of

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes_of(name)])
    fully_shard(model, mesh=mesh)
    for p in model.parameters():
        local = p.to_local()  # type: ignore[attr-defined]
        local.data.uniform_(-0.05, 0.05)
        p.grad = torch.ones_like(p) * 0.01
    return model


class Clipped(torch.optim.AdamW):
    """torch's fused AdamW behind `clip_grad_norm_`, which looks at the gradients as ours does."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, lr=LR, fused=True)
        self._all = params

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        nn.utils.clip_grad_norm_(self._all, 1.0)
        super().step()


def build(who: str, model: nn.Module) -> Any:
    """An optimizer by name."""
    import steepest

    given = list(model.parameters())
    return {
        "steepest": lambda: steepest.AdamW(given, lr=LR),
        "steepest, no check": lambda: steepest.AdamW(given, lr=LR, check_finite=False),
        "steepest, clipped": lambda: steepest.AdamW(given, lr=LR, max_grad_norm=1.0),
        "torch fused": lambda: torch.optim.AdamW(given, lr=LR, fused=True),
        "torch fused, clipped": lambda: Clipped(given),
        "torch foreach": lambda: torch.optim.AdamW(given, lr=LR, foreach=True),
        "steepest LAMB": lambda: steepest.LAMB(given, lr=LR),
        "steepest Adafactor": lambda: steepest.Adafactor(given, lr=LR),
        "steepest AdamW int8": lambda: steepest.AdamW(given, lr=LR, state="int8"),
    }[who]()


NAMES = (
    *("steepest", "steepest, no check", "torch fused", "torch foreach"),
    *("steepest, clipped", "torch fused, clipped"),
    *("steepest LAMB", "steepest Adafactor", "steepest AdamW int8"),
)


def times(rank: int, folder: str, name: str) -> None:
    """Milliseconds of each optimizer's step, all in one process, in turns."""
    _start(rank, folder)
    model = model_of(name)
    made = {n: build(n, model) for n in NAMES}
    found: dict[str, list[float]] = {n: [] for n in NAMES}
    for number in range(ROUNDS + 2):
        for n in NAMES[number % len(NAMES) :] + NAMES[: number % len(NAMES)]:
            dist.barrier()
            start = time.perf_counter()
            made[n].step()
            if number > 1:
                found[n].append((time.perf_counter() - start) * 1e3)
    _finish(rank, folder, {n: statistics.median(ms) for n, ms in found.items()})


def peak(rank: int, folder: str, name: str, who: str, loaded: bool) -> None:
    """MiB of a process's peak over what it had before its optimizer was made. loaded: another of the kind has
    taken a step before, so that the code of the libraries is there; LLVM takes 40 MiB whatever the model."""
    _start(rank, folder)
    if loaded:
        build(who, model_of("tiny")).step()
    model = model_of(name)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = _resident("VmHWM")
    made = build(who, model)
    for _ in range(3):
        made.step()
    _finish(rank, folder, (_resident("VmHWM") - before) / 1024)


def _resident(what: str) -> int:
    """KiB of this process, by the name that Linux gives them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def _start(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=300))


def _finish(rank: int, folder: str, found: Any) -> None:
    Path(f"{folder}/{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def on_ranks(function: Any, *given: Any) -> list[Any]:
    """What the function found on every rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(function, (folder, *given), nprocs=RANKS)
        return [json.loads(Path(f"{folder}/{rank}.json").read_text()) for rank in range(RANKS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="gpt2-124m")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    ms = on_ranks(times, arguments.model)
    from steepest.lab.bench.facts import machine

    found = {
        "command": " ".join(["python", *sys.argv]),
        "model": arguments.model,
        "ranks": RANKS,
        "ms": {n: max(own[n] for own in ms) for n in NAMES},
        "cpu": machine("cpu"),
        "peak_mib": {n: max(on_ranks(peak, arguments.model, n, False)) for n in NAMES},
        "peak_mib_libraries_loaded": {n: max(on_ranks(peak, arguments.model, n, True)) for n in NAMES},
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
