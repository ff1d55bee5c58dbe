"""A study on disk: one plan, `study.json`, and one self-contained record per trial.

    study/
      study.json          what is compared, on what, with which seeds
      trials/<id>.json    one trial: its config, seed, versions, data digest, curves and result

Every record carries a SHA-256 of the rest of itself. One that does not parse, does not match its
checksum or lacks a key is set aside as `<name>.corrupt` and named, so that the trial is run again.
Losses are nats per token; seconds exclude evaluation and warm-up; a diverged trial has no final loss.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from steepest.contract import SteepestError
from steepest.training.files import write_atomic

FORMAT = 1


class Series(TypedDict):
    """Losses along a run; the four lists have one length. A loss that was not finite is None."""

    step: list[int]
    tokens: list[int]
    seconds: list[float]
    loss: list[float | None]


class Final(TypedDict):
    """The end of a run: nats per token, bits per byte, seconds and milliseconds; None if it diverged."""

    loss: float | None
    bits_per_byte: float | None
    train_seconds: float | None
    step_ms: float | None
    optimizer_ms: float | None


class Record(TypedDict):
    """One trial, as it stands in its file."""

    format: int
    id: str
    phase: Literal["tune", "race"]
    optimizer: str
    title: str
    hyper: dict[str, Any]
    seed: int
    status: Literal["finished", "diverged"]
    reason: str | None
    config: dict[str, Any]
    versions: dict[str, Any]
    data: dict[str, Any]
    model_digest: str
    routing_digest: str
    parameters: int
    state_bytes: int
    curve: Series
    validation: Series
    final: Final
    checksum: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that could not be used: its file's name, what is wrong, and the name it was given."""

    name: str
    reason: str
    set_aside: str


STUDY_KEYS = (
    *("format", "model", "data", "tokenizer", "parameters", "baseline", "optimizers", "steps", "batch"),
    *(
        "context",
        "tokens_per_trial",
        "clip",
        "schedule",
        "tuning_seed",
        "seeds",
        "grid_factor",
        "config",
        "model_digest",
    ),
    *("versions", "environment", "command"),
)


def checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the record without its checksum, as canonical JSON."""
    rest = {key: value for key, value in record.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_record(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write `<folder>/<id>.json`, sealed with its checksum; power loss leaves the old file or the new.

    Numbers that are not finite become null, which is all that JSON has for them.
    """
    plain = _finite({key: value for key, value in record.items() if key != "checksum"})
    fault = _fault({**plain, "checksum": ""})
    if fault:
        raise SteepestError(f"trial {record.get('id')!r} cannot be recorded: {fault}.")
    path = Path(folder) / f"{plain['id']}.json"
    write_atomic(path, json.dumps({**plain, "checksum": checksum(plain)}, indent=1, allow_nan=False) + "\n")
    return path


def read_records(folder: Path) -> tuple[list[Record], list[Problem]]:
    """All sound records of a folder, in order of id, and what was set aside. No folder: none."""
    records: list[Record] = []
    problems: list[Problem] = []
    for path in sorted(Path(folder).glob("*.json")):
        record, fault = _read(path)
        if fault:
            problems.append(Problem(path.name, fault, _set_aside(path)))
        else:
            records.append(cast(Record, record))
    return records, problems


def find_record(folder: Path, key: str) -> Record | None:
    """The record of one trial, if there is a sound one."""
    record, fault = _read(Path(folder) / f"{key}.json")
    return None if fault else cast(Record, record)


def read_study(study_dir: Path) -> dict[str, Any]:
    """The plan of a study. Raises SteepestError if there is none or it cannot be read."""
    path = Path(study_dir) / "study.json"
    try:
        study = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SteepestError(
            f"{study_dir} holds no study (no study.json); make one with `steepest compare --out {study_dir}`."
        ) from None
    except OSError as error:
        raise SteepestError(f"cannot read {path} ({error.strerror}); check its permissions.") from error
    except ValueError as error:
        raise SteepestError(f"{path} is damaged ({error}); run the comparison again to write it.") from None
    missing = [key for key in STUDY_KEYS if key not in study] if isinstance(study, dict) else ["everything"]
    if missing:
        raise SteepestError(f"{path} lacks {', '.join(missing)}; run the comparison again to write it.")
    if study["format"] != FORMAT:
        raise SteepestError(
            f"{path} has format {study['format']!r}, not {FORMAT}; use the version that wrote it."
        )
    return cast(dict[str, Any], study)


def _read(path: Path) -> tuple[Any, str | None]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return None, f"it does not parse ({error})"
    fault = _fault(record)
    if fault is None and record["id"] != path.stem:
        fault = f"it holds trial {record['id']!r}"
    try:
        if fault is None and checksum(record) != record["checksum"]:
            fault = "its checksum does not match its content"
    except ValueError:
        fault = "it holds numbers that are not finite"
    return record, fault


def _fault(record: Any) -> str | None:
    """What keeps this from being a record, or None. Checks shape, not truth."""
    if not isinstance(record, dict):
        return "it is not a JSON object"
    missing = [key for key in Record.__annotations__ if key not in record]
    if missing:
        return f"it lacks {', '.join(missing)}"
    if record["format"] != FORMAT:
        return f"its format is {record['format']!r}, not {FORMAT}"
    if not isinstance(record["id"], str) or not re.fullmatch(
        r"[A-Za-z0-9_+=-][A-Za-z0-9._+=-]*", record["id"]
    ):
        return "its id is not a plain file name"
    if record["phase"] not in ("tune", "race") or record["status"] not in ("finished", "diverged"):
        return "its phase or status is unknown"
    for name in ("curve", "validation"):
        if not _is_series(record[name]):
            return f"its {name} is not four lists of one length"
    if not isinstance(record["final"], dict) or not Final.__annotations__.keys() <= record["final"].keys():
        return f"its result lacks one of {', '.join(Final.__annotations__)}"
    if not isinstance(record["hyper"], dict) or not isinstance(record["hyper"].get("lr"), (int, float)):
        return "it has no learning rate"
    loss = record["final"]["loss"]
    if record["status"] == "finished" and not isinstance(loss, (int, float)):
        return "it finished without a loss"
    return None


def _is_series(series: Any) -> bool:
    if not isinstance(series, dict):
        return False
    lists: list[Any] = [series.get(key) for key in Series.__annotations__]
    return all(isinstance(part, list) for part in lists) and len(set(map(len, lists))) == 1


def _set_aside(path: Path) -> str:
    """Rename to the first free `<name>.corrupt`; the bytes are kept. Returns the name it now has."""
    target = path.with_name(f"{path.name}.corrupt")
    number = 2
    while target.exists():
        target = path.with_name(f"{path.name}.corrupt-{number}")
        number += 1
    try:
        path.rename(target)
    except OSError:
        return path.name
    return target.name


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value
