"""A bigram model that leaves a trace when it is trained, and can be made to die or to wait on the way.

By import path: `mortal:bigram`. What it does is told by files in the folder that MORTAL names, so that it
can be told while its process runs: `armed` kills the first process that gets to it, `deadly` all of them.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from torch import Tensor, nn
from toys import bigram as plain

FOLDER = "MORTAL"
PROBE = 6
"""Steps of a study's first try: a model that is trained for longer belongs to a trial."""


class Mortal(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table, self.calls = plain(vocab_size), 0

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += self.training
        if self.training and self.calls == PROBE + 1 and FOLDER in os.environ:
            meet(Path(os.environ[FOLDER]))
        out: Tensor = self.table(ids)
        return out


def bigram(vocab_size: int) -> nn.Module:
    return Mortal(vocab_size)


def meet(folder: Path) -> None:
    """In the middle of a trial."""
    with open(folder / "runs", "a") as file:
        file.write(f"{os.getpid()}\n")
    if (folder / "deadly").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        (folder / "armed").rename(folder / f"died-{os.getpid()}")
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def runs(folder: Path) -> int:
    """How many trials got to their middle, dead ones among them."""
    path = folder / "runs"
    return len(path.read_text().splitlines()) if path.exists() else 0
