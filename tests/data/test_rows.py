"""Rows: an order that is a pure permutation, batches that hold what was written, cuts that are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from chats import PLAIN_TURNS, words
from hypothesis import given
from hypothesis import strategies as st

from steepest.contract import SteepestError
from steepest.data import Order, Row, Sampler, encode_rows, fixed_batches, load_examples, seq2seq_rows
from steepest.data.examples import KINDS
from steepest.data.rows import MULTIPLE
from steepest.data.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()


def rows_of(*pairs: tuple[str, ...], **extra: Any) -> list[Row]:
    return [
        Row({"prompt": p, **extra}, f"d.jsonl, line {i}", p, tuple(a)) for i, (p, *a) in enumerate(pairs, 1)
    ]


def text_of(ids: torch.Tensor, mask: torch.Tensor) -> bytes:
    return BYTES.decode(ids[mask].numpy())


@given(st.integers(1, 7), st.integers(0, 40), st.booleans(), st.integers(0, 2**63 - 1), st.data())
def test_an_epoch_is_a_permutation_less_the_last_part(
    batch: int, extra: int, by_length: bool, seed: int, data: Any
) -> None:
    count = batch + extra
    lengths = np.array(data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)), dtype=np.int64)
    order = Order(lengths, batch=batch, seed=seed, by_length=by_length)
    again = Order(lengths, batch=batch, seed=seed, by_length=by_length)
    assert order.batches_per_epoch == count // batch
    for epoch in range(2):
        positions = [epoch * order.batches_per_epoch + i for i in range(order.batches_per_epoch)]
        seen = np.concatenate([order.at(position) for position in positions])
        assert len(set(seen.tolist())) == len(seen) == order.batches_per_epoch * batch
        assert seen.min() >= 0 and seen.max() < count
        backwards = [again.at(position) for position in reversed(positions)]
        assert np.array_equal(np.concatenate(backwards[::-1]), seen)


def test_order_is_that_of_windows_and_pinned() -> None:
    """The same on every machine and with every numpy: published runs depend on it."""
    order = Order(np.ones(10, dtype=np.int64), batch=5, seed=42)
    assert np.concatenate([order.at(0), order.at(1)]).tolist() == [4, 8, 0, 6, 7, 2, 3, 1, 5, 9]
    lengths = np.arange(10)
    sorted_order = Order(lengths, batch=5, seed=42, by_length=True)
    assert sorted([sorted_order.at(0).tolist(), sorted_order.at(1).tolist()]) == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
    ]


def test_batches_by_length_pad_less_and_differ_between_epochs() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 1000)

    def padding(order: Order) -> float:
        found = [lengths[order.at(i)] for i in range(order.batches_per_epoch)]
        return sum(float((rows.max() - rows).sum()) for rows in found)

    plain, sorted_order = (Order(lengths, batch=8, seed=0, by_length=flag) for flag in (False, True))
    assert padding(sorted_order) < 0.1 * padding(plain)
    means = [lengths[sorted_order.at(i)].mean() for i in range(40)]
    assert means != sorted(means)
    epochs = [{tuple(sorted(sorted_order.at(e * 125 + i))) for i in range(125)} for e in (0, 1)]
    assert len(epochs[0] & epochs[1]) < 5


def test_bad_orders() -> None:
    lengths = np.ones(3, dtype=np.int64)
    with pytest.raises(SteepestError, match="there are 3 rows to train on and one batch needs 4"):
        Order(lengths, batch=4, seed=0)
    with pytest.raises(SteepestError, match="batch=0 must be at least 1"):
        Order(lengths, batch=0, seed=0)
    with pytest.raises(SteepestError, match="no batch at position -1"):
        Order(lengths, batch=1, seed=0).at(-1)


texts = st.text(alphabet="abc é", min_size=1, max_size=12)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5), st.integers(40, 64))
def test_completions_hold_what_was_written(pairs: list[tuple[str, str]], context: int) -> None:
    rows = encode_rows(rows_of(*pairs), "completion", BYTES, context=context)
    assert (rows.cut, rows.dropped) == (0, 0)
    batch = rows.batch(np.arange(len(pairs)))
    ids, mask, targets = batch["ids"], batch["mask"], batch["targets"]
    assert (ids.dtype, mask.dtype, targets.dtype) == (torch.int64, torch.bool, torch.bool)
    assert ids.shape == mask.shape == targets.shape
    assert ids.shape[1] % MULTIPLE == 0 or ids.shape[1] == context
    assert ids.shape[1] - rows.lengths.max() < MULTIPLE
    for i, (prompt, answer) in enumerate(pairs):
        assert text_of(ids[i], mask[i]) == (prompt + answer).encode() + b"\xff"
        assert text_of(ids[i], targets[i]) == answer.encode() + b"\xff"
        assert mask[i].int().diff().max() <= 0  # padding is on the right
    assert (ids[~mask] == BYTES.pad_id).all()


@given(st.integers(0, 20), st.integers(0, 20), st.integers(2, 24))
def test_longer_row_loses_its_prompts_beginning_then_its_answers_end(p: int, a: int, context: int) -> None:
    prompt, answer = "p" * (p + 1), "".join(chr(97 + i) for i in range(a))
    rows = encode_rows(rows_of((prompt, answer)), "completion", BYTES, context=context)
    batch = rows.batch(np.arange(1))
    whole = (prompt + answer).encode() + b"\xff"
    excess = max(0, len(whole) - context)
    spare = min(excess, p)
    assert rows.cut == (excess > 0)
    assert text_of(batch["ids"], batch["mask"]) == whole[spare:][:context]
    assert text_of(batch["ids"], batch["targets"]) == (answer.encode() + b"\xff")[: context - (p + 1 - spare)]
    assert batch["targets"].any() and batch["ids"].shape[1] <= context


def test_longer_rows_may_be_dropped_and_are_counted() -> None:
    rows = encode_rows(
        rows_of(("a", "b"), ("a" * 9, "b"), ("a", "c")), "completion", BYTES, context=8, overlong="drop"
    )
    assert (len(rows.items), rows.cut, rows.dropped) == (2, 0, 1)
    assert rows.lengths.tolist() == [3, 3]
    with pytest.raises(SteepestError, match="all 1 rows are longer than the context of 8"):
        encode_rows(rows_of(("a" * 9, "b")), "completion", BYTES, context=8, overlong="drop")


@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=4), st.integers(4, 48))
def test_pairs_keep_one_prompt_and_one_length(triples: list[tuple[str, str, str]], context: int) -> None:
    rows = encode_rows(rows_of(*triples, margin=0.5), "preference", BYTES, context=context)
    batch = rows.batch(np.arange(len(triples)))
    assert batch["chosen"]["ids"].shape == batch["rejected"]["ids"].shape
    assert batch["margin"].tolist() == [0.5] * len(triples) and batch["margin"].dtype == torch.float32
    for i, (prompt, *answers) in enumerate(triples):
        prompts = []
        for side, answer in zip((batch["chosen"], batch["rejected"]), answers, strict=True):
            assert (answer.encode() + b"\xff").startswith(text_of(side["ids"][i], side["targets"][i]))
            assert side["targets"][i].any()
            prompts.append(text_of(side["ids"][i], side["mask"][i] & ~side["targets"][i]))
        assert prompts[0] == prompts[1]
        assert prompt.encode().endswith(prompts[0])


def test_missing_margin_is_none() -> None:
    rows = encode_rows(rows_of(("a", "b", "c")), "preference", BYTES, context=8)
    assert rows.batch(np.arange(1))["margin"].tolist() == [0.0]


@given(st.lists(texts, min_size=1, max_size=5), st.integers(2, 32))
def test_prompts_are_padded_on_the_left_and_bring_their_rows(prompts: list[str], context: int) -> None:
    given = rows_of(*((p,) for p in prompts), answer="x")
    rows = encode_rows(given, "prompts", BYTES, context=context)
    batch = rows.batch(np.arange(len(prompts)))
    assert set(batch) == {"ids", "mask", "rows"}
    assert batch["rows"] == tuple(given)
    assert batch["mask"][:, -1].all()
    for i, prompt in enumerate(prompts):
        assert text_of(batch["ids"][i], batch["mask"][i]) == prompt.encode()[-context:]
        assert batch["mask"][i].int().diff().min() >= 0


def test_seq2seq_reads_the_prompt_and_writes_the_answer() -> None:
    rows = seq2seq_rows(rows_of(("hello", "ab"), ("h" * 30, "abc" * 10)), BYTES, context=16, start_id=7)
    batch = rows.batch(np.arange(2))
    assert text_of(batch["inputs"][0], batch["inputs_mask"][0]) == b"hello\xff"
    assert text_of(batch["ids"][0], batch["mask"][0]) == b"\x07ab\xff"
    assert text_of(batch["ids"][0], batch["targets"][0]) == b"ab\xff"
    assert rows.cut == 1
    assert text_of(batch["inputs"][1], batch["inputs_mask"][1]) == b"h" * 15 + b"\xff"
    assert text_of(batch["ids"][1], batch["mask"][1]) == b"\x07" + b"abc" * 5
    assert batch["ids"].shape[1] == 16


def test_chats_become_rows() -> None:
    user, said = {"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}
    row = Row({"messages": [user, said]}, "here", (user,), ((said,),))
    tokenizer = words(PLAIN_TURNS)
    batch = encode_rows([row], "completion", tokenizer, context=64).batch(np.arange(1))
    assert tokenizer.decode(batch["ids"][batch["targets"]].numpy()) == b"w3<|end|>"
    assert batch["ids"][0, -1] == tokenizer.pad_id == tokenizer.end_id
    assert not batch["mask"][0, -1]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_sampler_and_fixed_batches(kind: str) -> None:
    examples = load_examples("tasks:copy,add:1:100", kind)
    rows = encode_rows(examples.train, kind, BYTES, context=64)
    sampler = Sampler(rows, batch=8, seed=3, by_length=True)
    one, again = sampler.at(5), Sampler(rows, batch=8, seed=3, by_length=True).at(5)
    assert repr(one) == repr(again) == repr(rows.batch(sampler.order.at(5)))
    fixed = fixed_batches(rows, batch=8, limit=20)
    sizes = [
        len(next(iter(batch.values()))["ids"] if kind == "preference" else batch["ids"]) for batch in fixed
    ]
    assert sizes == [8, 8, 4]


def test_fixed_batches_are_evenly_spaced() -> None:
    rows = encode_rows(rows_of(*((chr(97 + i), "x") for i in range(20))), "completion", BYTES, context=8)
    (batch,) = fixed_batches(rows, batch=8, limit=4)
    assert BYTES.decode(batch["ids"][:, 0].numpy()) == b"afkp"
    assert sum(len(b["ids"]) for b in fixed_batches(rows, batch=8)) == 20
    for options in ({"batch": 0}, {"batch": 4, "limit": 0}):
        with pytest.raises(SteepestError, match="leave nothing to measure on"):
            fixed_batches(rows, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        (("", ""), "completion", "d.jsonl, line 1: there is no token to predict"),
        (("",), "prompts", "d.jsonl, line 1: the prompt is empty"),
        (("a", "b"), "completions", "did you mean 'completion'?"),
    ],
)
def test_bad_rows(row: tuple[str, ...], kind: str, says: str) -> None:
    with pytest.raises(SteepestError) as error:
        encode_rows(rows_of(row), kind, BYTES, context=8)
    assert says in str(error.value)


def test_first_token_of_all_is_no_target() -> None:
    batch = encode_rows(rows_of(("", "ab")), "completion", BYTES, context=8).batch(np.arange(1))
    assert text_of(batch["ids"], batch["targets"]) == b"b\xff"


def test_bad_options() -> None:
    with pytest.raises(SteepestError, match="context=1 leaves nothing"):
        encode_rows([], "prompts", BYTES, context=1)
    with pytest.raises(SteepestError, match="did you mean 'drop'"):
        encode_rows([], "prompts", BYTES, context=8, overlong="dorp")  # type: ignore[arg-type]
