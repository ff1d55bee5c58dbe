"""The fault laboratory: whole, able to pass, and able to fail where a protection is taken away."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import disarmed
import pytest
from typer.testing import CliRunner

from steepest.cli.app import app
from steepest.cli.faults import EMBEDDED
from steepest.contract import SteepestError
from steepest.integrations.sinks import Channel
from steepest.lab.report import write_run_page
from steepest.training import parse_config
from steepest.training.faults import ROWS, Above, Inject, Laboratory, small
from steepest.training.faults.laboratory import judge_end, merged
from steepest.training.faults.results import Result, write_json, write_junit
from steepest.training.faults.terms import Failed, Run, Staged, Trial
from steepest.training.faults.worker import End

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    own = small(parse_config(EMBEDDED, "the embedded config"), 2, "ddp")
    return Laboratory(own, tmp_path_factory.mktemp("lab"), above=Above(write_run_page, Channel))


# ---------------------------------------------------------------------- the table


def test_all_rows_are_there() -> None:
    assert list(ROWS) == list(range(1, 43))


@pytest.mark.parametrize("number", ROWS)
def test_a_row_says_what_must_happen_and_asks_for_it(number: int) -> None:
    row = ROWS[number]
    assert row.fault and row.must.endswith(".") and row.trials
    judged = [trial for trial in row.trials if isinstance(trial, Trial)]
    assert all(trial.oracles for trial in judged)
    assert all(trial.scenario.runs for trial in judged)


# ---------------------------------------------------------------------- rows that pass


@pytest.mark.parametrize("number", [1, 8, 11, 22])
def test_a_row_passes(number: int, lab: Laboratory) -> None:
    result = lab.row(ROWS[number])
    assert result.passed, result.happened
    assert result.happened and result.seconds > 0


# ---------------------------------------------------------------------- rows that have to fail


@pytest.mark.parametrize(
    ("number", "protection", "words"),
    [
        (1, disarmed.no_verdict, "did not finish: the run diverged|veto"),
        (3, disarmed.no_look_at_numbers, "finished, as if nothing were wrong|nobody says"),
        (22, disarmed.no_checksums, "damaged"),
        (40, disarmed.no_look_at_the_config, "finished, as if nothing were wrong"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_row_fails_without_its_protection(
    number: int, protection: object, words: str, lab: Laboratory
) -> None:
    result = lab.disarmed(Inject(protection)).row(ROWS[number])  # type: ignore[arg-type]
    assert not result.passed
    assert any(word in result.happened for word in words.split("|")), result.happened


def done(words: str = "") -> End:
    return End("done", words)


def ended(kind: str, words: str) -> End:
    return End(kind, words, 1)


@pytest.mark.parametrize(
    ("run", "ends", "words"),
    [
        (Run(), [done(), ended("error", "the disk is full")], "rank 1 did not finish: the disk is full"),
        (Run(ends="full"), [done(), ended("error", "full")], "rank 0 finished"),
        (Run(ends="full"), [ended("error", "empty")], "nobody says 'full', but: empty"),
        (Run(ends="full"), [ended("crash", "KeyError: 'full'")], "broke off without a sentence"),
        (Run(ends="", alone=True), [ended("error", "gone"), ended("gone", "")], "did not end by itself"),
        (Run(ends="rank {last}"), [ended("error", "rank 0 is gone"), ended("gone", "")], "nobody says"),
    ],
)
def test_an_end_that_must_not_be_is_a_failure(run: Run, ends: list[End], words: str) -> None:
    with pytest.raises(Failed, match=words):
        judge_end(run, ends)


def test_an_end_that_must_be_is_its_sentence() -> None:
    assert judge_end(Run(), [done(), done()]) == ""
    assert judge_end(Run(ends="full"), [ended("error", "disk full"), ended("gone", "")]) == "disk full"
    killed = Inject(partial(signal.raise_signal, signal.SIGKILL), -1, fatal=True)  # type: ignore[arg-type]
    ends = [ended("error", "rank 1 is gone"), ended("gone", "")]
    assert judge_end(Run((killed,), ends="rank {last}", alone=True), ends) == "rank 1 is gone"


# ---------------------------------------------------------------------- what a run of it is


def test_a_config_is_made_small_and_stays_its_own() -> None:
    life = {**EMBEDDED, "stages": [{"name": "one", "steps": 900}, {"name": "two", "objective": "sft"}]}
    own = parse_config(small(parse_config(life, "x"), 3, "zero1"), "x")
    (stage,) = own.plan()
    assert (stage.steps, stage.objective_name, own.placement, own.batch) == (4, "next_token", "zero1", 4)
    assert (own.model, own.data, own.optimizer) == tuple(
        EMBEDDED[key] for key in ("model", "data", "optimizer")
    )


def test_a_change_of_one_key_keeps_the_others_of_its_part() -> None:
    own = small(parse_config(EMBEDDED, "x"), 2, "ddp")
    changed = merged(own, {"checkpoint": {"keep": 1}, "clip": 2.0})
    assert changed["checkpoint"] == {**own["checkpoint"], "keep": 1} and changed["clip"] == 2.0


def test_one_process_is_no_laboratory(tmp_path: Path) -> None:
    with pytest.raises(SteepestError, match="2 to 4 processes"):
        Laboratory(small(parse_config(EMBEDDED, "x"), 1, "ddp"), tmp_path, ranks=1)


RESULTS = [
    Result(6, "a <clip>", "Refused.", True, "so it was", 0.5),
    Result(7, "b", "So.", False, "no & no", 1),
]


def test_results_are_written_for_ci_and_for_later(tmp_path: Path) -> None:
    write_json(RESULTS, {"seed": 3}, tmp_path / "faults.json")
    write_junit(RESULTS, tmp_path / "junit.xml")
    record = json.loads((tmp_path / "faults.json").read_text())
    assert (record["passed"], record["of"], record["seed"]) == (1, 2, 3)
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("name") for case in suite] == ["6 a <clip>", "7 b"]
    assert [failure.get("message") for failure in suite.iter("failure")] == ["no & no"]


# ---------------------------------------------------------------------- the command


def test_the_command_shows_and_writes_its_rows(tmp_path: Path) -> None:
    out, junit = tmp_path / "lab", tmp_path / "junit.xml"
    done = CliRunner().invoke(
        app, ["faults", "run", "--rows", "6,9", "--out", str(out), "--junit", str(junit)]
    )
    assert done.exit_code == 0, done.output
    assert "2 of 2 rows passed" in done.output
    rows = json.loads((out / "faults.json").read_text())["rows"]
    assert [(row["number"], row["passed"]) for row in rows] == [(6, True), (9, True)]
    assert junit.exists() and not list((out / "work").iterdir())


def test_a_row_that_fails_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(lab: Laboratory) -> str:
        lab.fresh("evidence")
        raise Failed("it went wrong")

    monkeypatch.setitem(ROWS, 6, type(ROWS[6])(6, "a fault", "Nothing.", (Staged(play),)))
    done = CliRunner().invoke(app, ["faults", "run", "--rows", "6", "--out", str(tmp_path)])
    assert done.exit_code == 1 and "it went wrong" in done.output
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["002-evidence"], "evidence is kept"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--rows", "43"], "unknown row '43'"),
        (["--every", "soon"], "is no time"),
        (["--every", "0h"], "is no time"),
        (["--nproc", "9"], "2 to 4 processes"),
        (["--placement", "dpp"], "did you mean 'ddp'"),
    ],
)
def test_a_wrong_command_is_a_sentence(given: list[str], words: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["faults", "run", "--out", str(tmp_path), *given])
    assert isinstance(done.exception, SteepestError) and words in str(done.exception)
