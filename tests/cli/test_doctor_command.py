"""`steepest doctor`: the answer in words, as JSON, as a picture, and by its exit code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from steepest.cli.app import app
from training.doctor.simulated import always, change, healthy, write_run


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)], env={"COLUMNS": "100", "TERM": "dumb"})


@pytest.fixture
def well(tmp_path: Path) -> Path:
    return write_run(tmp_path / "well[/b]", healthy())


@pytest.fixture
def ill(tmp_path: Path) -> Path:
    rows = change(healthy(), always, loss=lambda step, loss: loss + 0.004 * max(0, step - 150))
    rows = change(rows, always, grad_norm=lambda step, norm: norm * (1 + (step / 60) ** 2))
    return write_run(tmp_path / "ill", [{**row, "stage": "[red]base"} for row in rows])


def test_a_healthy_run_is_told_so_and_what_was_looked_at(well: Path) -> None:
    answer = call(well)
    assert answer.exit_code == 0
    assert "Is it the optimizer?" in answer.output and "No: this run is healthy" in answer.output
    assert "well[/b]" in answer.output and "step 600" in answer.output
    assert "looked at: " in answer.output and "not in this log" in answer.output


def test_what_must_be_acted_on_is_exit_code_one_with_evidence_and_change(ill: Path) -> None:
    answer = call(ill)
    assert answer.exit_code == 1
    assert "Yes: the learning rate is too high (stage [red]base)." in answer.output
    assert re.search(
        r"act +the learning rate is too high in stage \[red\]base \(the optimizer\)", answer.output
    )
    assert "the gradient norm grew" in answer.output
    assert re.search(r"change +optimizer: \{lr: 0\.001\}", answer.output)


def test_json_holds_everything(ill: Path) -> None:
    answer = call(ill, "--json")
    found = json.loads(answer.output)
    assert answer.exit_code == 1 and not found["healthy"]
    assert found["causes"][0]["rule"] == "rate-too-high" and found["causes"][0]["level"] == "act"
    assert found["stages"] == [{"name": "[red]base", "logged": 600, "last_step": 600, "planned": None}]


def test_a_plot_is_written_beside_the_answer(ill: Path, tmp_path: Path) -> None:
    answer = call(ill, "--plot", tmp_path / "deep" / "page.html")
    assert answer.exit_code == 1 and "plot  " in answer.output
    assert "the learning rate is too high" in (tmp_path / "deep" / "page.html").read_text()


def test_what_cannot_be_read_is_exit_code_two_and_a_sentence(tmp_path: Path) -> None:
    answer = call(tmp_path)
    assert answer.exit_code == 2
    assert re.fullmatch(r"error: .* holds no run: .*\n", answer.stderr) and answer.stdout == ""
