"""One step of every optimizer against every peer's, and the tables of docs/performance.md.

    python bench/step.py --out bench/results/step.json     # measure, then write the page
    python bench/step.py --update -r lars -c fp32,int8     # these cases anew, the others as they were
    python bench/step.py --page bench/results/step.json    # only the page
    python bench/step.py --out bench/results/step_avx512.json --into docs/performance-avx512.md

Every further option is one of `steepest bench step`. How it is measured: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from steepest.lab.bench import page, updated

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULT = ROOT / "bench" / "results" / "step.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--update", action="store_true")
    arguments, further = parser.parse_known_args()
    if arguments.page is None:
        _measure(arguments.out, arguments.update, further)
    source, into = arguments.page or arguments.out, arguments.into or PAGE
    into.write_text(page(json.loads(source.read_text()), into.read_text()))


def _measure(out: Path, update: bool, further: list[str]) -> None:
    with TemporaryDirectory() as folder:
        new = Path(folder) / out.name if update else out  # which keeps what a run had when it was stopped
        command = "import sys; from steepest.cli import main; sys.argv[0] = 'steepest'; main()"
        line = [sys.executable, "-c", command, "bench", "step", "--out", str(new), *further]
        subprocess.run(line, check=True)
        record = json.loads(new.read_text())
    record["command"] = shlex.join(["python", "bench/step.py", *["--update"] * update, *further])
    if update:
        record = updated(json.loads(out.read_text()), record)
    out.write_text(_on_one_line(json.dumps(record, indent=1)) + "\n")


def _on_one_line(text: str) -> str:
    """The rounds of a racer on one line, not one a line."""
    return re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)


if __name__ == "__main__":
    main()
