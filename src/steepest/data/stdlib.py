"""The embedded text: the source of the running Python's standard library, read where it is installed."""

from __future__ import annotations

import os
import sysconfig
from collections import Counter
from pathlib import Path

from steepest.contract import SteepestError
from steepest.data.documents import Document, Reading, decode, read_bytes

EXCLUDED_FOLDERS = frozenset(
    {
        "site-packages",
        "dist-packages",
        "__pycache__",
        "test",
        "tests",
        "idle_test",
        # Tables written by a program, near copies of one another: they would leak between the splits.
        "encodings",
    }
)

EXCLUDED_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize")
"""How the names of files begin that differ between machines with the same Python."""


def read_stdlib() -> Reading:
    """The standard library's .py files, sorted by path, without licence headers that several share."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(_source_files(root))
    if not paths:
        raise SteepestError(
            f"this Python keeps no source of its standard library in {str(root)!r}; "
            "use 'synthetic' or a path to your own text."
        )
    keys = [path.relative_to(root).as_posix() for path in paths]
    texts = [decode(read_bytes(path)) for path in paths]
    kept = {key: text for key, text in zip(keys, texts, strict=True) if text is not None}
    documents = [
        Document(*item) for item in zip(kept, without_shared_headers(list(kept.values())), strict=True)
    ]
    return Reading(documents, files=len(documents), skipped=len(paths) - len(documents))


def without_shared_headers(texts: list[bytes]) -> list[bytes]:
    """The texts less every line of a leading comment block that also stands in another's."""
    headers = [_header(text) for text in texts]
    heads = Counter(line for header in headers for line in set(header))
    return [
        b"".join(line for line in header if heads[line] == 1) + text[sum(map(len, header)) :]
        for header, text in zip(headers, texts, strict=True)
    ]


def _source_files(root: Path) -> list[Path]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in EXCLUDED_FOLDERS and not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in files
            if name.endswith(".py") and not name.startswith((".", *EXCLUDED_FILES))
        ]
    return found


def _header(text: bytes) -> list[bytes]:
    """The lines of comment, and between them, with which a file begins."""
    lines = []
    start = 0
    while start < len(text):
        end = text.find(b"\n", start) + 1 or len(text)
        line = text[start:end]
        if line.strip() and not line.startswith(b"#"):
            break
        lines.append(line)
        start = end
    return lines
