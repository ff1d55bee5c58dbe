"""Records survive: round trips, damage of every kind, failing disks."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import plan, trial, write

from steepest.contract import SteepestError
from steepest.lab.records import checksum, read_records, read_study, write_record


@pytest.fixture
def record() -> dict[str, Any]:
    return trial(plan(), "adamw", "race", 4e-3, 101)


def test_round_trip(tmp_path: Path, record: dict[str, Any]) -> None:
    path = write_record(tmp_path, record)
    (back,), problems = read_records(tmp_path)
    assert problems == []
    assert path.name == f"{record['id']}.json"
    assert {**back, "checksum": None} == {**record, "checksum": None}
    assert back["checksum"] == checksum(record)


def test_a_diverged_trial_keeps_its_curve_with_nulls(tmp_path: Path) -> None:
    write_record(tmp_path, trial(plan(), "sgd", "tune", 4.0, 1, diverged=True))
    (back,), problems = read_records(tmp_path)
    assert problems == []
    assert back["curve"]["loss"][-1] is None
    assert back["final"]["loss"] is None
    assert ": NaN" not in (tmp_path / f"{back['id']}.json").read_text()


def test_no_folder_holds_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "trials") == ([], [])


def cut(text: str) -> str:
    return text[: len(text) // 2]


def changed(text: str) -> str:
    return json.dumps({**json.loads(text), "seed": 7})


def without(key: str) -> Any:
    def damage(text: str) -> str:
        rest = {k: v for k, v in json.loads(text).items() if k != key}
        return json.dumps({**rest, "checksum": checksum(rest)} if key != "checksum" else rest)

    return damage


def with_(**values: Any) -> Any:
    def damage(text: str) -> str:
        rest = {**json.loads(text), **values}
        return json.dumps({**rest, "checksum": checksum(rest)})

    return damage


DAMAGE = {
    "empty": (lambda text: "", "does not parse"),
    "cut short": (cut, "does not parse"),
    "one number changed": (changed, "checksum"),
    "no loss curve": (without("validation"), "lacks validation"),
    "no checksum": (without("checksum"), "lacks checksum"),
    "a list": (lambda text: "[]", "not a JSON object"),
    "not a number": (lambda text: text.replace("2.", "NaN, 2.", 1), "does not|checksum|finite|one length"),
    "a later format": (with_(format=2), "format is 2"),
    "ragged curve": (with_(curve={"step": [1], "tokens": [], "seconds": [], "loss": []}), "one length"),
    "another trial's": (with_(id="other"), "holds trial 'other'"),
    "a path for an id": (with_(id="../x"), "plain file name"),
    "no rate": (with_(hyper={}), "no learning rate"),
    "an unknown phase": (with_(phase="nap"), "unknown"),
    "an empty result": (with_(final={}), "result lacks one of"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_record_is_set_aside_and_named(tmp_path: Path, record: dict[str, Any], kind: str) -> None:
    damage, reason = DAMAGE[kind]
    path = write_record(tmp_path, record)
    sound = write_record(tmp_path, trial(plan(), "lion", "race", 5e-4, 101))
    damaged = damage(path.read_text())
    path.write_text(damaged)

    records, (problem,) = read_records(tmp_path)

    assert [r["id"] for r in records] == [sound.stem]
    assert problem.name == path.name
    assert re.search(reason, problem.reason), problem.reason
    assert not path.exists()
    assert (tmp_path / problem.set_aside).read_text() == damaged
    assert read_records(tmp_path) == (records, [])


def test_a_binary_record_is_set_aside(tmp_path: Path, record: dict[str, Any]) -> None:
    path = write_record(tmp_path, record)
    path.write_bytes(b"\xff\x00\xfe")
    assert [problem.name for problem in read_records(tmp_path)[1]] == [path.name]


def test_what_was_set_aside_is_never_overwritten(tmp_path: Path, record: dict[str, Any]) -> None:
    names = []
    for content in ("first", "second", "third"):
        write_record(tmp_path, record).write_text(content)
        names += [problem.set_aside for problem in read_records(tmp_path)[1]]
    assert len(set(names)) == 3
    assert [(tmp_path / name).read_text() for name in names] == ["first", "second", "third"]


def test_a_folder_that_cannot_be_renamed_in_still_names_the_problem(
    tmp_path: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_record(tmp_path, record)
    path.write_text("{")

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    records, (problem,) = read_records(tmp_path)
    assert (records, problem.set_aside) == ([], path.name)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failing_write_leaves_the_old_record_whole(
    tmp_path: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = write_record(tmp_path, record)
    before = path.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    if call == "write":
        monkeypatch.setattr("builtins.open", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(SteepestError, match="disk is full"):
        write_record(tmp_path, {**record, "parameters": 1})
    monkeypatch.undo()

    assert path.read_bytes() == before
    (back,), problems = read_records(tmp_path)
    assert (back["parameters"], problems) == (record["parameters"], [])


def test_a_power_cut_between_temporary_file_and_rename_leaves_the_old_record(
    tmp_path: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCut(BaseException):
        pass

    path = write_record(tmp_path, record)
    before = path.read_bytes()

    def cut_power(*args: Any) -> None:
        raise PowerCut

    monkeypatch.setattr(os, "replace", cut_power)
    with pytest.raises(PowerCut):
        write_record(tmp_path, {**record, "parameters": 1})
    monkeypatch.undo()

    assert path.read_bytes() == before
    records, problems = read_records(tmp_path)
    assert [r["parameters"] for r in records] == [record["parameters"]]
    assert problems == []


def test_an_incomplete_record_is_refused_at_writing(tmp_path: Path, record: dict[str, Any]) -> None:
    with pytest.raises(SteepestError, match="lacks hyper"):
        write_record(tmp_path, {k: v for k, v in record.items() if k != "hyper"})
    with pytest.raises(SteepestError, match="plain file name"):
        write_record(tmp_path, {**record, "id": "../../escape"})
    assert list(tmp_path.iterdir()) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_the_checksum_survives_json_and_does_not_depend_on_order(content: dict[str, Any]) -> None:
    back = json.loads(json.dumps(content))
    assert checksum(back) == checksum(content)
    assert checksum(dict(reversed(content.items()))) == checksum(content)


def test_the_checksum_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="JSON"):
        checksum({"loss": math.nan})


def test_read_study(tmp_path: Path) -> None:
    assert read_study(write(tmp_path / "s", plan(), [])) == plan()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no study"),
        ("{", "damaged"),
        ("[]", "lacks everything"),
        ('{"format": 1}', "lacks model"),
        (json.dumps({**plan(), "format": 9}), "format 9"),
    ],
)
def test_a_bad_plan_is_one_sentence(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(SteepestError, match=message):
        read_study(tmp_path)
