"""What needs Triton's interpreter runs in a process of its own: the interpreter is chosen once a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steepest.kernels.triton import available

TESTS = Path(__file__).parents[1]
FILES = [
    *("engines/test_gpu_steps.py", "engines/test_gpu_verdict.py", "engines/test_gpu_shards.py"),
    "kernels/test_triton_values.py",
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_in_the_interpreter(file, marked):
    if (why := available()) is not None:
        pytest.skip(why)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, str(TESTS / file)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
    )
    none = run.returncode == 5 and marked == "slow"  # pytest's word for nothing to run
    assert none or (run.returncode == 0 and " passed" in run.stdout), run.stdout[-5000:] + run.stderr[-2000:]
