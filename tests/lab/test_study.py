"""A study: the same numbers however it is run, and nothing lost however it stops."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from steepest.contract import SteepestError
from steepest.lab import Estimate, Question, Study, parse_budget
from steepest.lab.analysis import analyse
from steepest.lab.pool import Job
from steepest.lab.records import Record, checksum, read_records, read_study, write_record
from steepest.lab.trial import model_digest, run_trial, trial_id
from steepest.training import RunConfig, run

NAMES = ("adamw", "lion", "sgd")
SEEDS = 2


def ask(**changes: Any) -> Question:
    """Three optimizers, two seeds, twenty steps of a bigram model: a study of a second."""
    asked = {
        "model": "toys:bigram",
        "data": "synthetic:0:20000",
        "optimizers": NAMES,
        "budget": parse_budget("20steps"),
        "seeds": SEEDS,
        "batch": 2,
        "context": 16,
        "workers": 1,
    }
    return Question(**{**asked, **changes})


class Serial:
    """What the pool promises, in this process: spawning one takes seconds."""

    def __init__(self, task: Callable[..., Any], workers: int) -> None:
        self.task = task

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *reason: Any) -> None:
        return None

    def run(self, next_jobs: Callable[[], list[Job]]) -> Iterator[tuple[str, Any]]:
        queue = next_jobs()
        while queue:
            key, arguments = queue.pop(0)
            yield key, self.task(**arguments)
            queue += next_jobs()


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steepest.lab.study.Pool", Serial)


def complete(question: Question, folder: Path) -> tuple[Estimate, int]:
    """Plan and run to the end; what was planned, and how many trials ran."""
    with Study(question, folder) as study:
        estimate = study.plan()
        return estimate, sum(1 for _ in study.run())


def records(folder: Path) -> dict[str, Record]:
    sound, problems = read_records(folder / "trials")
    assert not problems
    return {record["id"]: record for record in sound}


def numbers(folder: Path) -> dict[str, Any]:
    """All that a study measured but its times: equal studies have equal numbers, to the last bit."""
    return {
        key: (
            record["status"],
            record["curve"]["loss"],
            record["validation"]["loss"],
            record["final"]["loss"],
            record["final"]["bits_per_byte"],
        )
        for key, record in records(folder).items()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ran to its end without disturbance. Tests copy it; none writes to it."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steepest.lab.study.Pool", Serial)
        estimate, ran = complete(ask(), folder)
    assert estimate.finished == 0 and ran == len(records(folder)) > 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "study"))


# ---------------------------------------------------------------------- the same numbers


def test_worker_processes_give_the_numbers_of_one_process(finished: Path, tmp_path: Path) -> None:
    complete(ask(workers=2), tmp_path)
    assert numbers(tmp_path) == numbers(finished)


@pytest.mark.slow
def test_the_number_of_workers_changes_no_bit(tmp_path: Path) -> None:
    question = {"model": "tiny", "optimizers": ("lion",), "data": "synthetic:0:40000"}
    complete(ask(workers=1, **question), tmp_path / "one")
    complete(ask(workers=2, **question), tmp_path / "two")
    assert len(numbers(tmp_path / "one")) >= 2 * (3 + SEEDS)
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two")


@pytest.mark.parametrize("stop", [1, 4, 10])
def test_an_interrupted_study_continues_where_it_stopped(
    finished: Path, tmp_path: Path, serial: None, stop: int
) -> None:
    def interrupt() -> None:
        with Study(ask(), tmp_path) as study:
            study.plan()
            for count, _ in enumerate(study.run(), start=1):
                if count == stop:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "trials").iterdir()}
    assert len(kept) == stop
    estimate, ran = complete(ask(), tmp_path)
    assert estimate.finished == stop
    assert ran == len(records(finished)) - stop, "finished trials do not run again"
    assert numbers(tmp_path) == numbers(finished)
    assert all((tmp_path / "trials" / name).read_bytes() == data for name, data in kept.items())


def test_a_trial_repeats_from_its_own_record_alone(finished: Path, tmp_path: Path) -> None:
    known = records(finished)
    for name in NAMES:
        record = next(r for r in known.values() if r["optimizer"] == name and r["phase"] == "race")
        again = run_trial(phase="race", config=record["config"], cache=str(tmp_path))
        assert again["id"] == record["id"]
        assert again["curve"]["loss"] == record["curve"]["loss"]
        assert again["final"]["loss"] == record["final"]["loss"]


def test_all_optimizers_of_a_seed_start_from_the_same_weights_and_data(finished: Path) -> None:
    starts: dict[int, set[tuple[float | None, ...]]] = {}
    seen: dict[int, set[str]] = {}
    for record in records(finished).values():
        start = (record["validation"]["loss"][0], record["curve"]["loss"][0])
        starts.setdefault(record["seed"], set()).add(start)
        seen.setdefault(record["seed"], set()).add(record["optimizer"])
    assert sorted(starts) == [0, 101, 102]
    assert all(len(found) == 1 for found in starts.values()), "the seed alone decides"
    assert len(set.union(*starts.values())) == 3, "and seeds differ"
    assert all(names == set(NAMES) for names in seen.values())


# ---------------------------------------------------------------------- what is recorded


def test_every_record_is_whole_and_belongs_to_the_plan(finished: Path) -> None:
    plan, known = read_study(finished), records(finished)
    assert plan["tuning_seed"] not in plan["seeds"]
    for record in known.values():
        assert record["checksum"] == checksum(record)
        assert record["data"]["digest"] == plan["data"]["digest"]
        assert record["config"]["steps"] == plan["steps"] == 20
        assert record["versions"] == plan["versions"]
        assert record["seed"] in ([plan["tuning_seed"]] if record["phase"] == "tune" else plan["seeds"])
        assert record["curve"]["step"] == list(range(1, 21))
        assert record["curve"]["tokens"] == [32 * step for step in range(1, 21)]
        assert record["validation"]["step"][0] == 0 and record["validation"]["step"][-1] == 20
        assert record["final"]["loss"] == record["validation"]["loss"][-1]
        assert record["parameters"] == 256 * 256
    summary = analyse(plan, list(known.values()))
    assert {result.name for result in summary.results} == set(NAMES)


def test_races_run_at_the_best_rate_of_the_search(finished: Path) -> None:
    for name in NAMES:
        own = [record for record in records(finished).values() if record["optimizer"] == name]
        tunings = [r for r in own if r["phase"] == "tune" and r["final"]["loss"] is not None]
        best = min(tunings, key=lambda record: record["final"]["loss"] or 0)
        races = [record for record in own if record["phase"] == "race"]
        assert len(races) == SEEDS
        assert {race["hyper"]["lr"] for race in races} == {best["hyper"]["lr"]}


def test_a_plan_writes_nothing_but_its_lock_and_can_be_made_again(tmp_path: Path, serial: None) -> None:
    with Study(ask(), tmp_path) as study:
        first, second = study.plan(), study.plan()
    assert (first.steps, first.trials, first.finished) == (second.steps, second.trials, 0)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_planning_another_question_does_not_touch_a_finished_study(copied: Path, serial: None) -> None:
    before = (copied / "study.json").read_bytes()
    with Study(ask(optimizers=("signum",), seeds=1), copied) as study:
        study.plan()
    assert (copied / "study.json").read_bytes() == before


def test_the_last_event_says_that_nothing_is_left(tmp_path: Path, serial: None) -> None:
    with Study(ask(optimizers=("lion",)), tmp_path) as study:
        study.plan()
        events = list(study.run())
    assert [event.done for event in events] == list(range(1, len(events) + 1))
    assert all(event.expected >= event.done for event in events)
    assert events[-1].done == events[-1].expected


# ---------------------------------------------------------------------- used again, or not


def test_a_finished_study_runs_nothing_again(copied: Path, serial: None) -> None:
    estimate, ran = complete(ask(), copied)
    assert ran == 0 and estimate.finished == len(records(copied))


def test_another_seed_runs_only_its_own_trials(copied: Path, serial: None) -> None:
    before = records(copied)
    _, ran = complete(ask(seeds=SEEDS + 1), copied)
    added = records(copied).keys() - before.keys()
    assert ran == len(added) == len(NAMES)
    assert all("seed103" in key for key in added)


def test_another_optimizer_runs_only_its_own_trials(copied: Path, serial: None) -> None:
    before = records(copied)
    _, ran = complete(ask(optimizers=(*NAMES, "signum")), copied)
    added = records(copied).keys() - before.keys()
    assert ran == len(added) >= 3 + SEEDS
    assert {records(copied)[key]["optimizer"] for key in added} == {"signum"}


@pytest.mark.parametrize(
    "changes",
    [{"budget": parse_budget("21steps")}, {"batch": 3}, {"clip": None}, {"data": "synthetic:1:20000"}],
)
def test_the_records_of_another_question_are_not_used_and_left_alone(
    copied: Path, serial: None, changes: dict[str, Any]
) -> None:
    before = {path.name: path.read_bytes() for path in (copied / "trials").iterdir()}
    estimate, ran = complete(ask(optimizers=("sgd",), seeds=1, **changes), copied)
    assert estimate.finished == 0 and ran >= 2 * (3 + 1)
    assert all((copied / "trials" / name).read_bytes() == data for name, data in before.items())


def test_a_study_with_a_time_budget_keeps_the_length_it_began_with(
    tmp_path: Path, serial: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, speed = Study._probe, [0.01, 0.02]
    monkeypatch.setattr(Study, "_probe", lambda self: {**probe(self), "seconds_per_step": speed.pop(0)})
    question = ask(optimizers=("sgd",), seeds=1, budget=parse_budget("4s"))
    first, _ = complete(question, tmp_path)
    second, ran = complete(question, tmp_path)
    assert second.steps == first.steps and ran == 0


@pytest.mark.parametrize("damage", [b"", b"null", b"[1, 2]", b'{"steps": "many"}', b"\xff\xfe{"])
def test_a_damaged_plan_is_made_again(copied: Path, serial: None, damage: bytes) -> None:
    (copied / "study.json").write_bytes(damage)
    _, ran = complete(ask(budget=parse_budget("20steps")), copied)
    assert ran == 0 and read_study(copied)["steps"] == 20


# ---------------------------------------------------------------------- what goes wrong


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """One bit of the loss, and the file still parses."""
    place = data.index(b'"loss"', data.index(b'"final"')) + 10
    while not chr(data[place]).isdigit():
        place += 1
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [truncated, flipped, lambda _: b"", lambda _: b"\x00\x9f\x92"])
def test_a_damaged_record_is_set_aside_named_and_run_again(
    copied: Path, finished: Path, serial: None, damage: Callable[[bytes], bytes]
) -> None:
    path = sorted((copied / "trials").glob("race-*.json"))[0]
    wrong = damage(path.read_bytes())
    path.write_bytes(wrong)
    estimate, ran = complete(ask(), copied)
    (problem,) = estimate.problems
    assert problem.name == path.name and problem.reason
    assert (path.parent / problem.set_aside).read_bytes() == wrong
    assert ran == 1
    assert numbers(copied) == numbers(finished)


def test_two_studies_in_one_folder_is_a_sentence_that_names_the_process(tmp_path: Path, serial: None) -> None:
    named = rf"in use by process {os.getpid()}\b"
    with Study(ask(), tmp_path), pytest.raises(SteepestError, match=named), Study(ask(), tmp_path):
        pass
    with Study(ask(), tmp_path):
        pass  # and it is free again


def test_rates_that_all_diverge_are_records_and_end_the_search(
    tmp_path: Path, serial: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steepest.lab.study.prior_lr", lambda *_: 1e6)
    question = ask(optimizers=("sgd",), clip=None)
    _, ran = complete(question, tmp_path)
    found = records(tmp_path)
    assert ran == len(found) == 2 * 9
    assert {(r["status"], r["final"]["loss"], r["phase"]) for r in found.values()} == {
        ("diverged", None, "tune")
    }
    assert all(record["reason"] for record in found.values())
    assert complete(question, tmp_path)[1] == 0, "they are not run again"


@pytest.mark.parametrize(
    ("model", "reason"),
    [("toys:fading", "became nan at step 4"), ("toys:cliff", "8 of 8 steps were skipped")],
)
def test_a_run_that_fails_on_its_way_is_a_diverged_record(tmp_path: Path, model: str, reason: str) -> None:
    base = {"data": "synthetic:0:20000", "batch": 2, "context": 16, "steps": 8, "threads": 1}
    config = {**base, "model": model, "optimizer": {"name": "sgd", "lr": 0.1}}
    record = run_trial(phase="tune", config=config, cache=str(tmp_path))
    assert record["status"] == "diverged" and record["final"]["loss"] is None
    assert reason in record["reason"]
    write_record(tmp_path / "trials", record)
    assert read_records(tmp_path / "trials")[1] == []


def test_a_loss_that_is_nan_from_the_start_is_a_sentence(tmp_path: Path, serial: None) -> None:
    with (
        Study(ask(model="toys:broken"), tmp_path) as study,
        pytest.raises(SteepestError, match="nan before any training; look at the data"),
    ):
        study.plan()
    assert not (tmp_path / "study.json").exists()


def test_a_model_without_gradients_fails_at_the_first_try(tmp_path: Path, serial: None) -> None:
    with (
        Study(ask(model="toys:cliff"), tmp_path) as study,
        pytest.raises(SteepestError, match="a first try of 6 steps failed: 6 of 6 steps were skipped"),
    ):
        study.plan()


def test_the_first_try_moves_nothing(tmp_path: Path) -> None:
    """A pre-trained model gets a little worse before it gets better, and can be compared all the same."""
    config = RunConfig(**Study(ask(), tmp_path)._trying(6))
    first, *rest = run(config).curves[1].loss
    assert rest and all(loss == first for loss in rest)


def test_a_full_disk_keeps_what_was_finished(
    finished: Path, tmp_path: Path, serial: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, left = os.fsync, [9]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SteepestError, match=r"disk is full: .*\.json was not written; free some space"):
            complete(ask(), tmp_path)
    kept = records(tmp_path)
    assert 0 < len(kept) < len(records(finished))
    assert sorted(path.suffix for path in (tmp_path / "trials").iterdir()) == [".json"] * len(kept)
    _, ran = complete(ask(), tmp_path)
    assert ran == len(records(finished)) - len(kept)
    assert numbers(tmp_path) == numbers(finished)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 0}, "batch: input should be greater than or equal to 1, got 0"),
        ({"context": -4}, "context: input should be greater than or equal to 1, got -4"),
        ({"clip": -1.0}, "clip: input should be greater than 0, got -1.0"),
        ({"clip": float("nan")}, "clip"),
        ({"schedule": {"name": "cosin"}}, "did you mean 'cosine'"),
        ({"schedule": {"name": "cosine", "warmup": -0.1}}, "warmup"),
        ({"schedule": {"name": "cosine", "warmup": 1.5}}, "warmup 1.5 is neither"),
        ({"schedule": {"name": "wsd", "cooldwn": 0.2}}, "did you mean 'cooldown'"),
    ],
)
def test_a_question_out_of_range_is_a_sentence_before_anything_starts(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SteepestError, match=words):
        Study(ask(**changes), tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "tny"}, "did you mean 'tiny'"),
        ({"model": "toys:bigrm"}, "did you mean 'bigram'"),
        ({"model": "no_such_module:model"}, "cannot import 'no_such_module'"),
        ({"data": "nowhere.txt"}, "no file or folder 'nowhere.txt'"),
        ({"data": "synthetic:0:2000", "batch": 900}, "one batch of 900 x 16 needs"),
        ({"tokenizer": "byte"}, "did you mean 'bytes'"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"budget": parse_budget("19steps")}, "19 steps and one needs 20; give at least 20steps"),
        ({"schedule": {"name": "cosine", "warmup": 500}}, "warmup"),
    ],
)
def test_what_only_a_try_can_find_is_a_sentence_too(
    tmp_path: Path, serial: None, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SteepestError, match=words):
        complete(ask(**changes), tmp_path)
    assert not (tmp_path / "study.json").exists()


def test_the_plan_is_plain_json_with_the_command_that_asked(finished: Path) -> None:
    plan = json.loads((finished / "study.json").read_text())
    assert plan["command"] == "steepest compare"
    assert plan["optimizers"] == list(NAMES) and plan["baseline"] == "adamw"
    assert plan["environment"]["threads_per_trial"] == 1


def test_a_model_folder_with_other_weights_is_another_model(tmp_path: Path) -> None:
    from steepest.models import build_model

    folder = tmp_path / "model"
    model = build_model("tiny", vocab_size=256, context=16, seed=1)
    digests = []
    for change in (0.0, 0.0, 1e-3):
        with torch.no_grad():
            next(model.parameters())[0, 0] += change
        model.save_pretrained(folder)
        model_digest.cache_clear()
        digests.append(model_digest(str(folder), 256, 16))
    assert digests[0] == digests[1] != digests[2]
    config = RunConfig(optimizer={"name": "adamw", "lr": 1e-3})
    ids = {trial_id("tune", config, "data", digest) for digest in digests}
    assert len(ids) == 2
