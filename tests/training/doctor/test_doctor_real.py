"""The doctor on runs that were really trained: at a good rate, thirty times that, a tenth, a hundredth."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from steepest.training.doctor import Diagnosis, diagnose


def trained(folder: Path, rate: float) -> Diagnosis:
    config = folder / "run.yaml"
    config.write_text(f"optimizer: {{name: adamw, lr: {rate}, betas: [0.9, 0.95]}}\nthreads: 1\nsteps: 160\n")
    command = [sys.executable, "-c", "from steepest.cli import main; main()", "train", str(config)]
    done = subprocess.run(
        [*command, "--out", str(folder / "run")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return diagnose(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "answer"),
    [
        (4e-3, None),
        (0.12, "Yes: the learning rate is too high."),
        (4e-4, "Perhaps: the learning rate is too low, or the run too short."),
        (4e-5, "Yes: the learning rate is too low, or the run too short."),
    ],
)
def test_the_rate_of_a_real_run_is_judged(tmp_path: Path, rate: float, answer: str | None) -> None:
    found = trained(tmp_path, rate)
    assert found.healthy == (answer is None)
    assert found.urgent == (answer is not None and answer.startswith("Yes"))
    assert answer is None or found.answer == answer
