"""A seeded language whose entropy rate is computed, so that a loss on it has a known floor.

The words fall into classes. The class of a word is the class before it plus a random step, modulo the
number of classes; the word is then drawn from its class by a roughly Zipfian law. Words are distinct
and made of letters only, one space ends each, so the bytes can be read back in one way only.

A random step modulo a number leaves every class equally likely, whatever the law of the step: the
stationary law is uniform exactly. As a word tells its class, the entropy rate is

    H(step) + mean over classes of H(word | class)        bits per word,

and per byte that over the mean length of a word and its space.

All draws are 32-bit integers of a Philox stream against integer tables that sum to 2**32, so a seed
gives the same bytes on every machine. Of numpy only the raw stream of the bit generator is used, which
numpy guarantees to keep; its distributions and permutations carry no such promise (NEP 19).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from steepest.contract import SteepestError
from steepest.data.seeds import seed_for

CLASSES = 16
SYLLABLES = {1: 4, 2: 12, 3: 16}
"""Syllables of a word: how many words of a class have them."""
WORDS = sum(SYLLABLES.values())
"""Words of a class."""
ONE = 2**32
"""Probability one."""

Integers = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]


@dataclass(frozen=True)
class Language:
    """The true model of a synthetic text."""

    seed: int
    words: tuple[bytes, ...]
    """(CLASSES * WORDS,) spellings with their space, class by class."""
    step_law: Integers
    """(CLASSES,) probability of each step, in units of 2**-32."""
    word_law: Integers
    """(CLASSES, WORDS) probability of each word in its class, in units of 2**-32."""

    @property
    def bytes_per_word(self) -> float:
        """Mean length of a word and its space, in bytes."""
        return self._bytes_of_one_per_class / CLASSES / ONE

    @property
    def floor(self) -> float:
        """Entropy rate in bits per byte: no model's expected loss on an endless text is lower."""
        bits_per_word = _entropy(self.step_law) + _entropy(self.word_law) / CLASSES
        return bits_per_word / self.bytes_per_word

    def text(self, size: int, stream: str) -> bytes:
        """About `size` bytes, whole words; a stream's longer text begins with its shorter one."""
        count = max(1, size * CLASSES * ONE // self._bytes_of_one_per_class)
        draws = _draws(self.seed, stream, 2 * count).reshape(count, 2)
        steps = np.searchsorted(np.cumsum(self.step_law), draws[:, 0], side="right")
        classes = (np.cumsum(steps) % CLASSES).astype(np.uint64)
        # One table serves all classes: class c's words lie in [c * ONE, (c + 1) * ONE).
        words = np.searchsorted(
            np.cumsum(self.word_law), classes * np.uint64(ONE) + draws[:, 1], side="right"
        )
        return b"".join(map(self.words.__getitem__, words.tolist()))

    @property
    def _bytes_of_one_per_class(self) -> int:
        """Mean length of one word from each class together, in units of 2**-32 byte: exact."""
        lengths = np.array([len(word) for word in self.words], dtype=np.uint64)
        return int((self.word_law.ravel() * lengths).sum())


def language(seed: int) -> Language:
    """The language of a seed."""
    halving: Integers = _weights(seed, "steps", (CLASSES,)) >> np.arange(CLASSES, dtype=np.uint64)
    ranks: Integers = np.arange(1, WORDS + 1, dtype=np.uint64)
    zipf = _weights(seed, "words", (CLASSES, WORDS)) // ranks
    return Language(seed, _spellings(seed), _law(halving), _law(zipf))


def synthetic_floor(seed: int) -> float:
    """The entropy rate of `synthetic:SEED` in bits per byte."""
    return language(seed).floor


def parse_synthetic(spec: str) -> tuple[int, int]:
    """(seed, bytes) of "synthetic", "synthetic:SEED" or "synthetic:SEED:BYTES"."""
    defaults = ["0", str(2**22)]
    given = spec.split(":")[1:]
    try:
        seed, size = (int(text) for text in given + defaults[len(given) :])
    except ValueError as error:
        raise SteepestError(
            f"data {spec!r} is not understood; write 'synthetic', 'synthetic:SEED' or 'synthetic:SEED:BYTES' "
            "with whole numbers."
        ) from error
    if size < 1:
        raise SteepestError(f"data {spec!r} asks for {size} bytes; ask for at least one.")
    return seed, size


def _draws(seed: int, stream: str, count: int) -> Integers:
    """`count` integers, uniform in [0, 2**32)."""
    raw: Integers = np.random.Philox(key=seed_for(seed, f"synthetic/{stream}")).random_raw(count)
    return raw >> np.uint64(32)


def _weights(seed: int, stream: str, shape: tuple[int, ...]) -> Integers:
    """Integers uniform in [2**20, 2**21): the same to within a factor of two, so that seeds differ."""
    return np.uint64(2**20) + _draws(seed, stream, math.prod(shape)).reshape(shape) % np.uint64(2**20)


def _law(weights: Integers) -> Integers:
    """Integer weights (..., n) below 2**26 as probabilities that sum to 2**32 exactly, none of them zero."""
    weights = np.maximum(weights, np.uint64(1))
    law: Integers = weights * np.uint64(ONE) // weights.sum(axis=-1, keepdims=True)
    law[..., 0] += np.uint64(ONE) - law.sum(axis=-1)
    return law


def _entropy(law: Integers) -> float:
    """Entropy in bits, summed over all rows."""
    p = law / ONE
    return float(-(p * np.log2(p)).sum())


def _spellings(seed: int) -> tuple[bytes, ...]:
    """Distinct words, class by class; in each class the likelier words have fewer syllables."""
    syllables = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiou"]
    ranks: list[list[str]] = []
    for length, count in SYLLABLES.items():
        numbers = _draws(seed, f"spellings/{length}", 16 * count * CLASSES) % np.uint64(
            len(syllables) ** length
        )
        distinct = list(dict.fromkeys(numbers.tolist()))[: count * CLASSES]
        words = ["".join(syllables[n // 100**i % 100] for i in range(length)) for n in distinct]
        ranks += [words[start : start + CLASSES] for start in range(0, len(words), CLASSES)]
    return tuple(f"{word} ".encode() for by_class in zip(*ranks, strict=True) for word in by_class)
