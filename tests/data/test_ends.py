"""The tokens that end and fill a text: in every vocabulary, in no text."""

from __future__ import annotations

import numpy as np
import pytest
from chats import PLAIN_TURNS, words
from hypothesis import given
from hypothesis import strategies as st

from steepest.contract import SteepestError
from steepest.data import Tokenizer, decode_answer, encode_document, load_corpus, load_tokenizer
from steepest.data.tokenizer import ModelTokenizer


@pytest.fixture(scope="module", params=["bytes", "bpe:400"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(request.param, load_corpus("synthetic:0:60000"))


@given(st.text())
def test_no_text_holds_them(tokenizer: Tokenizer, text: str) -> None:
    assert 0 <= tokenizer.end_id < tokenizer.vocab_size
    assert 0 <= tokenizer.pad_id < tokenizer.vocab_size
    assert tokenizer.end_id != tokenizer.pad_id
    assert not {tokenizer.end_id, tokenizer.pad_id} & set(tokenizer.encode(text.encode()).tolist())


@given(st.text(), st.text())
def test_answer_is_read_up_to_its_end(tokenizer: Tokenizer, text: str, more: str) -> None:
    ids = encode_document(tokenizer, text.encode())
    assert ids.dtype == np.int32 and ids[-1] == tokenizer.end_id
    assert decode_answer(tokenizer, ids) == text
    assert decode_answer(tokenizer, [*ids, *tokenizer.encode(more.encode()), tokenizer.pad_id]) == text
    assert decode_answer(tokenizer, ids[:-1]) == text


def test_bytes_are_themselves(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([tokenizer.end_id, tokenizer.pad_id]) == b"\xff\xfe"
    assert tokenizer.start_ids == () and tokenizer.chat is None


def test_models_own() -> None:
    plain, chat = words(None, start=True), words(PLAIN_TURNS)
    assert plain.decode([plain.end_id]) == b"<|end|>"
    assert plain.pad_id == plain.end_id  # it names no other
    assert plain.chat is None and chat.chat is not None
    ids = encode_document(plain, b"w1 w2")
    assert plain.decode(ids) == b"<|start|>w1 w2<|end|>"
    assert decode_answer(plain, ids[1:]) == "w1 w2"


def test_model_without_an_end_says_so() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer = ModelTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="a"))
    assert tokenizer.pad_id == 0
    with pytest.raises(SteepestError, match="names no token that ends a text; set eos_token"):
        encode_document(tokenizer, b"a")


def test_only_a_trained_tokenizer_needs_text() -> None:
    assert load_tokenizer("bytes", None).vocab_size == 256
    with pytest.raises(SteepestError, match="'bpe:400' is trained on text; give a corpus"):
        load_tokenizer("bpe:400", None)
