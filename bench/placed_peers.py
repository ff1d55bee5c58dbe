"""Which peers' optimizers give on cut parameters (DTensors) what they give on whole ones.

    python bench/placed_peers.py           # writes bench/results/placed_peers.json

Every optimizer that bench/step.py times is given three steps on two and on three gloo ranks, over shapes of
the matrix, with the same gradients as in one process. Each in processes of its own: what
crashes on one rank leaves the others waiting.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steepest.lab.bench.peers import PEERS, Peer

RESULT = Path(__file__).parent / "results" / "placed_peers.json"
SHAPES = {
    "even": {"weight": (64, 128), "bias": (12,)},
    "uneven": {"vocabulary": (257, 48), "small": (7, 6), "few": (2, 130), "one": (1,)},
}
STEPS, BOUND, PATIENCE = 3, 3e-5, 90.0
SERVER = multiprocessing.get_context("forkserver")


def values(shapes: Mapping[str, Any], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes.values()]


def train(peer: Peer, shapes: Mapping[str, Any], mesh: Any = None) -> list[Tensor]:
    """Parameters after some steps; cut over a mesh if there is one, and put together again."""
    from torch.distributed.tensor import Shard, distribute_tensor

    def spread(x: Tensor) -> Tensor:
        return x if mesh is None else distribute_tensor(x, mesh, [Shard(0)])

    params = [nn.Parameter(spread(x)) for x in values(shapes, 3)]
    made = peer.make(params, 0.01)
    for step in range(STEPS):
        for p, g in zip(params, values(shapes, 50 + step), strict=True):
            p.grad = spread(g)
        made.step()
    return [p.full_tensor() if mesh is not None else p.detach() for p in params]  # type: ignore[operator]


def compare(rank: int, world: int, folder: str, peer: Peer, kind: str) -> None:
    """Write what became of it: the largest relative difference, or the error's first line."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    shapes, found = SHAPES[kind], Path(folder) / f"{rank}.json"
    try:
        whole = train(peer, shapes)
        parts = train(peer, shapes, init_device_mesh("cpu", (world,)))
        far = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(parts, whole, strict=True))
        found.write_text(json.dumps(far))
    except BaseException as error:
        found.write_text(json.dumps(f"{type(error).__name__}: {error}".partition("\n")[0][:160]))
        raise


def probe(peer: Peer, world: int, kind: str) -> str | float:
    """The worst of all ranks; an error if any has one."""
    with tempfile.TemporaryDirectory() as folder:
        started = [
            SERVER.Process(target=compare, args=(rank, world, folder, peer, kind)) for rank in range(world)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(PATIENCE)
        hung = any(process.is_alive() for process in started)
        for process in started:
            process.kill()
        told = [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*.json"))]
    errors = [x for x in told if isinstance(x, str)]
    if errors or len(told) < world:
        return errors[0] if errors else ("hangs" if hung else "dies")
    return max(told)


def main() -> None:
    SERVER.set_forkserver_preload(["torch.distributed.tensor", "steepest.lab.bench.peers"])
    found: list[dict[str, Any]] = []
    for (card, storage), peers in PEERS.items():
        for peer in peers:
            try:
                train(peer, SHAPES["even"])
            except Exception as error:
                found.append(
                    {"card": card, "storage": storage, "peer": peer.name, "missing": str(error)[:160]}
                )
                continue
            cells = {f"{kind} {world}": probe(peer, world, kind) for kind in SHAPES for world in (2, 3)}
            found.append({"card": card, "storage": storage, "peer": peer.name, "cells": cells})
            print(card, storage, peer.name, cells, file=sys.stderr, flush=True)
            RESULT.write_text(
                json.dumps({"command": "python bench/placed_peers.py", "peers": found}, indent=1)
            )
    RESULT.write_text(
        json.dumps({"command": "python bench/placed_peers.py", "peers": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
