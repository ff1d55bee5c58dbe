"""What is saved by stepping inside the backward pass: peak memory of a training step, with and without.

    python bench/release.py                # writes bench/results/release.json

GPT-2-124M's layers, one sequence of 64 tokens, AdamW, each way in a process of its own: the peak of the
process over what it had with the model and the optimizer's state, in MiB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

RESULT = Path(__file__).parent / "results" / "release.json"
STEPS = 3
WAYS = ("step", "release", "release, two passes")


def run(way: str, send: Any) -> None:
    """Train a few steps in one way; sends the peak and the median step."""
    import steepest
    from steepest.models import build_model

    torch.set_num_threads(1)
    model = build_model("gpt2-124m", vocab_size=50257, context=64, seed=0)
    optimizer = steepest.AdamW(model.parameters(), lr=1e-6, max_grad_norm=1.0)
    ids = torch.arange(64).view(1, 64)
    with torch.no_grad():
        model(input_ids=ids)
    release = steepest.Release(optimizer) if way != "step" else None
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []

    def backward() -> None:
        model(input_ids=ids, labels=ids).loss.backward()

    for _ in range(STEPS):
        start = time.perf_counter()
        if release is None:
            backward()
            optimizer.step()
            optimizer.zero_grad()
        elif way == "release":
            backward()
            release.finish()
        else:
            release.exact(backward)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    gradients = sum(p.numel() * 4 for p in model.parameters()) / 2**20
    send.send({"peak_mib": peak / 1024, "gradients_mib": gradients, "step_s": statistics.median(seconds[1:])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    context, found = multiprocessing.get_context("spawn"), {}
    for way in WAYS:
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=run, args=(way, send))
        process.start()
        send.close()
        found[way] = receive.recv()
        process.join()
    record = {"command": "python bench/release.py", "model": "gpt2-124m", "ways": found}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
