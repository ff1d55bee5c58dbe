"""Chats: the targets spell exactly what the assistant says, by whatever template."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from chats import FORGETFUL, MARKED_TURNS, PLAIN_TURNS, STRICT, WORDS, words
from hypothesis import given
from hypothesis import strategies as st

from steepest.contract import SteepestError
from steepest.data import Encoded, Tokenizer, encode_answer, encode_prompt
from steepest.data.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()


def spelled(tokenizer: Tokenizer, row: Encoded, *, targets: bool) -> str:
    ids = row.ids[row.targets] if targets else row.ids
    return tokenizer.decode(ids).decode().replace("\ufffd", "")


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


text = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
opening = st.lists(st.builds(turn, st.sampled_from(["system", "user"]), text), min_size=1, max_size=2).map(
    tuple
)
exchanges = st.lists(st.tuples(text, text), max_size=3)


def conversation(exchanges: list[tuple[str, str]], last: str) -> tuple[dict[str, Any], ...]:
    """An answer, then questions and answers."""
    out = [turn("assistant", last)]
    for question, answer in exchanges:
        out += [turn("user", question), turn("assistant", answer)]
    return tuple(out)


@pytest.mark.parametrize("template", [PLAIN_TURNS, MARKED_TURNS])
@given(opening, exchanges, exchanges, text)
def test_targets_are_the_answers_turns_with_their_ends(
    template: str, opening: Any, before: Any, after: Any, last: str
) -> None:
    tokenizer = words(template)
    earlier = (*conversation(before, "w0"), turn("user", "w1")) if before else ()
    prompt = (*opening, *earlier)  # whose answers are not targets
    answer = conversation(after, last)
    row = encode_answer(tokenizer, prompt, answer)
    said = "".join(f"{t['content']}<|end|>" for t in answer if t["role"] == "assistant")
    assert spelled(tokenizer, row, targets=True) == said
    whole = "".join(f"<|{t['role']}|>\n{t['content']}<|end|>\n" for t in (*prompt, *answer))
    assert spelled(tokenizer, row, targets=False) == whole
    start = encode_prompt(tokenizer, prompt)
    assert np.array_equal(row.ids[: len(start)], start)
    assert row.targets.argmax() == len(start)


@pytest.mark.parametrize(
    "tokenizer", [BYTES, words(None), words(None, start=True)], ids=["bytes", "w", "start"]
)
@given(opening, exchanges, text)
def test_plain_template(tokenizer: Tokenizer, opening: Any, after: Any, last: str) -> None:
    answer = conversation(after, last)
    row = encode_answer(tokenizer, opening, answer)
    end = tokenizer.decode([tokenizer.end_id]).decode(errors="replace")

    def written(turns: Any) -> str:
        return "".join(
            f"<{t['role']}>\n{t['content']}{end if t['role'] == 'assistant' else chr(10)}" for t in turns
        )

    start = encode_prompt(tokenizer, opening)
    assert np.array_equal(row.ids[: len(start)], start)
    assert tuple(start[: len(tokenizer.start_ids)]) == tokenizer.start_ids
    assert row.targets.argmax() == len(start)
    said = [t["content"] for t in answer if t["role"] == "assistant"]
    if tokenizer is BYTES:
        assert tokenizer.decode(row.ids).decode(errors="replace") == written((*opening, *answer))
        assert tokenizer.decode(row.ids[row.targets]).decode(errors="replace") == "".join(
            s + end for s in said
        )
    assert (row.ids[row.targets] == tokenizer.end_id).sum() == len(said)


@given(st.text(), st.text())
def test_texts_are_encoded_apart_and_end(prompt: str, answer: str) -> None:
    row = encode_answer(BYTES, prompt, answer)
    written = [part.encode("utf-8", errors="replace") for part in (prompt, answer)]
    assert bytes(row.ids.astype(np.uint8)) == written[0] + written[1] + b"\xff"
    assert row.targets.tolist() == [False] * len(written[0]) + [True] * (len(written[1]) + 1)
    assert np.array_equal(encode_prompt(BYTES, prompt), row.ids[: len(written[0])])


def test_start_of_text_stands_before_texts_and_not_before_templates() -> None:
    plain, started = words(PLAIN_TURNS), words(PLAIN_TURNS, start=True)
    assert plain.start_ids == ()
    (first,) = started.start_ids
    assert started.decode([first]) == b"<|start|>"
    assert started.decode(encode_answer(started, "w1", "w2").ids) == b"<|start|>w1w2<|end|>"
    assert plain.decode(encode_answer(plain, "w1", "w2").ids) == b"w1w2<|end|>"
    assert first not in encode_answer(started, (turn("user", "w1"),), (turn("assistant", "w2"),)).ids


def test_template_that_rewrites_earlier_turns_is_refused_where_it_matters() -> None:
    tokenizer = words(FORGETFUL)
    user, said = turn("user", "w1"), turn("assistant", "w2")
    row = encode_answer(tokenizer, (user, said, user), (said,))
    assert spelled(tokenizer, row, targets=True) == "w2<|end|>"
    with pytest.raises(SteepestError, match="writes earlier turns differently once others follow"):
        encode_answer(tokenizer, (user,), (said, user, said))


def test_marked_template_that_rewrites_the_prompt_is_refused() -> None:
    marked = MARKED_TURNS.replace("{% if m.role", "{% if loop.last and m.role == 'user' %}w9{% elif m.role")
    tokenizer = words(marked)
    user, said = turn("user", "w1"), turn("assistant", "w2")
    with pytest.raises(SteepestError, match="writes earlier turns differently"):
        encode_answer(tokenizer, (user, said, user), (said,))


def test_template_that_refuses_a_turn_says_why() -> None:
    with pytest.raises(SteepestError, match=r"refuses these messages \(no system turn\); change them"):
        encode_answer(words(STRICT), (turn("system", "w1"),), (turn("assistant", "w2"),))


def test_text_and_messages_do_not_mix() -> None:
    with pytest.raises(SteepestError, match="both be text"):
        encode_answer(BYTES, "a", (turn("assistant", "b"),))
