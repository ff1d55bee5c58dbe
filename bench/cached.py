"""What the arithmetic of a step costs: nanoseconds an element on one thread, of tensors that stay in cache.

    python bench/cached.py                              # this checkout: AdamW, every storage below
    python bench/cached.py --rule lion fp32 int8        # another rule, these storages
    python bench/cached.py --beside ../before fp8 int8  # beside another checkout

Memory plays no part here, nor what Python takes for a step: the time of a small tensor's is subtracted.
`--beside` runs each checkout in a process of its own and lets them take turns, so that both meet the same
machine; the ratio is the median over rounds. Figures go to bench/results/cached.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "bench" / "results" / "cached.json"
STORAGES = ["fp32", "bf16", "fp16", "fp8", "int8", "int4", "m=int8+v=factored", "split24", "split24/int8"]
LARGE, SMALL, STEPS = (256, 512), (64, 64), 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("storages", nargs="*", default=STORAGES)
    parser.add_argument("--rule", default="adamw")
    parser.add_argument("--beside", type=Path, action="append", default=[], help="another checkout")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        _serve(given.rule, given.storages)
        return
    places = [*map(Path.resolve, given.beside), ROOT]
    workers = [_start(place, given.rule, given.storages) for place in places]
    found = {storage: _race(workers, storage, given.rounds) for storage in given.storages}
    for worker in workers:
        worker.stdin.close()  # type: ignore[union-attr]
    command = "python bench/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    commits = [_commit(place) for place in places]
    given.out.write_text(json.dumps({"command": command, "commits": commits, "ns": found}, indent=1) + "\n")
    for storage, rows in found.items():
        medians = [statistics.median(own) for own in zip(*rows, strict=True)]
        ratios = [statistics.median(row[i] / row[-1] for row in rows) for i in range(len(places))]
        told = "   ".join(f"{m:.3f} ns ({r:.2f})" for m, r in zip(medians, ratios, strict=True))
        print(f"{storage:20} {told}")


def _start(place: Path, rule: str, storages: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--serve", "--rule", rule, *storages]
    environment = {**os.environ, "PYTHONPATH": str(place / "src")}
    pipe = subprocess.PIPE
    worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    worker.stdout.readline()  # type: ignore[union-attr]
    return worker


def _race(workers: list[subprocess.Popen[str]], storage: str, rounds: int) -> list[list[float]]:
    rows = []
    for turn in range(rounds):
        row = [0.0] * len(workers)
        for i in range(len(workers)):
            at = (i + turn) % len(workers)
            print(storage, file=workers[at].stdin, flush=True)
            row[at] = round(float(workers[at].stdout.readline()), 4)  # type: ignore[union-attr]
        rows.append(row)
    return rows


def _commit(place: Path) -> str:
    command = ["git", "-C", str(place), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _serve(rule: str, storages: list[str]) -> None:
    """Steps a tensor of each size when told a storage, and says what an element took."""
    import torch

    from steepest.lab.bench.cases import parse_storage
    from steepest.optimizer import Optimizer

    torch.set_num_threads(1)

    def made(storage: str, shape: tuple[int, int]) -> Optimizer:
        stored = parse_storage(storage)
        p = torch.randn(shape, dtype=torch.bfloat16 if stored.param else torch.float32)
        p.grad = torch.randn_like(p)
        options = {"state": stored.state, "param": stored.param}
        return Optimizer([p], rule, lr=1e-4, check_finite=False, **options)

    def seconds(optimizer: Optimizer) -> float:
        optimizer.step()
        start = time.perf_counter()
        for _ in range(STEPS):
            optimizer.step()
        return (time.perf_counter() - start) / STEPS

    pairs = {storage: (made(storage, LARGE), made(storage, SMALL)) for storage in storages}
    elements = LARGE[0] * LARGE[1] - SMALL[0] * SMALL[1]
    print("ready", flush=True)
    for line in sys.stdin:
        large, small = map(seconds, pairs[line.strip()])
        print((large - small) / elements * 1e9, flush=True)


if __name__ == "__main__":
    main()
