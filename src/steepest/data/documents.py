"""Reads documents: from a text file, a folder of text, or JSON lines."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steepest.contract import SteepestError

TEXT_SUFFIXES = frozenset(
    """
    .txt .text .md .markdown .rst .org .tex .bib .srt .csv .tsv .html .htm .xml .css .scss
    .json .yaml .yml .toml .ini .cfg .conf .sql .graphql .proto .cmake .mk .sh .bash .zsh .fish .ps1 .bat
    .py .pyi .pyx .ipynb .r .jl .m .lua .pl .pm .rb .php .js .mjs .jsx .ts .tsx .vue .java .kt .kts .scala
    .groovy .clj .go .rs .zig .nim .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .cs .fs .swift .mm .d .f90 .f
    .hs .ml .mli .ex .exs .erl .el .lisp .scm .vim .v .vhd .asm .s
    """.split()  # noqa: SIM905 (ninety quoted strings are harder to read)
)
"""Files of a folder with another ending are skipped, and counted."""

MOST_UNDECODABLE = 0.1
"""A file with a larger share of characters that are not UTF-8 is taken for binary."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text. The key decides its split: a relative path, or the hash of its content."""

    key: str
    text: bytes
    """Valid UTF-8."""


@dataclass(slots=True)
class Reading:
    """The documents found, and what was passed over on the way."""

    documents: list[Document] = field(default_factory=list)
    files: int = 0
    skipped: int = 0
    """Hidden files and folders (one each), binary files, and files of another kind than text."""


def read_path(path: Path, text_key: str) -> Reading:
    """Everything to be read at `path`: a text file, a .jsonl file, or a folder of both."""
    if not os.path.exists(path):  # False, not an error, for a name the system cannot look up
        raise SteepestError(
            f"there is no file or folder {str(path)!r}; give the path of a text file, a folder of text "
            "or a .jsonl file, or one of 'stdlib' and 'synthetic'."
        )
    reading = _read_folder(path, text_key) if path.is_dir() else _read_one(path, text_key)
    if not any(document.text.strip() for document in reading.documents):
        skipped = f" ({reading.skipped} files of another kind were skipped)" if reading.skipped else ""
        raise SteepestError(f"there is no text in {str(path)!r}{skipped}; give data with text in it.")
    return reading


def read_bytes(path: Path) -> bytes:
    """The content of a file; one sentence if the system refuses it."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _refused(error, path) from error


def decode(data: bytes) -> bytes | None:
    """`data` as valid UTF-8 with stray bytes replaced, without a byte order mark; `None` if it is binary."""
    if b"\0" in data:
        return None
    text = data.decode("utf-8-sig", errors="replace")
    stray = text.count("\ufffd") - data.count("\ufffd".encode())
    return None if stray > MOST_UNDECODABLE * len(text) else text.encode()


def _read_one(path: Path, text_key: str) -> Reading:
    data = read_bytes(path)
    if path.suffix.lower() == ".jsonl":
        return Reading(list(_json_lines(data, path, text_key)), files=1)
    text = decode(data)
    if text is None:
        raise SteepestError(f"{str(path)!r} is not UTF-8 text; convert it to a text file or a .jsonl file.")
    return Reading([Document(path.name, text)], files=1)


def _read_folder(root: Path, text_key: str) -> Reading:
    reading = Reading()
    for folder, folders, files in os.walk(root, onerror=_raise_refused):
        reading.skipped += sum(name.startswith(".") for name in folders)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            found = None if name.startswith(".") else _read_member(Path(folder, name), root, text_key)
            if found is None:
                reading.skipped += 1
            else:
                reading.files += 1
                reading.documents += found
    return reading


def _read_member(path: Path, root: Path, text_key: str) -> list[Document] | None:
    """The documents of one file of a folder; `None` if it is not text."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return list(_json_lines(read_bytes(path), path, text_key))
    if suffix not in TEXT_SUFFIXES:
        return None
    text = decode(read_bytes(path))
    return None if text is None else [Document(path.relative_to(root).as_posix(), text)]


def json_objects(data: bytes, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of every line of a .jsonl file that is not blank; `where` names file and line."""
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{str(path)!r}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # broken JSON, or bytes that are not UTF-8
            raise SteepestError(
                f"{where}: not JSON ({error}); every line must be one JSON object."
            ) from error
        if not isinstance(row, dict):
            raise SteepestError(f"{where}: {kind_of(row)}; every line must be one JSON object.")
        yield where, row


def kind_of(value: object) -> str:
    """What JSON calls a value: "an object", "a list", "a string", "a boolean", "a null" or "a number"."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "a null"}
    return names.get(type(value), "a number")


def keys_of(row: dict[str, Any]) -> str:
    """The keys of an object, for a message that misses another one."""
    return ", ".join(map(repr, row)) or "none"


def _json_lines(data: bytes, path: Path, text_key: str) -> Iterator[Document]:
    for where, row in json_objects(data, path):
        if text_key not in row:
            raise SteepestError(
                f"{where}: there is no {text_key!r} (keys: {keys_of(row)}); name the key that holds the text."
            )
        value = row[text_key]
        if not isinstance(value, str):
            raise SteepestError(f"{where}: {text_key!r} holds {kind_of(value)}; it must be a string.")
        # A lone surrogate is legal in JSON and in no encoding: it becomes a question mark.
        text = value.encode("utf-8", errors="replace")
        yield Document(hashlib.sha256(text).hexdigest(), text)


def _refused(error: OSError, path: Path | str) -> SteepestError:
    reason = (error.strerror or str(error)).lower()
    return SteepestError(f"cannot read {str(path)!r}: {reason}; check the path and its permissions.")


def _raise_refused(error: OSError) -> None:
    raise _refused(error, error.filename) from error
