"""A finished study as one small file of figures, to be committed.

make compare && python bench/compare.py runs/compare --out bench/results/compare.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from steepest.lab.analysis import Result, analyse
from steepest.lab.records import read_records, read_study
from steepest.lab.report import verdict


def row(result: Result) -> dict[str, Any]:
    """One optimizer: verdict, losses by seed, the paired difference, its sweep, its cost."""
    gap = result.difference
    return {
        "verdict": result.verdict,
        "lr": result.lr,
        "loss": result.loss.mean if result.loss else None,
        "losses": result.losses,
        "difference": gap and {"mean": gap.mean, "low": gap.low, "high": gap.high, "holm_p": result.holm_p},
        "sweep": {f"{lr:g}": loss for lr, loss in result.sweep.points.items()},
        "basin_factor": result.sweep.basin.factor if result.sweep.basin else None,
        "optimizer_ms": result.optimizer_ms,
        "step_ms": result.step_ms,
        "state_bytes": result.state_bytes,
        "trials": result.trials,
        "diverged": result.diverged,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    study = read_study(arguments.study)
    summary = analyse(study, read_records(arguments.study / "trials")[0])
    kept = ("model", "data", "tokenizer", "parameters", "config", "seeds", "tuning_seed", "versions")
    record = {
        "command": study["command"],
        **{key: study[key] for key in (*kept, "environment")},
        "verdict": verdict(summary, study),
        "results": {result.name: row(result) for result in summary.results},
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
