"""Generated instructions with exact verifiers: small tasks that a model of a million parameters can learn.

Row i of a seed is a pure function of both, the same on every machine. Prompt and answer look like

    copy: bdca            -> bdca          format upper: bdca     -> BDCA
    reverse: bdca         -> acdb          format brackets: bdca  -> [bdca]
    sort: bdca            -> abcd          format commas: bdca    -> b,d,c,a
    add: 7+12             -> 19

The prompt ends with a line break, behind which the answer stands alone.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any

import numpy as np

from steepest.contract import SteepestError, unknown
from steepest.data.seeds import seed_for

Draw = Callable[[int], int]
"""The next integer of a stream, uniform in [0, n)."""

Verifier = Callable[[str, Mapping[str, Any]], float]
"""What a completion is worth as the answer to a row: finite, the more the better."""


@dataclass(frozen=True)
class Level:
    """How hard the tasks are: letters a text has at least and at most, letters there are, and summands."""

    shortest: int
    longest: int
    letters: int
    below: int
    """Summands lie below this."""


LEVELS = {1: Level(3, 4, 8, 20), 2: Level(3, 6, 16, 100), 3: Level(5, 10, 26, 1000)}


@dataclass(frozen=True)
class Task:
    """One instruction, its only right answer, and what is known about it."""

    prompt: str
    answer: str
    facts: dict[str, Any]


STYLES: Mapping[str, Callable[[str], str]] = {
    "upper": str.upper,
    "brackets": "[{}]".format,
    "commas": ",".join,
}
"""Styles of the task "format"."""


def _letters(draw: Draw, level: Level) -> str:
    size = level.shortest + draw(level.longest - level.shortest + 1)
    return "".join(ascii_lowercase[draw(level.letters)] for _ in range(size))


def _of_letters(answer: Callable[[str], str]) -> Callable[[Draw, Level], tuple[str, str, str]]:
    def make(draw: Draw, level: Level) -> tuple[str, str, str]:
        text = _letters(draw, level)
        return "", text, answer(text)

    return make


def _add(draw: Draw, level: Level) -> tuple[str, str, str]:
    one, other = draw(level.below), draw(level.below)
    return "", f"{one}+{other}", str(one + other)


def _format(draw: Draw, level: Level) -> tuple[str, str, str]:
    style = list(STYLES)[draw(len(STYLES))]
    text = _letters(draw, level)
    return style, text, STYLES[style](text)


TASKS: Mapping[str, Callable[[Draw, Level], tuple[str, str, str]]] = {
    "copy": _of_letters(str),
    "reverse": _of_letters(lambda text: text[::-1]),
    "sort": _of_letters(lambda text: "".join(sorted(text))),
    "add": _add,
    "format": _format,
}
"""Task to its maker: a stream of draws and a level to (style or "", what is given, the answer)."""


@dataclass(frozen=True)
class TaskSpec:
    """Which tasks, how hard, and how many rows; row i is of task i modulo their number."""

    names: tuple[str, ...] = tuple(TASKS)
    level: int = 1
    count: int = 8192

    @classmethod
    def parse(cls, spec: str) -> TaskSpec:
        """Of "tasks", "tasks:copy,sort", "tasks:copy,sort:LEVEL" or "tasks:copy,sort:LEVEL:COUNT"."""
        names, level, count, *rest = [*spec.split(":")[1:], "", "", ""]
        try:
            numbers = int(level or cls.level), int(count or cls.count)
        except ValueError:
            rest = ["not a number"]
        if any(rest) or numbers[0] not in LEVELS or numbers[1] < 1:
            raise SteepestError(
                f"data {spec!r} is not understood; write 'tasks', 'tasks:copy,sort' or "
                f"'tasks:copy,sort:LEVEL:COUNT' with a level from 1 to {max(LEVELS)} and a count from 1."
            )
        chosen = tuple(names.split(",")) if names else cls.names
        for name in chosen:
            if name not in TASKS:
                raise unknown("task", name, TASKS)
        return cls(chosen, *numbers)


ALL = TaskSpec()
"""Every task, at the first level."""


def task(name: str, seed: int, index: int, level: int = 1) -> Task:
    """Task number `index` of this name and seed."""
    style, given, answer = TASKS[name](_draws(seed, f"tasks/{name}/{level}/{index}"), LEVELS[level])
    facts = {"task": name, "level": level} | ({"style": style} if style else {})
    return Task(f"{name} {style}".strip() + f": {given}\n", answer, facts)


def task_row(kind: str, seed: int, index: int, tasks: TaskSpec) -> dict[str, Any]:
    """Row `index` as an example of a kind; the prompts are the same in every kind."""
    one = task(tasks.names[index % len(tasks.names)], seed, index, tasks.level)
    row = {"prompt": one.prompt, "answer": one.answer, **one.facts}
    if kind == "completion":
        return {**row, "completion": one.answer}
    if kind == "preference":
        error, rejected = corrupt(one.answer, _draws(seed, f"errors/{index}"))
        margin = round(1.0 - grade(rejected, row), 6)
        return {**row, "chosen": one.answer, "rejected": rejected, "margin": margin, "error": error}
    return row


def preferences(seed: int, count: int, tasks: TaskSpec = ALL) -> list[dict[str, Any]]:
    """Pairs of a right answer (chosen) and a wrong one (rejected); the margin is what `grade` takes off."""
    return [task_row("preference", seed, index, tasks) for index in range(count)]


def _swap(text: str, at: int, draw: Draw) -> str:
    return text[:at] + text[at + 1 : at + 2] + text[at] + text[at + 2 :]


def _drop(text: str, at: int, draw: Draw) -> str:
    return text[:at] + text[at + 1 :]


def _duplicate(text: str, at: int, draw: Draw) -> str:
    return text[: at + 1] + text[at:]


def _wrong(text: str, at: int, draw: Draw) -> str:
    """Another letter or digit of its kind."""
    kind = next(kind for kind in (digits, ascii_uppercase, ascii_lowercase) if text[at] in kind)
    other = (kind.index(text[at]) + 1 + draw(len(kind) - 1)) % len(kind)
    return text[:at] + kind[other] + text[at + 1 :]


ERRORS: Mapping[str, Callable[[str, int, Draw], str]] = {
    "swapped": _swap,
    "dropped": _drop,
    "duplicated": _duplicate,
    "wrong": _wrong,
}


def corrupt(answer: str, draw: Draw) -> tuple[str, str]:
    """(name of the error, the answer with it): not empty, and not the answer.

    answer: with a letter or a digit in it, at one of which the error is made.
    """
    at = [i for i, character in enumerate(answer) if character.isalnum()]
    place, first = at[draw(len(at))], draw(len(ERRORS))
    for turn in range(len(ERRORS)):
        name = list(ERRORS)[(first + turn) % len(ERRORS)]
        text = ERRORS[name](answer, place, draw)
        if text and text != answer:
            return name, text
    raise AssertionError("a wrong character always makes another answer")


def verify(completion: str, row: Mapping[str, Any]) -> float:
    """1.0 if the completion is the row's `answer`, white space around it aside, else 0.0."""
    return float(completion.strip() == _answer(row))


def grade(completion: str, row: Mapping[str, Any]) -> float:
    """How right a completion is, in [0, 1], and 1 only for the row's `answer` itself.

    0.8 for the share of characters that are right, each in its place, of the longer of the two texts, and
    0.2 for the form: the same sequence of letters, capitals, digits and signs.
    """
    text, answer = completion.strip(), _answer(row)
    right = sum(a == b for a, b in zip(text, answer, strict=False))
    share = right / max(len(text), len(answer), 1)
    return 1.0 if text == answer else 0.8 * share + 0.2 * (_form(text) == _form(answer))


def load_verifier(spec: str) -> Verifier:
    """The verifier at an import path "package.module:function".

    The function is called with (completion, row) and returns a number. What it raises, or a result that is
    not a finite number, becomes a SteepestError that names the row.
    """
    module, _, name = spec.partition(":")
    if not module or not name:
        raise SteepestError(f"verifier {spec!r} is no import path; write 'package.module:function'.")
    if os.getcwd() not in sys.path:  # a console script, unlike `python`, does not look where it stands
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a module raises as it is imported
        raise SteepestError(
            f"verifier {spec!r} cannot be imported ({error}); check the path, and that its folder is on "
            "Python's path."
        ) from error
    if not callable(function):
        raise SteepestError(f"verifier {spec!r} is not a function; name one of (completion, row).")

    def verifier(completion: str, row: Mapping[str, Any]) -> float:
        try:
            value = float(function(completion, row))
        except Exception as error:
            raise SteepestError(
                f"verifier {spec!r} failed on {_name(row)} ({type(error).__name__}: {error}); it must take "
                f"any text, as {completion[:80]!r} was."
            ) from error
        if not math.isfinite(value):
            raise SteepestError(
                f"verifier {spec!r} gave {value} on {_name(row)}; it must be a finite number."
            )
        return value

    return verifier


def _answer(row: Mapping[str, Any]) -> str:
    answer = row.get("answer")
    if not isinstance(answer, str):
        raise SteepestError(f"{_name(row)} has no 'answer' to compare with; give one, or another verifier.")
    return answer.strip()


def _name(row: Mapping[str, Any]) -> str:
    where = getattr(row, "where", None)
    return str(where) if where else f"the row with the prompt {str(row.get('prompt'))[:80]!r}"


def _form(text: str) -> str:
    kinds = (("0", str.isdigit), ("A", str.isupper), ("a", str.isalpha))
    return "".join(next((kind for kind, is_one in kinds if is_one(c)), c) for c in text)


def _draws(seed: int, stream: str) -> Draw:
    source = np.random.Philox(key=seed_for(seed, stream))
    return lambda below: int(source.random_raw()) % below
