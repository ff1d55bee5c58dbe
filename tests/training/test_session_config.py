"""What a run that is continued accepts, refuses, and says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from session_cases import BASE, LIFE, finished, generations, session

from steepest.contract import SteepestError
from steepest.training import parse_config
from steepest.training.checkpoint import Store
from steepest.training.checkpoint.convert import torch_state
from steepest.training.export import export
from steepest.training.journal import read_journal, read_metrics
from steepest.training.saved_run import changes, ledger_of

TEXT: dict[str, Any] = {"data": "synthetic:0:4000", "steps": 4}


def cut(folder: Path, config: dict[str, Any], step: int = 2) -> None:
    """A run that went as far as this step."""

    def log(at: int, values: Any) -> None:
        if at > step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finished(folder, config, log=log)


def test_free_keys_may_change_and_the_difference_is_journaled(tmp_path: Path) -> None:
    cut(tmp_path, TEXT)
    told: list[str] = []
    free = {"checkpoint": {**BASE["checkpoint"], "keep": 7}, "health": {"every": 1}}
    made = finished(tmp_path, {**TEXT, **free}, tell=told.append)
    assert made.results[0].steps == 4
    said = [line["changed"] for line in read_journal(tmp_path) if line["kind"] == "config"]
    assert said == ["checkpoint.keep: 100 -> 7", "health.every: 2 -> 1"]
    assert told[0] == "continued with another checkpoint.keep: 100 -> 7"


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ({"seed": 4}, "seed: 3 -> 4"),
        (
            {"optimizer": {"name": "adamw", "lr": 0.02}},
            r"optimizer.lr: 0.01 -> 0.02.*weight_decay: 0.1 -> null",
        ),
        ({"steps": 9}, "steps: 4 -> 9"),
        ({"health": {"every": 1}, "batch": 2}, r"config \(batch: 4 -> 2\)"),
    ],
)
def test_other_keys_may_not_and_both_values_are_shown(
    edit: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    cut(tmp_path, TEXT)
    before = generations(tmp_path)
    with pytest.raises(SteepestError, match=sentence):
        finished(tmp_path, {**TEXT, **edit})
    assert generations(tmp_path) == before, "nothing was touched"
    assert not [line for line in read_journal(tmp_path) if line["kind"] == "config"]


def test_an_edited_stage_is_named_to_the_key(tmp_path: Path) -> None:
    first = [{"name": "a"}, {"name": "b", "optimizer": {"name": "adamw", "lr": 0.01}}]
    cut(tmp_path, {**TEXT, "stages": first})
    other = [{"name": "a"}, {"name": "b", "optimizer": {"name": "adamw", "lr": 0.5}}]
    with pytest.raises(SteepestError, match=r"\(stages\.1\.optimizer\.lr: 0\.01 -> 0\.5\)"):
        finished(tmp_path, {**TEXT, "stages": other})


@pytest.mark.parametrize("config", [TEXT, LIFE], ids=["one stage", "five"])
def test_a_finished_run_says_so_and_trains_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    once = finished(tmp_path, config)
    lines, told = read_metrics(tmp_path), list[str]()
    again = finished(tmp_path, config, tell=told.append)
    assert told == ["this run is finished"]
    assert read_metrics(tmp_path) == lines
    assert [r.record() for r in again.results] == [r.record() for r in once.results]
    export(again, tmp_path)
    assert (tmp_path / "model").is_dir() and (tmp_path / "run.json").is_file()
    state = torch_state(Store(tmp_path / "checkpoints").load())
    assert len(state["state"]) >= 10, "the optimizer's state is there, for whoever wants to go on with it"


def test_a_damaged_generation_is_passed_over_and_told_of(tmp_path: Path) -> None:
    cut(tmp_path, TEXT, step=3)
    newest = max((tmp_path / "checkpoints").glob("gen-*"))
    tensors = max(newest.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(tensors.read_bytes())
    data[-3] ^= 1
    tensors.write_bytes(bytes(data))
    told: list[str] = []
    finished(tmp_path, TEXT, tell=told.append)
    assert newest.name in told[0] and "passed over" in told[0]
    assert told[1] == "continued from gen-000002"
    (event,) = (line for line in read_journal(tmp_path) if line["kind"] == "damaged")
    assert newest.name in event["reason"]
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == [1, 2, 3, 4]


def test_weights_that_are_not_finite_are_not_continued(tmp_path: Path) -> None:
    cut(tmp_path, TEXT)
    made = session(tmp_path, TEXT)
    found = made.archive.store.load()
    made.restore(found)
    assert made.built is not None
    next(made.built.model.parameters()).data[0, 0] = float("inf")
    made.save("test", wait=True)
    with pytest.raises(SteepestError, match="not finite in model/transformer"):
        finished(tmp_path, TEXT)


def test_a_buffer_may_hold_what_it_likes(tmp_path: Path) -> None:
    """A mask of minus infinity is no damage."""
    masked = {**TEXT, "model": "session_cases:masked"}
    cut(tmp_path, masked)
    assert finished(tmp_path, masked).results[0].steps == 4


def test_differences_are_found_wherever_they_are() -> None:
    then = parse_config({**BASE, **LIFE}, "then").model_dump(mode="json")
    assert changes(then, then) == []
    now = {**then, "stages": then["stages"][:2], "threads": None}
    assert [key for key, _ in changes(then, now)] == ["threads", "stages"]


def test_a_ledger_tells_everything_once() -> None:
    told = ledger_of(10, skipped=[3, 4, 5, 12], vetoed=[7])
    assert told == {"trained": [[0, 2], [6, 6], [8, 9]], "skipped": [[3, 5]], "vetoed": [[7, 7]]}
    assert ledger_of(0, [], []) == {"trained": [], "skipped": [], "vetoed": []}
