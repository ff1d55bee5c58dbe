"""The foreach engine against torch's own foreach, at GPT-2-124M shapes, interleaved in one run.

    python bench/foreach.py --out bench/results/foreach.json     # measure, then write docs/performance.md
    python bench/foreach.py --page bench/results/foreach.json    # only the page's table

"engine" is the update alone, the like of what torch does; "step" is a whole `Optimizer.step()`, which also
reads the gradients once more to refuse a non-finite one; "clipped" is that step with global-norm clipping,
against `clip_grad_norm_` and torch's step. Rounds alternate their order. With one thread the CPU time of that
thread is measured, which other processes disturb little; with more, the time on the wall, which they do.
"""

from __future__ import annotations

import argparse
import json
import os
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


PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
START, END = "<!-- table: python bench/foreach.py -->", "<!-- end of table -->"


def run(rounds: int, threads: int) -> dict[str, Any]:
    """Milliseconds a step, ours and torch's, interleaved on one set of parameters."""
    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
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
                start = clock()
                runs[key]()
                if i:
                    times[key].append((clock() - start) * 1e3)
        slots = sum(isinstance(x, torch.Tensor) for x in mine.state[params[0]].values())
        out[name] = {"bytes": 4 * (3 + 2 * slots)}
        for which, of in {"median": statistics.median, "best": min}.items():
            ms = {key: of(t) for key, t in times.items()}
            out[name][which] = {
                "ms": {key: round(t, 1) for key, t in ms.items()},
                "ratio_to_torch": {
                    "engine": round(ms["engine"] / ms["torch"], 3),
                    "step": round(ms["step"] / ms["torch"], 3),
                    "clipped": round(ms["clipped"] / ms["torch_clipped"], 3),
                },
            }
        print(threads, name, {w: out[name][w]["ratio_to_torch"] for w in ("median", "best")}, flush=True)
    return out


def table(record: dict[str, Any]) -> str:
    """The measurements as a table in Markdown, one row a case and number of threads."""
    head = (
        "| case | bytes a parameter | threads | engine ms | torch ms | engine / torch | best / best "
        "| step / torch | clipped / torch clipped |"
    )
    rows = [head, "|---|" + "---:|" * 8]
    for threads, cases in record["threads"].items():
        for name, case in cases.items():
            ms, ratio = case["median"]["ms"], case["median"]["ratio_to_torch"]
            best = case["best"]["ratio_to_torch"]["engine"]
            rows.append(
                f"| {name} | {case['bytes']} | {threads} | {ms['engine']:.0f} | {ms['torch']:.0f} "
                f"| {ratio['engine']:.2f} | {best:.2f} | {ratio['step']:.2f} | {ratio['clipped']:.2f} |"
            )
    return "\n".join(rows)


def page(record: dict[str, Any], text: str) -> str:
    """The page with the table of this record in its place."""
    before, rest = text.split(START)
    return f"{before}{START}\n\n{table(record)}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    source = arguments.page
    if source is None:
        record = {
            "command": f"python bench/foreach.py --rounds {arguments.rounds}",
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "load_before": round(os.getloadavg()[0], 2),
            "versions": {"torch": torch.__version__, "steepest": steepest.__version__},
            "parameters": sum(torch.Size(shape).numel() for shape in GPT2),
            "threads": {str(n): run(arguments.rounds, n) for n in dict.fromkeys(arguments.threads)},
        }
        source = arguments.out
        if source is not None:
            source.write_text(json.dumps(record, indent=1) + "\n")
    if source is not None:
        PAGE.write_text(page(json.loads(source.read_text()), PAGE.read_text()))


if __name__ == "__main__":
    main()
