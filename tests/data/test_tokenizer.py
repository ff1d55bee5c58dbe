"""Tokenizers: exact round trips, deterministic training, a cache that cannot be left half written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steepest.contract import SteepestError
from steepest.data import Corpus, Tokenizer, load_corpus, load_tokenizer
from steepest.data.tokenizer import CHUNK, BpeTokenizer


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus("synthetic:0:60000")


@pytest.fixture(scope="module")
def bpe(corpus: Corpus) -> Tokenizer:
    return load_tokenizer("bpe:400", corpus)


def model_folder(folder: Path, bpe: Tokenizer) -> Path:
    from transformers import PreTrainedTokenizerFast

    assert isinstance(bpe, BpeTokenizer)
    PreTrainedTokenizerFast(tokenizer_object=bpe._backend).save_pretrained(folder)
    return folder


def test_bytes(corpus: Corpus) -> None:
    tokenizer = load_tokenizer("bytes", corpus)
    assert (tokenizer.name, tokenizer.vocab_size) == ("bytes", 256)
    ids = tokenizer.encode(b"a\xff\x00")
    assert ids.dtype == np.int32
    assert ids.tolist() == [97, 255, 0]


@given(st.binary())
def test_bytes_round_trip_on_any_bytes(data: bytes) -> None:
    tokenizer = load_tokenizer("bytes", Corpus("", b"", b"", "", {}))
    assert tokenizer.decode(tokenizer.encode(data)) == data


@given(st.text())
def test_bpe_round_trips_on_any_text(bpe: Tokenizer, text: str) -> None:
    ids = bpe.encode(text.encode())
    assert ids.dtype == np.int32
    assert all(0 <= token < bpe.vocab_size for token in ids.tolist())
    assert bpe.decode(ids) == text.encode()


@given(st.lists(st.integers(0, 399)))
def test_bpe_decodes_any_ids_even_inside_a_character(bpe: Tokenizer, ids: list[int]) -> None:
    assert bpe.decode(ids) == b"".join(bpe.decode([token]) for token in ids)


def test_bpe_knows_every_byte_and_compresses(bpe: Tokenizer, corpus: Corpus) -> None:
    assert (bpe.name, bpe.vocab_size) == ("bpe:400", 400)
    spellings = {bpe.decode([token]) for token in range(400)}
    assert {bytes([byte]) for byte in range(256)} < spellings
    assert len(bpe.encode(corpus.train)) < 0.6 * len(corpus.train)


@pytest.mark.parametrize("text", ["line of text\n", "word ", "é"])
def test_long_text_is_encoded_in_chunks_and_round_trips(bpe: Tokenizer, text: str) -> None:
    data = (text * (5 * CHUNK // 2 // len(text))).encode()
    ids = bpe.encode(data)
    assert bpe.decode(ids) == data
    tenth = bpe.encode((text * (CHUNK // 4 // len(text))).encode())
    assert len(ids) == pytest.approx(10 * len(tenth), rel=0.001)


def test_bpe_is_trained_on_the_training_split_alone_and_always_the_same(corpus: Corpus) -> None:
    other = Corpus(corpus.name, corpus.train, "ζζζ ".encode() * 1000, "other", {})
    ids = [load_tokenizer("bpe:300", c).encode(corpus.train) for c in (corpus, corpus, other)]
    assert np.array_equal(ids[0], ids[1])
    assert np.array_equal(ids[0], ids[2])


def test_bpe_is_kept_and_read_again(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "new" / "cache"
    first = load_tokenizer("bpe:300", corpus, cache=cache)
    load_tokenizer("bpe:301", corpus, cache=cache)
    names = sorted(os.listdir(cache))
    assert names == [f"bpe-{size}-{corpus.digest}.json" for size in (300, 301)]
    monkeypatch.setattr("steepest.data.tokenizer._train_bpe", None)
    again = load_tokenizer("bpe:300", corpus, cache=cache)
    assert np.array_equal(first.encode(corpus.validation), again.encode(corpus.validation))


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b'{"version": "1.0"}'])
def test_damaged_cache_is_trained_anew(corpus: Corpus, tmp_path: Path, damage: bytes) -> None:
    first = load_tokenizer("bpe:300", corpus, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage)
    again = load_tokenizer("bpe:300", corpus, cache=tmp_path)
    assert np.array_equal(first.encode(corpus.validation), again.encode(corpus.validation))
    assert kept.read_bytes() == whole


def test_cache_that_cannot_be_written_leaves_nothing_half(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SteepestError, match="no space left on device; free space"):
        load_tokenizer("bpe:300", corpus, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cache_that_is_a_file(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(SteepestError, match="cannot keep the tokenizer in"):
        load_tokenizer("bpe:300", corpus, cache=tmp_path / "cache")


def test_model_tokenizer_is_the_one_in_the_folder(corpus: Corpus, bpe: Tokenizer, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("model", corpus, model_path=str(model_folder(tmp_path, bpe)))
    assert (tokenizer.name, tokenizer.vocab_size) == ("model", 400)
    ids = tokenizer.encode(corpus.validation)
    assert ids.dtype == np.int32
    assert np.array_equal(ids, bpe.encode(corpus.validation))
    assert tokenizer.decode(ids) == corpus.validation
    assert tokenizer.encode(b"").shape == (0,)


def test_model_tokenizer_says_nothing_on_long_text(
    corpus: Corpus, bpe: Tokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer("model", corpus, model_path=str(model_folder(tmp_path, bpe)))
    tokenizer._backend.model_max_length = 8  # type: ignore[attr-defined]
    tokenizer.encode(corpus.validation)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("byte", "did you mean 'bytes'?"),
        ("bytes:256", "did you mean 'bytes'?"),
        ("words", "unknown tokenizer 'words'"),
        ("bpe", "has no size"),
        ("bpe:", "has no size"),
        ("bpe:4k", "has no size"),
        ("bpe:-5", "has no size"),
        ("bpe:256", "too small: bytes alone take 256"),
        ("bpe:1000000", "which supports"),
        ("model", "needs a model in a local folder"),
    ],
)
def test_bad_specs(corpus: Corpus, spec: str, says: str) -> None:
    with pytest.raises(SteepestError) as error:
        load_tokenizer(spec, corpus)
    assert says in str(error.value)


def test_model_folder_missing(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(SteepestError, match="there is no model folder"):
        load_tokenizer("model", corpus, model_path=str(tmp_path / "none"))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.json": '{"model_type": "llama"}'},
        {"config.json": '{"model_type": "llama"}', "tokenizer.json": "{"},
    ],
)
def test_model_folder_without_a_tokenizer(corpus: Corpus, tmp_path: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(SteepestError, match="no tokenizer that can be loaded"):
        load_tokenizer("model", corpus, model_path=str(tmp_path))
