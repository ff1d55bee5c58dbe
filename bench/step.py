"""One step of every optimizer against every peer's, and the tables of docs/performance.md.

    python bench/step.py --out bench/results/step.json     # measure, then write the page
    python bench/step.py --page bench/results/step.json    # only the page

Every further option is one of `steepest bench step`. How it is measured: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from steepest.lab.bench import page

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULT = ROOT / "bench" / "results" / "step.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path)
    arguments, further = parser.parse_known_args()
    if arguments.page is None:
        command = "import sys; from steepest.cli import main; sys.argv[0] = 'steepest'; main()"
        subprocess.run(
            [sys.executable, "-c", command, "bench", "step", "--out", str(arguments.out), *further],
            check=True,
        )
    source = arguments.page or arguments.out
    PAGE.write_text(page(json.loads(source.read_text()), PAGE.read_text()))


if __name__ == "__main__":
    main()
