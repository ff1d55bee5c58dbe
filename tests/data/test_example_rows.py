"""Examples: every row shape read, every mistake named, a split that later rows do not move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steepest.contract import SteepestError
from steepest.data import load_examples
from steepest.data.examples import KINDS, Row, _held_out
from steepest.data.rows import COLLATE

USER = {"role": "user", "content": "2 + 2?"}
SYSTEM = {"role": "system", "content": "Be brief."}
RIGHT = {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}
OTHER = {"role": "user", "content": "Sure?"}


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fillers(kind: str, count: int = 40) -> list[dict[str, Any]]:
    answers = {"completion": ["completion"], "preference": ["chosen", "rejected"], "prompts": []}[kind]
    return [{"prompt": f"p{i}", **{key: f"{key} {i}" for key in answers}} for i in range(count)]


def read_one(folder: Path, row: Any, kind: str) -> Row:
    examples = load_examples(str(write(folder / "d.jsonl", [row, *fillers(kind)])), kind)
    (found,) = (r for r in (*examples.train, *examples.validation) if "line 1" in r.where and r == row)
    return found


SHAPES = [
    ("completion", {"prompt": "a", "completion": "b", "id": 7}, "a", ("b",)),
    ("completion", {"messages": [USER, RIGHT, OTHER, WRONG]}, (USER,), ((RIGHT, OTHER, WRONG),)),
    ("completion", {"messages": [USER, RIGHT], "prompt": "2 + 2?"}, (USER,), ((RIGHT,),)),
    ("completion", {"prompt": [SYSTEM, USER], "completion": "4"}, (SYSTEM, USER), ((RIGHT,),)),
    ("completion", {"prompt": [USER], "completion": [RIGHT]}, (USER,), ((RIGHT,),)),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2}, "a", ("b", "c")),
    ("preference", {"prompt": [USER], "chosen": "4", "rejected": "5"}, (USER,), ((RIGHT,), (WRONG,))),
    (
        "preference",
        {"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]},
        (USER,),
        ((RIGHT,), (WRONG,)),
    ),
    ("preference", {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]}, (USER,), ((RIGHT,), (WRONG,))),
    (
        "preference",
        {"prompt": "2 + 2?", "chosen": [USER, RIGHT, OTHER, RIGHT], "rejected": [USER, RIGHT, OTHER, WRONG]},
        (USER, RIGHT, OTHER),
        ((RIGHT,), (WRONG,)),
    ),
    ("prompts", {"prompt": "a", "answer": "b"}, "a", ()),
    ("prompts", {"prompt": [USER]}, (USER,), ()),
    ("prompts", {"messages": [USER, RIGHT, OTHER, WRONG]}, (USER, RIGHT, OTHER), ()),
    ("prompts", {"messages": [SYSTEM, USER], "answer": "4"}, (SYSTEM, USER), ()),
]


@pytest.mark.parametrize(("kind", "row", "prompt", "answers"), SHAPES)
def test_shape(tmp_path: Path, kind: str, row: Any, prompt: Any, answers: Any) -> None:
    found = read_one(tmp_path, row, kind)
    assert (found.prompt, found.answers) == (prompt, answers)
    assert dict(found) == row  # unknown keys are kept


def test_every_kind_has_a_shape_and_becomes_batches() -> None:
    assert {shape[0] for shape in SHAPES} == set(KINDS) == set(COLLATE)


MISTAKES: list[tuple[str, Any, str]] = [
    ("completion", {"prompt": "a"}, "there is no 'completion' (keys: 'prompt')."),
    ("completion", {"completion": "a"}, "there is no 'prompt'"),
    ("completion", {}, "(keys: none). Expected: 'messages':"),
    ("completion", {"prompt": 3, "completion": "a"}, "'prompt' holds a number."),
    ("completion", {"prompt": "a", "completion": None}, "'completion' holds a null."),
    ("completion", {"prompt": "a", "completion": [RIGHT]}, "list of messages and 'prompt' is text"),
    ("completion", {"prompt": [USER], "completion": [OTHER]}, "'completion' has no assistant's turn"),
    ("completion", {"messages": [USER]}, "'messages' has no assistant's turn"),
    ("completion", {"messages": []}, "'messages' holds no message"),
    ("completion", {"messages": "hi"}, "'messages' holds a string"),
    ("completion", {"messages": [USER, "4"]}, "messages[1] is a string"),
    ("completion", {"messages": [USER, {"role": "assistant"}]}, "messages[1]: there is no 'content'"),
    ("completion", {"messages": [{"from": "human", "value": "x"}]}, "no 'role' (keys: 'from', 'value')"),
    (
        "completion",
        {"messages": [{"role": "user", "content": ["x"]}]},
        "'content' holds a list; it must be a string",
    ),
    (
        "completion",
        {"messages": [USER, {"role": "asistant", "content": "4"}]},
        "messages[1]: unknown role 'asistant'; did you mean 'assistant'?",
    ),
    ("preference", {"prompt": "a", "chosen": "b"}, "there is no 'rejected'"),
    ("preference", {"chosen": "b", "rejected": "c"}, "there is no 'prompt'"),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "1"}, "'margin' is '1'"),
    (
        "preference",
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")},
        "'margin' is nan",
    ),
    ("preference", {"chosen": [USER, RIGHT], "rejected": [USER, RIGHT]}, "no assistant's turn where the two"),
    ("preference", {"chosen": [USER, RIGHT], "rejected": "5"}, "'rejected' holds a string"),
    ("prompts", {"text": "a"}, "there is no 'prompt' (keys: 'text')"),
    ("prompts", {"messages": [RIGHT]}, "nothing before the assistant's answer"),
    ("completion", ["a"], "a list; every line must be one JSON object"),
]


@pytest.mark.parametrize(("kind", "row", "says"), MISTAKES)
def test_mistake_names_file_line_key_and_what_was_expected(
    tmp_path: Path, kind: str, row: Any, says: str
) -> None:
    path = write(tmp_path / "d.jsonl", [*fillers(kind, 2), row])
    with pytest.raises(SteepestError) as error:
        load_examples(str(path), kind)
    message = str(error.value)
    assert f"{str(path)!r}, line 3: " in message
    assert says in message
    assert "xpected" in message or "every line" in message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", "[", "not JSON"),
        ("a.json", "{}", "an object; it must be one list"),
        ("a.json", '[{"prompt": "a"}, 3]', "row 2: a number"),
        ("a.json", '[{"prompt": "a"}, {"promt": "a"}]', "row 2: there is no 'prompt'"),
        ("a.csv", "prompt\n", "neither .jsonl nor .json"),
        ("a.jsonl", '{"prompt": "a"\n', "line 1: not JSON"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "a", "x": 1}\n', "holds 1 different prompt;"),
        ("a.jsonl", "\n", "holds 0 different prompts;"),
        ("folder/a.txt", "prompt", "there is no .jsonl file in"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, says: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(SteepestError) as error:
        load_examples(str(path if path.parent == tmp_path else path.parent), "prompts")
    assert says in str(error.value)


def test_bad_arguments(tmp_path: Path) -> None:
    for spec, kind, says in [
        ("tasks", "completions", "did you mean 'completion'?"),
        ("taks", "prompts", "did you mean 'tasks'?"),
        ("no/such.jsonl", "prompts", "no file or folder"),
    ]:
        with pytest.raises(SteepestError) as error:
            load_examples(spec, kind)
        assert says in str(error.value)
    with pytest.raises(SteepestError, match=r"\(0, 0.5\]"):
        load_examples("tasks", "prompts", validation=0.6)


def test_json_list_and_folder_hold_the_same_rows(tmp_path: Path) -> None:
    rows = fillers("completion")
    (tmp_path / "all.json").write_text(json.dumps(rows))
    write(tmp_path / "d" / "a.jsonl", rows[:10])
    write(tmp_path / "d" / "deep" / "b.jsonl", rows[10:])
    write(tmp_path / "d" / ".hidden" / "c.jsonl", [{"nothing": 1}])
    one = load_examples(str(tmp_path / "all.json"), "completion")
    other = load_examples(str(tmp_path / "d"), "completion")
    assert one.digest == other.digest
    assert [dict(r) for r in one.train] == [dict(r) for r in other.train]


def test_equal_rows_are_dropped_and_rows_of_one_prompt_stay_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 20}", "completion": f"c{i % 60}"} for i in range(90)]
    examples = load_examples(str(write(tmp_path / "d.jsonl", rows)), "completion", validation=0.3)
    assert examples.facts["dropped_rows"] == 30
    train, rest = ({r["prompt"] for r in split} for split in (examples.train, examples.validation))
    assert train and rest and not train & rest
    assert len(train | rest) == 20
    assert examples.facts["train_rows"] + examples.facts["validation_rows"] == 60


def test_a_prompt_is_in_the_same_split_in_every_kind() -> None:
    held = [
        {row["prompt"] for row in load_examples("tasks:copy,add:1:200", kind, validation=0.2).validation}
        for kind in KINDS
    ]
    assert len(held) == 3
    assert held[0] and held[0] == held[1] == held[2]


def test_digest_tells_rows_kinds_and_order_apart(tmp_path: Path) -> None:
    rows = fillers("completion")
    variants = [rows, rows[::-1], [*rows[:-1], {**rows[-1], "id": 1}], rows[:-1]]
    paths = [write(tmp_path / f"{i}.jsonl", variant) for i, variant in enumerate(variants)]
    digests = [load_examples(str(path), "completion").digest for path in paths]
    digests.append(load_examples(str(paths[0]), "prompts").digest)
    assert len(set(digests)) == 5
    assert load_examples(str(paths[0]), "completion").digest == digests[0]


keys = st.sets(st.binary(min_size=32, max_size=32), min_size=2, max_size=60)


@given(keys, keys, st.floats(0.01, 0.5))
def test_rows_added_later_move_none(first: set[bytes], more: set[bytes], share: float) -> None:
    before, after = _held_out(sorted(first), share, "d"), _held_out(sorted(first | more), share, "d")
    moved = (before ^ after) & first
    assert before and before < first
    # Only the stand-in of a split that would be empty may move.
    limit = share * 2**64
    held = {key for key in first if int.from_bytes(key[:8], "big") < limit}
    assert moved <= ({min(first)} if not held else {max(first)} if held == first else set())


def test_share_of_prompts_is_kept() -> None:
    examples = load_examples("tasks:copy,sort:3:4000", "prompts", validation=0.1)
    assert len(examples.validation) / 4000 == pytest.approx(0.1, abs=0.02)


def test_row_is_frozen_and_names_itself() -> None:
    row = load_examples("tasks:copy:1:50", "prompts").train[0]
    assert row.where.startswith("tasks:copy:1:50, row ")
    assert set(row) == {"prompt", "answer", "task", "level"} and len(row) == 4
    with pytest.raises(TypeError):
        row["prompt"] = "x"  # type: ignore[index]
    with pytest.raises(AttributeError):
        row.where = "x"  # type: ignore[misc]
