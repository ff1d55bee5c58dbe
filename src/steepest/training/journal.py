"""The two diaries of a run: `journal.jsonl`, what happened, and `metrics.jsonl`, the numbers of its steps."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from steepest.training.files import write_atomic

log = logging.getLogger("steepest")

JOURNAL, METRICS = "journal.jsonl", "metrics.jsonl"


class Journal:
    """Appends JSON lines to the diaries in `folder`.

    Writing never raises into training: a line that cannot be written (a full disk) is counted in `lost`,
    and the first one is told of. A line is in the hands of the system before the call returns, so a killed
    process loses none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.lost = Path(folder), 0
        self._files: dict[str, BinaryIO] = {}

    def event(self, kind: str, step: int, **facts: Any) -> None:
        """Something happened at this step; `facts` are numbers, texts, lists or mappings of them."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._append(JOURNAL, {"kind": kind, "step": step, "time": now, **facts})

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """The numbers of a step; `values` may hold a "step" of its own."""
        self._append(METRICS, {"step": step, **values})

    def trim(self, step: int) -> None:
        """Forget the metrics after this attempt (after this step, where a line has no "attempt"), which are
        going to be measured again. Raises SteepestError if the file cannot be replaced."""
        self.close()
        lines = _read(self.folder / METRICS)
        kept = [line for line in lines if _place(line) <= step]
        if len(kept) < len(lines):
            write_atomic(self.folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))

    def close(self) -> None:
        """Let go of the files; the next line opens them again."""
        while self._files:
            self._files.popitem()[1].close()

    def _append(self, name: str, line: dict[str, Any]) -> None:
        try:
            file = self._files.get(name) or self._open(name)
            data = json.dumps(finite(line), allow_nan=False).encode() + b"\n"
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if stale := self._files.pop(name, None):
                stale.close()
            if not self.lost:
                log.warning("%s is not written (%s); training goes on without", self.folder / name, error)
            self.lost += 1

    def _open(self, name: str) -> BinaryIO:
        """Open for appending, on a line of its own: the last one may be torn."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = open(self.folder / name, "a+b", buffering=0)  # noqa: SIM115
        self._files[name] = file
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        return file


class Unwritten(Journal):
    """The diaries of a rank that keeps none: rank 0 writes for all."""

    def trim(self, step: int) -> None:
        pass

    def _append(self, name: str, line: dict[str, Any]) -> None:
        pass


def finite(line: Mapping[str, Any]) -> dict[str, Any]:
    """`line` as JSON can hold it: a number that is not finite becomes null, and its key is in "nonfinite"
    ("layers/wte/update_rms" for one further in). Tensors of one element are numbers."""
    lost: list[str] = []
    out = {str(key): _plain(value, str(key), lost) for key, value in line.items()}
    return {**out, "nonfinite": lost} if lost else out


def _plain(value: Any, path: str, lost: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{path}/{key}", lost) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, f"{path}/{i}", lost) for i, inner in enumerate(value)]
    if not isinstance(value, (bool, int, float, str, type(None))):
        value = value.item() if math.prod(getattr(value, "shape", (0,))) == 1 else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        lost.append(path)
        return None
    return value


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Every whole line of a run's metrics, in the order written; a line that is torn is left out."""
    return _read(Path(folder) / METRICS)


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """Every whole line of a run's journal, in the order written; a line that is torn is left out."""
    return _read(Path(folder) / JOURNAL)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    found = map(_parse, data.split(b"\n"))
    return [line for line in found if isinstance(line, dict)]


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _place(line: Mapping[str, Any]) -> float:
    """Where in the run a line of metrics was measured; one that does not say stays."""
    place = line.get("attempt", line.get("step"))
    return place if isinstance(place, (int, float)) else -math.inf
