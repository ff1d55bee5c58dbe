"""The synthetic language: the same bytes everywhere, and a floor that is its true entropy rate."""

from __future__ import annotations

import hashlib
import itertools
import lzma
import math
from collections import Counter

import numpy as np
import pytest

from steepest.contract import SteepestError
from steepest.data import load_corpus, synthetic_floor
from steepest.data.synthetic import CLASSES, ONE, WORDS, Language, language, parse_synthetic

SEEDS = (0, 1, 12345)


def word_chain(model: Language) -> np.ndarray:
    """The language spelled out as a Markov chain on words: (n, n) transition probabilities."""
    chain = np.zeros((CLASSES * WORDS, CLASSES * WORDS))
    for before in range(CLASSES * WORDS):
        for step in range(CLASSES):
            after = (before // WORDS + step) % CLASSES
            chain[before, after * WORDS : (after + 1) * WORDS] = (
                float(model.step_law[step]) / ONE * (model.word_law[after] / ONE)
            )
    return chain


def read_words(model: Language, text: bytes) -> list[int]:
    """Indices of the words of a text, read back from its bytes alone."""
    index = {word: i for i, word in enumerate(model.words)}
    return [index[word + b" "] for word in text.removesuffix(b" ").split(b" ")]


@pytest.mark.parametrize("seed", SEEDS)
def test_laws_are_exact_and_words_are_uniquely_decodable(seed: int) -> None:
    model = language(seed)
    assert model.step_law.min() > 0 and model.word_law.min() > 0
    assert int(model.step_law.sum()) == ONE
    assert {int(total) for total in model.word_law.sum(axis=1)} == {ONE}
    assert len(set(model.words)) == CLASSES * WORDS
    assert all(word[:-1].isalpha() and word.endswith(b" ") for word in model.words)
    text = model.text(10_000, "train")
    assert b"".join(model.words[i] for i in read_words(model, text)) == text


@pytest.mark.parametrize("seed", SEEDS)
def test_floor_is_the_entropy_rate_of_the_chain_of_words_by_definition(seed: int) -> None:
    model = language(seed)
    chain = word_chain(model)
    assert chain.sum(axis=1) == pytest.approx(1.0, abs=1e-12)
    stationary = np.full(len(chain), 1 / len(chain))
    for _ in range(200):
        stationary = stationary @ chain
    assert stationary @ chain == pytest.approx(stationary, abs=1e-14)
    logs = np.log2(chain, where=chain > 0, out=np.zeros_like(chain))
    bits = -(stationary @ (chain * logs).sum(axis=1))
    mean_bytes = stationary @ np.array([len(word) for word in model.words])
    assert model.floor == pytest.approx(bits / mean_bytes, rel=1e-12)
    assert model.bytes_per_word == pytest.approx(mean_bytes, rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_true_model_codes_the_text_at_the_floor(seed: int) -> None:
    model = language(seed)
    text = model.text(1_000_000, "validation")
    words = np.array(read_words(model, text))
    bits = -np.log2(word_chain(model)[words[:-1], words[1:]])
    lengths = np.array([len(word) for word in model.words])[words[1:]]
    per_byte = bits.sum() / lengths.sum()
    # The standard error of a ratio of means, from the residuals of its words.
    error = np.std(bits - per_byte * lengths) / math.sqrt(len(bits)) / lengths.mean()
    assert error < 0.002
    assert per_byte == pytest.approx(model.floor, abs=4 * error)


def test_counting_alone_estimates_the_floor() -> None:
    """A second estimate that knows nothing of the tables: entropy of pairs less entropy of single words."""
    model = language(0)
    words = read_words(model, model.text(3_000_000, "train"))

    def entropy(counts: Counter) -> float:
        total = sum(counts.values())
        plug_in = -sum(n / total * math.log2(n / total) for n in counts.values())
        return plug_in + (len(counts) - 1) / (2 * total * math.log(2))  # Miller and Madow's correction

    classes = [word // WORDS for word in words]
    of_class = entropy(Counter(itertools.pairwise(classes))) - entropy(Counter(classes))
    of_word = entropy(Counter(words)) - entropy(Counter(classes))
    lengths = sum(len(model.words[word]) for word in words) / len(words)
    assert (of_class + of_word) / lengths == pytest.approx(model.floor, rel=0.004)


def test_no_general_compressor_gets_below_the_floor() -> None:
    text = language(3).text(500_000, "train")
    assert 8 * len(lzma.compress(text, preset=6)) / len(text) > synthetic_floor(3)


def test_bytes_are_pinned() -> None:
    """The same on every machine and with every numpy: a change here changes every published floor."""
    corpus = load_corpus("synthetic:7:100000")
    assert corpus.train[:40] == b"sizi ha cici siha hava hava xi xi logi n"
    assert (
        hashlib.sha256(corpus.train).hexdigest()
        == "5f5ccfa444c06babe35b0355cb24f448fc13e3f95c5eeb871f5735dd26870092"
    )
    assert corpus.facts["floor_bits_per_byte"] == pytest.approx(1.4327497972412342, abs=1e-12)


def test_longer_text_begins_with_the_shorter_and_sizes_are_met() -> None:
    model = language(5)
    short, long = model.text(10_000, "train"), model.text(50_000, "train")
    assert long.startswith(short)
    assert len(long) == pytest.approx(50_000, rel=0.02)


def test_seeds_and_splits_differ() -> None:
    one, other = load_corpus("synthetic:1:20000"), load_corpus("synthetic:2:20000")
    assert len({one.train[:1000], one.validation[:1000], other.train[:1000], other.validation[:1000]}) == 4
    assert synthetic_floor(1) != synthetic_floor(2)
    assert one.facts["floor_bits_per_byte"] == synthetic_floor(1)
    assert one.facts["seed"] == 1
    assert 0.03 < len(one.validation) / len(one.train) < 0.07


def test_specs() -> None:
    assert parse_synthetic("synthetic") == (0, 2**22)
    assert parse_synthetic("synthetic:9") == (9, 2**22)
    assert parse_synthetic("synthetic:9:500") == (9, 500)


@pytest.mark.parametrize(
    "spec", ["synthetic:", "synthetic:x", "synthetic:1:2:3", "synthetic:1:0", "synthetic:1.5"]
)
def test_bad_specs(spec: str) -> None:
    with pytest.raises(SteepestError, match=spec):
        load_corpus(spec)
