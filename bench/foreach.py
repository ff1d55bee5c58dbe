"""The foreach engine against torch's own foreach, at GPT-2-124M shapes, interleaved in one run.

    python bench/foreach.py --out bench/results/foreach.json

Times are medians of interleaved rounds; read the ratios, the machine is noisy. "engine" is the update
alone, the like of what torch does; "step" is a whole `Optimizer.step()`, which also reads the gradients
once more to refuse a non-finite one; "clipped" is that step with global-norm clipping, against
`clip_grad_norm_` and torch's step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import steepest
from steepest.optimizer import Verdict

WIDTH, LAYERS, VOCABULARY, CONTEXT = 768, 12, 50257, 1024
BLOCK = [
    *[(WIDTH,)] * 4,
    (WIDTH, 3 * WIDTH),
    (3 * WIDTH,),
    (WIDTH, WIDTH),
    (WIDTH,),
    (WIDTH, 4 * WIDTH),
    (4 * WIDTH,),
    (4 * WIDTH, WIDTH),
    (WIDTH,),
]
GPT2 = [(VOCABULARY, WIDTH), (CONTEXT, WIDTH), *BLOCK * LAYERS, (WIDTH,), (WIDTH,)]

CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "SGD": (steepest.SGD, torch.optim.SGD, {}),
    "SGD momentum": (steepest.SGD, torch.optim.SGD, {"momentum": 0.9}),
    "RMSprop": (steepest.RMSprop, torch.optim.RMSprop, {}),
    "Adagrad": (steepest.Adagrad, torch.optim.Adagrad, {}),
    "Adam": (steepest.Adam, torch.optim.Adam, {}),
    "AdamW": (steepest.AdamW, torch.optim.AdamW, {}),
}


def run(rounds: int) -> dict[str, Any]:
    """Milliseconds a step, ours and torch's, interleaved on one set of parameters."""
    params = [torch.randn(shape).mul_(0.02).requires_grad_() for shape in GPT2]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    out = {}
    for name, (ours, theirs, options) in CASES.items():
        mine = ours(params, lr=1e-6, foreach=True, **options)
        clipping = ours(params, lr=1e-6, foreach=True, max_grad_norm=1e9, **options)
        other = theirs(params, lr=1e-6, foreach=True, **options)
        engine = ours(params, lr=1e-6, foreach=True, **options)
        engine._decide = lambda work: Verdict(True, 1.0)

        def clip_and_step(other: Any = other) -> None:
            torch.nn.utils.clip_grad_norm_(params, 1e9)
            other.step()

        runs = {
            "engine": engine.step,
            "torch": other.step,
            "step": mine.step,
            "clipped": clipping.step,
            "torch_clipped": clip_and_step,
        }
        times: dict[str, list[float]] = {key: [] for key in runs}
        for i in range(rounds + 1):
            for key in list(runs) if i % 2 else list(runs)[::-1]:
                start = time.perf_counter()
                runs[key]()
                if i:
                    times[key].append((time.perf_counter() - start) * 1e3)
        ms = {key: statistics.median(t) for key, t in times.items()}
        ratios = {
            "engine": ms["engine"] / ms["torch"],
            "step": ms["step"] / ms["torch"],
            "clipped": ms["clipped"] / ms["torch_clipped"],
        }
        out[name] = {
            "ms": {key: round(t, 1) for key, t in ms.items()},
            "ratio_to_torch": {key: round(r, 3) for key, r in ratios.items()},
        }
        print(name, out[name], flush=True)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cases = run(arguments.rounds)
    record = {
        "command": f"python bench/foreach.py --rounds {arguments.rounds}",
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__, "steepest": steepest.__version__},
        "parameters": sum(torch.Size(shape).numel() for shape in GPT2),
        "cases": cases,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
