"""The toy models of the lab's tests, by import path, here too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "lab"))
