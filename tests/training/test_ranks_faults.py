"""What goes wrong on one rank: all decide alike, the rank is named, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import start
from session_cases import OBJECTIVES, finished

from steepest.contract import SteepestError
from steepest.training.check import check_plan
from steepest.training.checkpoint import Store
from steepest.training.config import parse_config
from steepest.training.fleet import checksum, differing
from steepest.training.journal import read_journal, read_metrics

RUN: Mapping[str, Any] = {
    **OBJECTIVES["next_token"],
    "model": "session_cases:still",
    "placement": "ddp",
    "steps": 4,
    "health": {"every": 1},
}
KEPT = {"every": None, "minutes": None, "background": False}
CASES: Mapping[str, Mapping[str, Any]] = {
    "gradient": {"changes": RUN, "fault": "nan_gradient"},
    "gradient/owned": {"changes": {**RUN, "placement": "zero1"}, "fault": "nan_gradient"},
    "gradient/cut": {"changes": {**RUN, "placement": "fsdp"}, "fault": "nan_shard"},
    "loss": {"changes": {**RUN, "accumulate": 3}, "fault": "nan_loss"},
    "signal": {"changes": {**RUN, "checkpoint": KEPT}, "fault": "sigterm", "step": 2},
    "signal/again": {"changes": {**RUN, "checkpoint": KEPT}},
    "undisturbed": {"changes": {**RUN, "checkpoint": KEPT}},
    "flipped": {"changes": RUN, "fault": "flipped", "step": 2},
    "slow": {"changes": RUN, "fault": "slow"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def told(folder: Path) -> list[dict[str, Any]]:
    """What two ranks have to tell of all cases that both survive."""
    found = start(2, folder, {name: case for name, case in CASES.items() if name != "signal/again"})
    (folder / "again").mkdir()
    (folder / "signal").rename(folder / "again" / "signal")
    again = start(2, folder / "again", {"signal": CASES["signal/again"]})
    return [{**own, "signal/again": more["signal"]} for own, more in zip(found, again, strict=True)]


def events(folder: Path, name: str, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_journal(folder / name) if line["kind"] == kind]


@pytest.mark.parametrize("name", ["gradient", "gradient/owned", "gradient/cut"])
def test_a_gradient_that_is_not_finite_on_one_rank_is_vetoed_on_all(
    folder: Path, told: list[dict[str, Any]], name: str
) -> None:
    assert told[0][name] == told[1][name] and told[0][name]["reason"] is None
    (veto,) = events(folder, name, "veto")
    assert veto["step"] == 2 and veto["culprits"] and "wte" in veto["culprits"][0]
    if name == "gradient/cut":  # a rank's own gradient is never whole there
        assert veto["culprits"] == ["transformer.wte.weight (rank 1)"]
    else:
        assert veto["why"] == "non-finite gradient on rank 1"
    assert [line["committed"] for line in read_metrics(folder / name)] == [True, False, True, True]


def test_a_loss_that_is_not_finite_names_rank_and_micro_batch(
    folder: Path, told: list[dict[str, Any]]
) -> None:
    (veto,) = events(folder, "loss", "veto")
    assert veto["why"] == "the loss is nan in micro-batch 1 of 3 on rank 1"
    assert told[0]["loss"]["attempt"] == told[1]["loss"]["attempt"] == 4


def test_a_signal_to_one_rank_saves_once_and_stops_all(folder: Path, told: list[dict[str, Any]]) -> None:
    assert told[0]["signal"]["stopped"] == told[1]["signal"]["stopped"] == 15
    run = folder / "again"
    saved = [line["why"] for line in events(run, "signal", "checkpoint")]
    assert saved == ["border", "signal", "end"], "and the next start ended the run"
    assert [line["generation"] for line in events(run, "signal", "resume")] == ["gen-000003"]


def test_what_is_continued_is_bitwise_what_was_not_stopped(folder: Path, told: list[dict[str, Any]]) -> None:
    whole, cut = (Store(folder / part / "checkpoints").load() for part in ("undisturbed", "again/signal"))
    assert whole.step == cut.step == 4
    for group, tensors in whole.tensors.items():
        if group != "curves":
            assert all(torch.equal(tensor, cut.tensors[group][name]) for name, tensor in tensors.items())


def test_a_copy_that_differs_ends_the_run_and_is_named(folder: Path, told: list[dict[str, Any]]) -> None:
    for own in told:
        assert "its copy of" in own["flipped"]["error"] and "at step 3" in own["flipped"]["error"]
    (finding,) = [f for f in events(folder, "flipped", "finding") if f["indicator"] == "replicas"]
    assert finding["level"] == "act"
    assert finding["where"] == "one of ranks 0, 1", "two cannot tell which of them is right"


def test_a_slow_rank_is_named_once(folder: Path, told: list[dict[str, Any]]) -> None:
    (finding,) = [f for f in events(folder, "slow", "finding") if f["indicator"] == "straggler"]
    assert finding["where"] == "rank 1" and finding["step"] == 3 and finding["value"] > 1.5


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("killed", "rank 1 is gone"),
        ("hung", "rank 1 did not answer within 4 s"),
        ("failing", "rank 1 ended: step 2: the reward function has divided by zero"),
    ],
)
def test_a_rank_that_is_lost_is_named_and_nobody_waits_for_ever(
    tmp_path: Path, fault: str, words: str
) -> None:
    cases = {"run": {"changes": RUN, "fault": fault}}
    left, _ = start(2, tmp_path, cases, timeout=4.0, whole=False)
    assert left["run"]["kind"] == "Lost" and words in left["run"]["error"]
    assert events(tmp_path, "run", "error")[0]["reason"] == left["run"]["error"]
    assert Store(tmp_path / "run" / "checkpoints").load().step == 1, "what was saved stands"


def test_of_four_ranks_the_lost_one_alone_is_named(tmp_path: Path) -> None:
    """Also by those who were not waiting for it, but for one who was."""
    cases = {"run": {"changes": RUN, "fault": "killed"}}
    told = start(4, tmp_path, cases, timeout=8.0, whole=False)
    said = [own["run"]["error"] for i, own in enumerate(told) if i != 1]
    assert "rank 1 is gone, while" in said[0]
    # Rank 0 keeps what the ranks meet at, and may have ended before another one has looked.
    assert all("rank 1 is gone, while" in words or "rank 0 is gone, with" in words for words in said)


# ---------------------------------------------------------------------- without processes


def test_most_ranks_are_right() -> None:
    same = {"a": 1, "b": 2}
    assert differing([same, same, same]) == {}
    assert differing([same, {"a": 1, "b": 3}, same]) == {1: ["b"]}
    assert differing([same, {"a": 7, "b": 3}]) == {0: ["a", "b"], 1: ["a", "b"]}
    assert differing([{"only here": 1}, {"only there": 2}]) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float64])
def test_one_flipped_bit_changes_a_checksum(dtype: torch.dtype) -> None:
    tensor = torch.arange(24).reshape(4, 6).to(dtype)
    other = tensor.clone()
    other.view(torch.uint8)[2, 3] ^= 16
    assert checksum(tensor) != checksum(other)
    assert checksum(tensor) == checksum(tensor.clone())


@pytest.mark.parametrize(
    ("changes", "ranks", "words"),
    [
        ({"placement": "one"}, 4, "placement one is a single process and 4 were started"),
        ({"placement": "ddp", "batch": 2}, 3, "a batch of 2 has no row for each of 3 ranks"),
    ],
)
def test_what_cannot_run_on_ranks_is_said_before(changes: Mapping[str, Any], ranks: int, words: str) -> None:
    base = {"optimizer": {"name": "adamw", "lr": 1e-3}, "data": "synthetic:0:4000"}
    with pytest.raises(SteepestError, match=words):
        check_plan(parse_config({**base, **changes}, "config"), ranks)


def test_a_misspelt_placement_is_offered_the_nearest() -> None:
    with pytest.raises(SteepestError, match="did you mean 'fsdp'"):
        parse_config({"optimizer": {"name": "adamw", "lr": 1e-3}, "placement": "fsdp2"}, "config")


def test_a_placement_without_ranks_is_one_process(tmp_path: Path) -> None:
    changes = {**RUN, "placement": "one"}
    finished(tmp_path / "one", changes)
    finished(tmp_path / "fsdp", {**changes, "placement": "fsdp"})
    ours, theirs = (read_metrics(tmp_path / name) for name in ("one", "fsdp"))
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]


def test_state_on_the_host_changes_no_number(tmp_path: Path) -> None:
    changes = {**RUN, "placement": "one"}
    finished(tmp_path / "here", changes)
    finished(tmp_path / "host", {**changes, "offload": True})
    ours, theirs = (read_metrics(tmp_path / name) for name in ("here", "host"))
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
