"""Sinks: training never waits for one, whatever it does; and what each library was given can be read back."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from steepest.contract import SteepestError
from steepest.integrations import TRACKERS, Channel, Sinks, open_sinks
from steepest.integrations.sinks import PATIENCE, flat_numbers
from steepest.integrations.trackers import flat_config


@dataclass(frozen=True)
class Told:
    step: int = 3
    indicator: str = "update_norm_spike"
    where: str = "the run"
    level: str = "warn"
    means: str = "the optimizer took a far larger step than before"
    do: str = "lower beta2"


class Recorder:
    """A sink that keeps what it is given; `before` runs ahead of every line."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.lines: list[tuple[int, Mapping[str, float]]] = []
        self.findings: list[Told] = []
        self.before, self.closed = before, False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.before()
        self.lines.append((step, values))

    def finding(self, finding: Told) -> None:
        self.before()
        self.findings.append(finding)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a hanging sink waits for; opened at the end, so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()


def test_everything_arrives_in_order_and_the_sink_is_closed() -> None:
    sink, told = Recorder(), []
    sinks = Sinks([Channel("good", lambda: sink, tell=told.append)])
    for step in range(50):
        sinks.log(
            step, {"loss": float(step), "layers": {"wte": {"lost": 0.5}}, "stage": "a", "bad": float("nan")}
        )
    sinks.finding(Told())
    sinks.close()
    assert [step for step, _ in sink.lines] == list(range(50))
    assert sink.lines[3][1] == {"loss": 3.0, "layers/wte/lost": 0.5}
    assert sink.findings == [Told()] and sink.closed
    assert told == [] and sinks.dropped == {"good": 0}


def test_a_sink_that_fails_is_switched_off_with_one_line_and_the_others_go_on() -> None:
    def fail() -> None:
        raise ConnectionError("no\nroute to host")

    told: list[str] = []
    bad, good = Recorder(fail), Recorder()
    sinks = Sinks(
        [Channel("bad", lambda: bad, tell=told.append), Channel("good", lambda: good, tell=told.append)]
    )
    for step in range(100):
        sinks.log(step, {"loss": 1.0})
    sinks.close()
    assert told[0] == "bad is switched off (ConnectionError: no route to host); training goes on."
    assert sum("switched off" in line for line in told) == 1
    assert sinks.dropped == {"bad": 100, "good": 0} and len(good.lines) == 100
    assert bad.closed, "it is closed all the same"


def test_an_error_now_and_then_loses_a_line_and_no_more() -> None:
    errors = iter([True, False] * (3 * PATIENCE))

    def sometimes() -> None:
        if next(errors):
            raise OSError("busy")

    told: list[str] = []
    sink = Recorder(sometimes)
    sinks = Sinks([Channel("moody", lambda: sink, tell=told.append)])
    for step in range(6 * PATIENCE):
        sinks.log(step, {"loss": 1.0})
    sinks.close()
    assert len(sink.lines) == 3 * PATIENCE and sinks.dropped == {"moody": 3 * PATIENCE}
    assert told == [f"moody has lost {3 * PATIENCE} lines (it was too slow, or failed now and then)."]


def test_a_sink_that_hangs_never_holds_training_up(gate: threading.Event) -> None:
    """The queue fills, the rest is dropped and counted, and closing gives up."""
    told: list[str] = []
    stuck, good = Recorder(lambda: bool(gate.wait()) and None), Recorder()
    sinks = Sinks(
        [
            Channel("stuck", lambda: stuck, room=10, tell=told.append),
            Channel("good", lambda: good, tell=told.append),
        ]
    )
    for step in range(500):
        sinks.log(step, {"loss": 1.0})
    sinks.close(timeout=0.2)
    assert sinks.dropped["stuck"] == 499 and len(good.lines) == 500, "one is in its hands"
    assert told[0] == "stuck is switched off (it did not finish within 0.2 s); training goes on."
    sinks.log(501, {"loss": 1.0})
    assert sinks.dropped["stuck"] == 500


def test_a_sink_that_cannot_be_opened_or_takes_for_ever_is_the_same(gate: threading.Event) -> None:
    def exits() -> Recorder:
        sys.exit(3)

    def waits() -> Recorder:
        gate.wait()
        return Recorder()

    told: list[str] = []
    sinks = Sinks(
        [Channel("exits", exits, tell=told.append), Channel("waits", waits, room=2, tell=told.append)]
    )
    for step in range(5):
        sinks.log(step, {"loss": 1.0})
    sinks.close(timeout=0.2)
    assert any(line.startswith("exits is switched off (SystemExit: 3)") for line in told)
    assert any(line.startswith("waits is switched off (it did not finish") for line in told)


def test_no_sinks_cost_nothing_and_say_nothing() -> None:
    sinks = open_sinks([], Path("nowhere"), {})
    sinks.log(1, {"loss": 1.0})
    sinks.finding(Told())
    sinks.close()
    assert sinks.dropped == {}


def test_a_misspelt_sink_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(SteepestError, match="unknown sink 'tensorbord'; did you mean 'tensorboard'"):
        open_sinks(["tensorbord"], tmp_path, {})


@pytest.mark.parametrize("name", TRACKERS)
def test_a_library_that_is_missing_is_said_before_anything_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(SteepestError, match=f"the sink {name} needs the package .*pip install"):
        open_sinks([name], tmp_path, {})


def test_configs_and_numbers_are_flattened() -> None:
    assert flat_config({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {"a.b": "1", "a.c": "[1, 2]", "d": "None"}
    assert flat_numbers({"a": {"b": True, "c": "x"}, "d": 2, "e": float("inf")}) == {"a/b": 1.0, "d": 2.0}


# ------------------------------------------------------------------ the libraries themselves

CONFIG: dict[str, Any] = {"seed": 7, "optimizer": {"name": "adamw", "lr": 3e-4}}

WRITE = """
import json, sys
from pathlib import Path
from steepest.integrations import open_sinks
from integrations.test_sinks import CONFIG, Told
name, folder = sys.argv[1:]
told = []
sinks = open_sinks([name], Path(folder), CONFIG, tell=told.append)
for step in range(1, 6):
    sinks.log(step, {"loss": 2.0 / step, "layers": {"wte": {"lost": 0.125}}, "stage": "sft"})
sinks.finding(Told())
sinks.close(60)
print(json.dumps({"told": told, "dropped": sinks.dropped}))
"""


@pytest.fixture(params=list(TRACKERS))
def written(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path]:
    """The name of a sink and the folder of a run that it was given, in a process and a home of its own."""
    name = str(request.param)
    if importlib.util.find_spec(TRACKERS[name].module) is None:
        pytest.skip(f"{TRACKERS[name].package} is not installed")
    folder = tmp_path / "run"
    folder.mkdir()
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", WRITE, name, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the sink sets it for itself; this is for reading
    assert json.loads(done.stdout.splitlines()[-1]) == {"told": [], "dropped": {name: 0}}, done.stderr
    return name, folder


EXPECTED = [(step, pytest.approx(2.0 / step)) for step in range(1, 6)]


def test_what_was_written_can_be_read_back(written: tuple[str, Path]) -> None:
    name, folder = written
    losses, layers, config, text = READERS[name](folder)
    assert losses == EXPECTED
    assert [value for _, value in layers] == [0.125] * 5
    assert "adamw" in config
    assert "a far larger step than before; lower beta2" in text


Read = tuple[list[tuple[int, float]], list[tuple[int, float]], str, str]


def read_tensorboard(folder: Path) -> Read:
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()

    def scalars(tag: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(tag)]

    def text(tag: str) -> str:
        return str(events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode())

    return scalars("loss"), scalars("layers/wte/lost"), text("config"), text("findings/update_norm_spike")


def read_wandb(folder: Path) -> Read:
    """The offline run's log, record by record."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    message = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    rows, config, alerts = [], "", ""
    for data in leveldb_records(path.read_bytes(), header=7):
        record = message.FromString(data)
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({key: json.loads(value) for key, value in items.items()})
        config += str(record.run.config) if record.HasField("run") else ""
        alerts += str(record.alert) if record.HasField("alert") else ""
    rows = [row for row in rows if "loss" in row]
    pick = [[(row["_step"], row[key]) for row in rows] for key in ("loss", "layers/wte/lost")]
    return pick[0], pick[1], config, alerts


def leveldb_records(data: bytes, header: int) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: 32 KiB blocks of (checksum, length, kind, piece)."""
    at, whole = header, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def read_mlflow(folder: Path) -> Read:
    uri = (folder / "mlruns").absolute().as_uri()
    client = importlib.import_module("mlflow.tracking").MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("steepest")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "run"

    def metric(key: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]

    tags = " ".join(run.data.tags.values())
    return metric("loss"), metric("layers/wte/lost"), str(run.data.params), tags


def read_trackio(folder: Path) -> Read:
    (path,) = (folder.parent / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = [
            (step, json.loads(text)) for step, text in database.execute("SELECT step, metrics FROM metrics")
        ]
        config = str(database.execute("SELECT config FROM configs").fetchall())
        alerts = str(database.execute("SELECT text FROM alerts").fetchall())
    rows = sorted((step, row) for step, row in rows if "loss" in row)
    return [(s, r["loss"]) for s, r in rows], [(s, r["layers/wte/lost"]) for s, r in rows], config, alerts


READERS: dict[str, Callable[[Path], Read]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
}


def test_every_tracker_is_read_back() -> None:
    assert set(READERS) == set(TRACKERS) and len(READERS) == 4
