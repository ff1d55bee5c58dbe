"""What the lifecycle example comes to, over seeds: the loss, and the answers right before and after RL.

    python bench/lifecycle.py --seeds 0 1 2 --out bench/results/lifecycle.json

Each seed runs `steepest train --example lifecycle` whole, with that seed for weights, data and answers; the
validation prompts are the same for all. One thread each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import steepest.training
from steepest.lab.bench.facts import machine, today, versions
from steepest.lab.statistics import mean_interval
from steepest.training import Session, load_config, write_atomic

EXAMPLE = Path(steepest.training.__path__[0]) / "examples" / "lifecycle.yaml"


def run(seed: int) -> list[dict[str, Any]]:
    """The stages of one run: name, unit, and its validation at the start and at the end."""
    config = load_config(EXAMPLE).model_copy(update={"seed": seed, "threads": 1})
    with tempfile.TemporaryDirectory() as folder:
        results = Session(config, Path(folder)).run()
    return [
        {
            "name": result.name,
            "unit": result.unit,
            "start": result.curves[1].loss[0],
            "end": result.curves[1].loss[-1],
            "seconds": round(result.seconds, 1),
            "reason": result.reason,
        }
        for result in results
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs = {str(seed): run(seed) for seed in arguments.seeds}
    summary = {}
    for stages in zip(*runs.values(), strict=True):  # the same stage of every seed
        numbers = {
            "start": [stage["start"] for stage in stages],
            "end": [stage["end"] for stage in stages],
            "rise": [stage["end"] - stage["start"] for stage in stages],
        }
        found = {key: asdict(mean_interval(values)) for key, values in numbers.items()}
        summary[stages[0]["name"]] = {"unit": stages[0]["unit"], **found}
    record = {
        "command": f"python bench/lifecycle.py --seeds {' '.join(map(str, arguments.seeds))}",
        "date": today(),
        "machine": machine("cpu"),
        "versions": versions(),
        "runs": runs,
        "summary": summary,
    }
    write_atomic(arguments.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
