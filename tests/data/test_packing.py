"""Packing: nothing lost, nothing twice, no document cut that fits."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steepest.contract import SteepestError
from steepest.data import Corpus, Packed, Sampler, encode_document, fixed_batches, load_corpus
from steepest.data.packing import PADDING, best_fit
from steepest.data.tokenizer import ByteTokenizer

sizes = st.lists(st.integers(0, 40), max_size=25)


def documents_of(sizes: list[int]) -> list[np.ndarray]:
    """Documents whose tokens are all different, so that each names its place."""
    starts = np.cumsum([0, *sizes])
    return [
        np.arange(start, start + size, dtype=np.int32) for start, size in zip(starts, sizes, strict=False)
    ]


@given(sizes, st.integers(1, 16))
def test_every_token_but_a_documents_first_is_predicted_once(sizes: list[int], length: int) -> None:
    documents = documents_of(sizes)
    packed = Packed(documents, length=length, pad_id=9999)
    assert packed.left_out == sum(size < 2 for size in sizes)
    follows = {b: a for document in documents for a, b in pairwise(document.tolist())}
    batch = packed.batch(np.arange(len(packed.lengths)))
    ids, segments = batch["ids"], batch["segments"]
    assert ids.shape == segments.shape == (len(packed.lengths), length + 1)
    inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != PADDING)
    predicted = dict(zip(ids[:, 1:][inside].tolist(), ids[:, :-1][inside].tolist(), strict=True))
    assert len(predicted) == int(inside.sum())
    assert predicted == follows
    assert ((segments == PADDING) == (ids == 9999)).all()
    assert (segments != PADDING).sum(1).tolist() == packed.lengths.tolist()
    for row in segments.tolist():
        real = [s for s in row if s != PADDING]
        assert row == real + [PADDING] * (len(row) - len(real))
        assert sorted(set(real)) == list(range(len(set(real)))) and real == sorted(real)


@given(st.lists(st.integers(2, 17), max_size=30))
def test_a_document_that_fits_is_not_cut(sizes: list[int]) -> None:
    packed = Packed(documents_of(sizes), length=16)
    batch = packed.batch(np.arange(len(packed.lengths)))
    found = [
        int((row == segment).sum()) for row in batch["segments"] for segment in range(int(row.max()) + 1)
    ]
    assert sorted(found) == sorted(sizes)


@given(st.lists(st.integers(1, 12), max_size=40))
def test_best_fit_wastes_little(sizes: list[int]) -> None:
    rows = best_fit(np.array(sizes, dtype=np.int64), 12)
    assert sorted(piece for row in rows for piece in row) == list(range(len(sizes)))
    filled = [sum(sizes[piece] for piece in row) for row in rows]
    assert all(0 < total <= 12 for total in filled)
    least = -(-sum(sizes) // 12)
    assert len(rows) <= 11 / 9 * least + 1 or sum(2 * size > 12 for size in sizes) > least / 2
    assert sum(2 * total <= 12 for total in filled) <= 1  # two rows half empty would be one


def test_best_fit_takes_the_fullest_row_that_has_room() -> None:
    assert best_fit(np.array([5, 8, 2, 3, 4]), 10) == [[1, 2], [0, 4], [3]]


def test_is_the_same_in_another_process() -> None:
    program = (
        "import numpy as np; from steepest.data import Packed; "
        "d = [np.arange(n % 37, dtype=np.int32) for n in range(0, 900, 7)]; "
        "p = Packed(d, length=32); b = p.batch(np.arange(len(p.lengths))); "
        "print(b['ids'].flatten().tolist(), b['segments'].flatten().tolist())"
    )
    packed = Packed([np.arange(n % 37, dtype=np.int32) for n in range(0, 900, 7)], length=32)
    batch = packed.batch(np.arange(len(packed.lengths)))
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == f"{batch['ids'].flatten().tolist()} {batch['segments'].flatten().tolist()}"


def test_padding_is_stated_and_sampling_is_that_of_rows() -> None:
    packed = Packed(documents_of([9, 9, 3, 3, 3]), length=8)
    assert len(packed.lengths) == 3 and packed.padding == 0.0
    assert Packed(documents_of([6, 6]), length=8).padding == pytest.approx(1 / 3)
    sampler = Sampler(packed, batch=1, seed=0)
    assert {tuple(sampler.at(i)["ids"][0].tolist()) for i in range(3)} == {
        tuple(row.tolist()) for batch in fixed_batches(packed, batch=2) for row in batch["ids"]
    }
    assert Packed([], length=8).padding == 0.0
    with pytest.raises(SteepestError, match="length=0 must be at least 1"):
        Packed([], length=0)


def test_a_corpus_gives_its_documents_back(tmp_path: Path) -> None:
    texts = [f"text {i}\n\nof several\n" * (i + 1) for i in range(12)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    corpus = load_corpus(str(tmp_path), validation=0.3)
    splits = corpus.documents()
    assert sorted(splits[0] + splits[1]) == sorted(text.encode() for text in texts)
    assert (b"\n".join(splits[0]), b"\n".join(splits[1])) == (corpus.train, corpus.validation)
    assert all(splits)


def test_text_without_borders_is_one_document() -> None:
    assert Corpus("", b"a\nb", b"c", "", {}).documents() == ([b"a\nb"], [b"c"])
    synthetic = load_corpus("synthetic:0:5000")
    assert synthetic.documents() == ([synthetic.train], [synthetic.validation])


def test_packed_documents_end(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    ids = [encode_document(tokenizer, text) for text in (b"one", b"three", b"")]
    packed = Packed(ids, length=16, pad_id=tokenizer.pad_id)
    batch = packed.batch(np.arange(1))
    assert tokenizer.decode(batch["ids"][0].numpy()) == b"three\xffone\xff" + b"\xfe" * 7
    assert packed.left_out == 1
