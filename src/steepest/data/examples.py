"""Examples: answers, preferences and prompts, read from JSON or generated, checked row by row, and split."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Any

from steepest.contract import SteepestError, unknown
from steepest.data.chat import ASSISTANT, Message, Turns
from steepest.data.corpus import Facts
from steepest.data.documents import json_objects, keys_of, kind_of, read_bytes
from steepest.data.tasks import TaskSpec, task_row

ROLES = ("system", "developer", "user", ASSISTANT, "tool")


@dataclass(frozen=True, eq=False)
class Row(Mapping[str, Any]):
    """One example: a mapping of all that was given, and what a model is to read and to write of it."""

    given: Mapping[str, Any]
    where: str
    """Its file and line, for messages."""
    prompt: Turns
    answers: tuple[Turns, ...]
    """The completion; the chosen and the rejected answer; nothing for a prompt."""

    def __getitem__(self, key: str) -> Any:
        return self.given[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.given)

    def __len__(self) -> int:
        return len(self.given)


@dataclass(frozen=True)
class Examples:
    """Rows to train on, and rows with other prompts to measure on."""

    name: str
    """What they were loaded as."""
    kind: str
    """A key of `KINDS`."""
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    digest: str
    """SHA-256 over kind and both splits in order, in hex: equal digests, equal rows."""
    facts: Facts
    """Rows of each split, and how many were dropped because they are equal to another one."""


def load_examples(spec: str, kind: str, *, validation: float = 0.05) -> Examples:
    """The examples of a spec: a .jsonl file, a .json file with a list, a folder of .jsonl, or made-up tasks.

    kind: "completion", "preference" or "prompts", which decides what a row must hold (see `KINDS`); other
    keys are kept.  Generated: "tasks", "tasks:copy,sort", "tasks:copy,sort:LEVEL:COUNT".
    validation: about this share of the prompts, in (0, 0.5]. A prompt's own hash decides its split, so rows
    with one prompt stay together, and rows that are added later move none, bar those of the one prompt that
    is taken where a split would be empty.
    Raises SteepestError for a row that is not of this kind, naming file, line and key.
    """
    if kind not in KINDS:
        raise unknown("kind of examples", kind, KINDS)
    if not 0 < validation <= 0.5:
        raise SteepestError(f"validation={validation!r} is out of range; it must lie in (0, 0.5].")
    rows = [_row(given, where, kind) for where, given in _read(spec, kind)]
    distinct = list(reversed({_digest(row.given): row for row in reversed(rows)}.values()))
    keys = [_key(row) for row in distinct]
    held = _held_out(keys, validation, spec)
    train = tuple(row for row, key in zip(distinct, keys, strict=True) if key not in held)
    rest = tuple(row for row, key in zip(distinct, keys, strict=True) if key in held)
    facts: Facts = {
        "train_rows": len(train),
        "validation_rows": len(rest),
        "dropped_rows": len(rows) - len(distinct),
    }
    content = [kind, *([_digest(row.given).hex() for row in split] for split in (train, rest))]
    return Examples(spec, kind, train, rest, _digest(content).hex(), facts)


def _held_out(keys: Sequence[bytes], validation: float, spec: str) -> set[bytes]:
    """The prompts kept for validation, by their hashes."""
    distinct = set(keys)
    if len(distinct) < 2:
        raise SteepestError(
            f"{spec!r} holds {len(distinct)} different prompt{'s' * (not distinct)}; examples need two at "
            "least, one to train on and one to measure on."
        )
    held = {key for key in distinct if int.from_bytes(key[:8], "big") < validation * 2**64}
    return (held or {min(distinct)}) - ({max(distinct)} if held == distinct else set())


def _key(row: Row) -> bytes:
    """The hash that decides a row's split: of what opens it, if that asks for something, else of it all."""
    opening: Any = row.prompt
    if not isinstance(row.prompt, str):
        opening = list(takewhile(lambda turn: turn["role"] != ASSISTANT, row.prompt))
        opening = opening if any(turn["role"] == "user" for turn in opening) else None
    return _digest(opening or row.given)


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def _read(spec: str, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of all rows of a spec, as they are."""
    path = Path(os.path.expanduser(spec))
    if spec.split(":")[0] == "tasks":
        tasks = TaskSpec.parse(spec)
        return ((f"{spec}, row {i}", task_row(kind, 0, i, tasks)) for i in range(tasks.count))
    if path.is_dir():
        return _read_folder(path)
    if not os.path.exists(path):
        if get_close_matches(spec, ["tasks"]):
            raise unknown("data", spec, ["tasks"])
        raise SteepestError(
            f"there is no file or folder {spec!r}; give a .jsonl or .json file, a folder of .jsonl files, "
            "or 'tasks'."
        )
    readers = {".jsonl": json_objects, ".json": _json_list}
    if path.suffix.lower() not in readers:
        raise SteepestError(f"{spec!r} is neither .jsonl nor .json; examples are read from these.")
    return readers[path.suffix.lower()](read_bytes(path), path)


def _read_folder(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    hidden = {p for p in root.rglob("*.jsonl") if any(x.startswith(".") for x in p.relative_to(root).parts)}
    paths = sorted(set(root.rglob("*.jsonl")) - hidden)
    if not paths:
        raise SteepestError(f"there is no .jsonl file in {str(root)!r}; give a folder with examples in it.")
    return (item for path in paths for item in json_objects(read_bytes(path), path))


def _json_list(data: bytes, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise SteepestError(
            f"{str(path)!r}: not JSON ({error}); it must be one list of objects, or a .jsonl file."
        ) from error
    if not isinstance(rows, list):
        raise SteepestError(f"{str(path)!r}: {kind_of(rows)}; it must be one list of objects.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise SteepestError(f"{str(path)!r}, row {number}: {kind_of(row)}; every row must be an object.")
        yield f"{str(path)!r}, row {number}", row


def _row(given: dict[str, Any], where: str, kind: str) -> Row:
    read, expected = KINDS[kind]
    try:
        prompt, answers = read(given)
    except SteepestError as error:
        raise SteepestError(f"{where}: {error} Expected: {expected}") from None
    return Row(given, where, prompt, answers)


Parts = tuple[Turns, tuple[Turns, ...]]
"""A prompt and its answers."""


def _completion(given: dict[str, Any]) -> Parts:
    if "messages" not in given:
        prompt = _turns(given, "prompt")
        return prompt, (_answer(given, "completion", prompt),)
    turns = _messages(given, "messages")
    _need_assistant(turns, "messages")
    first = next(i for i, turn in enumerate(turns) if turn["role"] == ASSISTANT)
    return turns[:first], (turns[first:],)


def _preference(given: dict[str, Any]) -> Parts:
    margin = given.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise SteepestError(f"'margin' is {margin!r}; it must be a finite number.")
    if isinstance(given.get("chosen"), list) and not isinstance(given.get("prompt"), list):
        # Whole conversations, whatever text stands beside them: the prompt is what they share.
        both = [_messages(given, key) for key in ("chosen", "rejected")]
        pairs = enumerate(zip(*both, strict=False))
        shared = next((i for i, (one, other) in pairs if one != other), min(map(len, both)))
        prompt: Turns = both[0][:shared]
        answers: tuple[Turns, ...] = both[0][shared:], both[1][shared:]
        for key, turns in zip(("chosen", "rejected"), both, strict=True):
            _need_assistant(turns[shared:], key, " where the two differ")
    else:
        prompt = _turns(given, "prompt")
        answers = tuple(_answer(given, key, prompt) for key in ("chosen", "rejected"))
    if answers[0] == answers[1]:
        raise SteepestError("'chosen' and 'rejected' are the same.")
    return prompt, answers


def _prompts(given: dict[str, Any]) -> Parts:
    if "messages" not in given:
        return _turns(given, "prompt"), ()
    turns = _messages(given, "messages")
    while turns and turns[-1]["role"] == ASSISTANT:
        turns = turns[:-1]
    if not turns:
        raise SteepestError("'messages' has nothing before the assistant's answer.")
    return turns, ()


MESSAGES = '[{"role": "user", "content": "..."}, ...]'
KINDS: Mapping[str, tuple[Callable[[dict[str, Any]], Parts], str]] = {
    "completion": (_completion, f"'messages': {MESSAGES}, or 'prompt' and 'completion'."),
    "preference": (_preference, "'prompt', 'chosen' and 'rejected', as text or as messages."),
    "prompts": (_prompts, f"'prompt', or 'messages': {MESSAGES}."),
}
"""Kind of examples to its reader, and what a row of this kind holds."""


def _value(given: dict[str, Any], key: str) -> Any:
    if key not in given:
        raise SteepestError(f"there is no {key!r} (keys: {keys_of(given)}).")
    if not isinstance(given[key], str | list):
        raise SteepestError(f"{key!r} holds {kind_of(given[key])}.")
    return given[key]


def _turns(given: dict[str, Any], key: str) -> Turns:
    value = _value(given, key)
    return value if isinstance(value, str) else _messages(given, key)


def _answer(given: dict[str, Any], key: str, prompt: Turns) -> Turns:
    """An answer in the form of its prompt: text behind messages is an assistant's turn."""
    value = _turns(given, key)
    if isinstance(prompt, str) and not isinstance(value, str):
        raise SteepestError(f"{key!r} is a list of messages and 'prompt' is text.")
    if isinstance(value, str):
        return value if isinstance(prompt, str) else ({"role": ASSISTANT, "content": value},)
    _need_assistant(value, key)
    return value


def _messages(given: dict[str, Any], key: str) -> tuple[Message, ...]:
    value = _value(given, key)
    if not isinstance(value, list) or not value:
        raise SteepestError(f"{key!r} holds {'no message' if value == [] else kind_of(value)}.")
    for number, message in enumerate(value):
        place = f"{key}[{number}]"
        if not isinstance(message, dict):
            raise SteepestError(f"{place} is {kind_of(message)}.")
        for name in ("role", "content"):
            if name not in message:
                raise SteepestError(f"{place}: there is no {name!r} (keys: {keys_of(message)}).")
            if not isinstance(message[name], str):
                raise SteepestError(f"{place}: {name!r} holds {kind_of(message[name])}; it must be a string.")
        if message["role"] not in ROLES:
            raise SteepestError(f"{place}: {unknown('role', message['role'], ROLES)}")
    return tuple(value)


def _need_assistant(turns: tuple[Message, ...], key: str, where: str = "") -> None:
    if not any(turn["role"] == ASSISTANT for turn in turns):
        raise SteepestError(f"{key!r} has no assistant's turn{where}, and nothing to learn from.")
