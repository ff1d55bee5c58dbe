"""A corpus: text in two splits that share no document, and what is known about it."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate
from pathlib import Path

from steepest.contract import SteepestError, unknown
from steepest.data.documents import Document, Reading, read_path
from steepest.data.stdlib import read_stdlib
from steepest.data.synthetic import language, parse_synthetic

SOURCES = ("stdlib", "synthetic")
"""The corpora that need no path."""

Facts = dict[str, float | int | str]


@dataclass(frozen=True)
class Corpus:
    """Valid UTF-8 text to train on, and other text to measure on."""

    name: str
    """What it was loaded as."""
    train: bytes
    validation: bytes
    digest: str
    """SHA-256 over both splits, in hex: equal digests, equal text."""
    facts: Facts
    """Sizes in bytes and documents, what was skipped, and what its source knows about it."""
    lengths: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Bytes of each document of the two splits, which are joined by one line break; () for one document."""

    def documents(self) -> tuple[list[bytes], list[bytes]]:
        """(train, validation) document by document, in their order."""
        splits = zip((self.train, self.validation), self.lengths, strict=True)
        train, validation = (_documents(text, lengths) for text, lengths in splits)
        return train, validation


def load_corpus(spec: str, *, validation: float = 0.05, text_key: str = "text") -> Corpus:
    """The corpus of a spec: "stdlib", "synthetic[:SEED[:BYTES]]", or a path.

    A path is a text file, a folder of text, or a .jsonl file with documents under `text_key`.
    `validation` is the share of the bytes kept for validation, in (0, 0.5].
    Raises SteepestError on data that is missing, unreadable, binary, empty or too short to split.
    """
    if not 0 < validation <= 0.5:
        raise SteepestError(f"validation={validation!r} is out of range; it must lie in (0, 0.5].")
    if spec.split(":")[0] == "synthetic":
        return _synthetic(spec, validation)
    if spec == "stdlib":
        return _corpus(spec, read_stdlib(), validation, {"python": platform.python_version()})
    path = Path(os.path.expanduser(spec))
    if not os.path.exists(path) and get_close_matches(spec, SOURCES):
        raise unknown("data", spec, SOURCES)
    return _corpus(spec, read_path(path, text_key), validation, {})


def split(documents: Sequence[Document], validation: float) -> tuple[list[bytes], list[bytes]]:
    """(train, validation) texts, cut between documents by the hash of their keys.

    Documents go to validation in the order of their hashes until it holds its share of the bytes. Those
    larger than that share come last, so that no one text makes up what is measured where there is
    other; one that holds more than half of all bytes always trains. A single document is cut near its
    end, between paragraphs or lines.
    """
    if len(documents) == 1:
        train, rest = _cut(documents[0].text, validation)
        return [train], [rest]
    total = sum(len(document.text) for document in documents)
    share = validation * total

    def turn(document: Document) -> tuple[bool, bytes]:
        return len(document.text) > share, hashlib.sha256(os.fsencode(document.key)).digest()

    chosen: set[str] = set()
    taken = 0
    for document in sorted(documents, key=turn):
        if taken >= share:
            break
        if 2 * len(document.text) <= total:
            chosen.add(document.key)
            taken += len(document.text)
    return (
        [document.text for document in documents if document.key not in chosen],
        [document.text for document in documents if document.key in chosen],
    )


def _synthetic(spec: str, validation: float) -> Corpus:
    seed, size = parse_synthetic(spec)
    true_model = language(seed)
    facts: Facts = {"floor_bits_per_byte": true_model.floor, "seed": seed, "words": len(true_model.words)}
    share = round(validation * size)
    train, rest = true_model.text(size - share, "train"), true_model.text(share, "validation")
    return _finish(spec, [train], [rest], facts)


def _corpus(name: str, reading: Reading, validation: float, facts: Facts) -> Corpus:
    # The first of equal documents stays; empty ones go.
    distinct = {document.text.strip(): document for document in reversed(reading.documents)}
    distinct.pop(b"", None)
    documents = list(reversed(distinct.values()))
    train, rest = split(documents, validation)
    facts = {
        "files": reading.files,
        "skipped": reading.skipped,
        "documents": len(documents),
        "dropped_documents": len(reading.documents) - len(documents),
        **facts,
    }
    return _finish(name, train, rest, facts)


def _finish(name: str, train: list[bytes], validation: list[bytes], facts: Facts) -> Corpus:
    texts = b"\n".join(train), b"\n".join(validation)
    digest = hashlib.sha256(b"".join(hashlib.sha256(text).digest() for text in texts)).hexdigest()
    sizes: Facts = {"train_bytes": len(texts[0]), "validation_bytes": len(texts[1])}
    lengths = tuple(map(len, train)), tuple(map(len, validation))
    return Corpus(name, *texts, digest, sizes | facts, lengths)


def _documents(text: bytes, lengths: tuple[int, ...]) -> list[bytes]:
    starts = accumulate((length + 1 for length in lengths), initial=0)
    return [text[start : start + length] for start, length in zip(starts, lengths, strict=False)] or [text]


def _cut(text: bytes, validation: float) -> tuple[bytes, bytes]:
    """One document in two: after the last paragraph before the border, else line, else word."""
    share = round(len(text) * (1 - validation))
    earliest = round(len(text) * max(0.0, 1 - 2 * validation))
    for border in (b"\n\n", b"\n", b" "):
        end = text.rfind(border, earliest, share) + len(border)
        if end > earliest and text[:end].strip() and text[end:].strip():
            return text[:end], text[end:]
    raise SteepestError(
        f"a single text of {len(text)} bytes cannot be split for validation: there is no line or word that "
        "ends near the border; give more text, several files, or another validation share."
    )
