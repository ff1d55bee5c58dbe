"""Generated tasks: pure functions of seed and index, right by another route, verified exactly."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steepest.contract import SteepestError
from steepest.data import grade, load_verifier, preferences, task, verify
from steepest.data.tasks import ERRORS, LEVELS, STYLES, TASKS, TaskSpec, corrupt, task_row

names = st.sampled_from(sorted(TASKS))
levels = st.sampled_from(sorted(LEVELS))
seeds = st.integers(0, 2**32)
indices = st.integers(0, 10**9)


def solve(prompt: str) -> str:
    """A second opinion, from the prompt alone."""
    assert prompt.endswith("\n")
    instruction, _, text = prompt[:-1].partition(": ")
    name, _, style = instruction.partition(" ")
    if name == "add":
        one, _, other = text.partition("+")
        return f"{int(one) + int(other)}"
    if name == "format":
        return {"upper": text.upper(), "brackets": f"[{text}]", "commas": ",".join(text)}[style]
    return {"copy": text, "reverse": "".join(reversed(text)), "sort": "".join(sorted(text))}[name]


@given(names, seeds, indices, levels)
def test_answer_is_right_and_verified(name: str, seed: int, index: int, level: int) -> None:
    one = task(name, seed, index, level)
    assert one == task(name, seed, index, level)
    assert one.answer == solve(one.prompt)
    assert (one.facts["task"], one.facts["level"]) == (name, level)
    row = {"answer": one.answer}
    assert verify(one.answer, row) == grade(one.answer, row) == 1.0
    assert verify(f" {one.answer}\n", row) == 1.0
    assert verify(one.answer + "a", row) == verify("", row) == 0.0


def test_every_style_and_length_and_seed_is_met() -> None:
    styles = {task("format", 0, i).facts["style"] for i in range(60)}
    assert styles == set(STYLES)
    for level, facts in LEVELS.items():
        sizes = {len(task("copy", 0, i, level).answer) for i in range(200)}
        assert sizes == set(range(facts.shortest, facts.longest + 1))
    assert len({task("copy", seed, 0, 3).prompt for seed in range(50)}) == 50


def test_rows_are_pinned_and_the_same_in_another_process() -> None:
    """Published runs depend on them."""
    rows = [task_row("preference", 0, i, TaskSpec(level=2)) for i in range(10)]
    program = (
        "from steepest.data.tasks import *; print([task_row('preference', 0, i, TaskSpec(level=2)) "
        "for i in range(10)])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == repr(rows)
    assert [row["prompt"] for row in rows[:5]] == PINNED


PINNED = ["copy: nkldjm\n", "reverse: dfnp\n", "sort: gndk\n", "add: 11+25\n", "format upper: pdoib\n"]


@given(names, seeds, indices, levels)
def test_corrupted_answer_is_wrong_and_costs_its_margin(name: str, seed: int, index: int, level: int) -> None:
    row = task_row("preference", seed, index, TaskSpec((name,), level))
    assert row["chosen"] == row["answer"] != row["rejected"] != ""
    assert verify(row["rejected"], row) == 0.0
    assert 0.0 <= grade(row["rejected"], row) < 1.0
    assert row["margin"] == pytest.approx(1 - grade(row["rejected"], row), abs=1e-6)
    assert 0 < row["margin"] <= 1


@given(st.text(alphabet="ab9Z,[]", min_size=1).filter(lambda t: any(map(str.isalnum, t))), st.data())
def test_each_error_does_what_its_name_says(answer: str, data: Any) -> None:
    name, text = corrupt(answer, lambda below: data.draw(st.integers(0, below - 1)))
    assert text and text != answer
    change = {"swapped": 0, "dropped": -1, "duplicated": 1, "wrong": 0}[name]
    assert len(text) == len(answer) + change
    assert (sorted(text) == sorted(answer)) == (name == "swapped")
    if name == "wrong":
        ((one, other),) = ((a, b) for a, b in zip(answer, text, strict=True) if a != b)
        assert (one.isdigit(), one.isupper(), one.islower()) == (
            other.isdigit(),
            other.isupper(),
            other.islower(),
        )


def test_preferences_show_every_error() -> None:
    rows = preferences(7, 300)
    assert {row["error"] for row in rows} == set(ERRORS)
    assert rows[:5] == preferences(7, 5)
    assert {row["task"] for row in rows} == set(TASKS)


@given(st.text(max_size=12), st.text(max_size=12))
def test_grade_lies_in_the_unit_interval_and_is_one_for_the_answer_alone(text: str, answer: str) -> None:
    value = grade(text, {"answer": answer})
    assert 0 <= value <= 1
    assert (value == 1) == (text.strip() == answer.strip()) == (verify(text, {"answer": answer}) == 1)


def test_grade_rises_with_every_right_character() -> None:
    row = {"answer": "[ab1]"}
    values = [
        grade(text, row) for text in ("", "(", "[", "[x", "[a", "[a]", "[xy2]", "[ay2]", "[ab2]", "[ab1]")
    ]
    assert values == pytest.approx([0, 0, 0.16, 0.16, 0.32, 0.32, 0.52, 0.68, 0.84, 1.0])


@pytest.mark.parametrize(
    ("spec", "means"),
    [
        ("tasks", TaskSpec()),
        ("tasks:copy,sort", TaskSpec(("copy", "sort"))),
        ("tasks::2", TaskSpec(level=2)),
        ("tasks:add:3:50", TaskSpec(("add",), 3, 50)),
    ],
)
def test_specs(spec: str, means: TaskSpec) -> None:
    assert TaskSpec.parse(spec) == means


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tasks:cpoy", "unknown task 'cpoy'; did you mean 'copy'?"),
        ("tasks:copy:9", "level from 1 to 3"),
        ("tasks:copy:one", "is not understood"),
        ("tasks:copy:1:0", "count from 1"),
        ("tasks:copy:1:5:6", "is not understood"),
    ],
)
def test_bad_specs(spec: str, says: str) -> None:
    with pytest.raises(SteepestError) as error:
        TaskSpec.parse(spec)
    assert says in str(error.value)


def broken(completion: str, row: Any) -> float:
    raise KeyError("label")


def endless(completion: str, row: Any) -> float:
    return float("nan")


def worded(completion: str, row: Any) -> Any:
    return "good"


def length(completion: str, row: Any) -> int:
    return len(completion)


number = 3


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    return "mine"


def test_verifier_by_import_path(mine: str) -> None:
    assert load_verifier(f"{mine}:length")("four", {}) == 4.0
    assert load_verifier("steepest.data:grade")("a", {"answer": "a"}) == 1.0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("broken", "failed on d.jsonl, line 3 (KeyError: 'label'); it must take any text"),
        ("worded", "failed on d.jsonl, line 3 (ValueError:"),
        ("endless", "gave nan on d.jsonl, line 3; it must be a finite number"),
    ],
)
def test_verifier_that_fails_names_the_row(mine: str, name: str, says: str) -> None:
    class Named(dict[str, Any]):
        where = "d.jsonl, line 3"

    with pytest.raises(SteepestError) as error:
        load_verifier(f"{mine}:{name}")("text", Named())
    assert says in str(error.value)


def test_row_without_a_place_or_an_answer_is_named_by_its_prompt() -> None:
    with pytest.raises(SteepestError, match="the row with the prompt 'copy: a' has no 'answer'"):
        verify("a", {"prompt": "copy: a"})


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("mine", "is no import path"),
        (":f", "is no import path"),
        ("no.such.module:f", "cannot be imported (No module named"),
        ("mine:nothing", "cannot be imported"),
        ("mine:number", "is not a function"),
    ],
)
def test_bad_import_paths(mine: str, spec: str, says: str) -> None:
    with pytest.raises(SteepestError) as error:
        load_verifier(spec)
    assert says in str(error.value)


def test_verifier_is_found_beside_the_user(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_me.py").write_text("def reward(completion, row):\n    return 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_verifier("beside_me:reward")("", SimpleNamespace()) == 2.0  # type: ignore[arg-type]
    del sys.modules["beside_me"]
