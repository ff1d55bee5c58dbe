"""Corpora from the user's own text: what is read, how it is split, and what is refused."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steepest.contract import SteepestError
from steepest.data import load_corpus
from steepest.data.corpus import split
from steepest.data.documents import Document


def write_folder(root: Path, texts: dict[str, str | bytes]) -> Path:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def write_lines(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refusal(spec: object, **options: Any) -> str:
    with pytest.raises(SteepestError) as error:
        load_corpus(str(spec), **options)
    return str(error.value)


def test_folder_is_read_recursively_and_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    root = write_folder(
        tmp_path,
        {
            "a.txt": "first\n",
            "deep/er/b.py": "second = 2\n",
            "c.md": "third\n",
            "image.png": b"\x89PNG",
            "secretly_binary.txt": b"\x00\x01\x02",
            ".hidden.txt": "hidden file",
            ".git/config.txt": "hidden folder",
            "twin.txt": "first\n",
            "blank.txt": " \n",
        },
    )
    corpus = load_corpus(str(root), validation=0.3)
    both = corpus.train + b"\n" + corpus.validation
    assert sorted(both.split()) == sorted(b"first second = 2 third".split())
    assert corpus.facts["skipped"] == 4
    assert corpus.facts["files"] == 5
    assert corpus.facts["documents"] == 3
    assert corpus.facts["dropped_documents"] == 2
    assert corpus.facts["train_bytes"] == len(corpus.train)
    assert corpus.facts["validation_bytes"] == len(corpus.validation)


def test_digest_tells_texts_apart_and_is_the_same_for_the_same(tmp_path: Path) -> None:
    files = {f"{i}.txt": f"text number {i}\n" * 10 for i in range(20)}
    one = load_corpus(str(write_folder(tmp_path / "one", files)))
    again = load_corpus(str(write_folder(tmp_path / "again", dict(reversed(files.items())))))
    other = load_corpus(str(write_folder(tmp_path / "other", files | {"3.txt": "text number 33\n"})))
    assert (one.train, one.validation, one.digest) == (again.train, again.validation, again.digest)
    assert one.digest != other.digest
    assert len(one.digest) == 64


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    lines = [json.dumps({"id": i, "body": f"döcument {i}\nof two lines"}) for i in range(50)]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    corpus = load_corpus(str(path), text_key="body", validation=0.2)
    assert corpus.facts["documents"] == 50
    assert "döcument 7\nof two lines".encode() in corpus.train + b"\n" + corpus.validation


def test_folder_may_hold_json_lines(tmp_path: Path) -> None:
    write_lines(tmp_path / "d.jsonl", [{"text": "from a line"}, {"text": "from another"}])
    (tmp_path / "a.txt").write_text("from a file")
    assert load_corpus(str(tmp_path)).facts["documents"] == 3


@pytest.mark.parametrize(("border", "text"), [(b"\n\n", "a b\nc d\n\n"), (b"\n", "a b c\n"), (b" ", "abc ")])
def test_single_text_is_cut_between_paragraphs_else_lines_else_words(
    tmp_path: Path, border: bytes, text: str
) -> None:
    path = tmp_path / "one.txt"
    path.write_text(text * 500)
    corpus = load_corpus(str(path), validation=0.1)
    assert corpus.train + corpus.validation == (text * 500).encode()
    assert corpus.train.endswith(border)
    assert 0.1 <= len(corpus.validation) / len(text * 500) < 0.11


def test_text_that_is_not_quite_utf8_is_read_with_replacements(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"caf\xe9 and more plain words\n" * 30)
    corpus = load_corpus(str(tmp_path / "a.txt"))
    assert corpus.train.decode().startswith("caf\ufffd and")


documents = st.lists(
    st.tuples(st.text(min_size=1, max_size=8), st.integers(1, 300)), min_size=2, unique_by=lambda d: d[0]
).map(lambda items: [Document(key, f"{i}".zfill(size).encode()) for i, (key, size) in enumerate(items)])


@given(documents, st.floats(0.01, 0.5))
def test_splits_cover_all_documents_once_and_neither_is_empty(docs: list[Document], share: float) -> None:
    train, validation = split(docs, share)
    assert sorted(train + validation) == sorted(document.text for document in docs)
    assert train and validation
    total = sum(len(d.text) for d in docs)
    if not any(2 * len(d.text) > total for d in docs):
        assert len(b"".join(validation)) >= share * total


@given(documents, st.floats(0.01, 0.5), st.randoms(use_true_random=False))
def test_split_does_not_depend_on_the_order_of_documents(
    docs: list[Document], share: float, random: Any
) -> None:
    shuffled = random.sample(docs, len(docs))
    for one, other in zip(split(docs, share), split(shuffled, share), strict=True):
        assert sorted(one) == sorted(other)


def test_one_large_document_does_not_become_the_validation_set() -> None:
    docs = [Document(f"{i}", b"x" * 100) for i in range(50)] + [Document("large", b"y" * 2000)]
    _, validation = split(docs, 0.1)
    assert b"y" not in b"".join(validation)
    assert len(b"".join(validation)) == 700


@pytest.mark.parametrize("share", [0.0, -0.1, 0.6, float("nan")])
def test_validation_share_out_of_range(share: float) -> None:
    assert "(0, 0.5]" in refusal("synthetic:0:100", validation=share)


def test_missing_path() -> None:
    assert "no file or folder 'no/such.txt'" in refusal("no/such.txt")


def test_misspelt_source_is_offered_the_nearest() -> None:
    assert "did you mean 'stdlib'?" in refusal("stdlbi")
    assert "did you mean 'synthetic'?" in refusal("sintetic")


def test_home_of_nobody_is_a_missing_path() -> None:
    assert "no file or folder" in refusal("~no-such-user/text.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "folder"])
def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_folder(tmp_path, {"a.txt": "text", "a.jsonl": '{"text": "x"}', "folder/b.txt": "text"})
    really_open = builtins.open

    def refuse(file: Any, *args: Any, **options: Any) -> Any:
        if str(file).startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied")
        return really_open(file, *args, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    message = refusal(tmp_path / name)
    assert "permission denied" in message
    assert name in message


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    assert "permission denied" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty.txt", b""), ("blank.txt", b" \n\n"), ("empty.jsonl", b"\n"), ("f/a.png", b"x")],
)
def test_empty(tmp_path: Path, name: str, content: bytes) -> None:
    write_folder(tmp_path, {name: content})
    assert "there is no text in" in refusal(tmp_path / Path(name).parts[0])


def test_empty_folder_says_what_it_skipped(tmp_path: Path) -> None:
    assert "skipped" not in refusal(tmp_path)
    write_folder(tmp_path, {"a.png": b"x", "b.txt": b"\0"})
    assert "(2 files of another kind were skipped)" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"\x00\x01text", bytes(range(128, 256)) * 4, "wide".encode("utf-16")])
def test_binary_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    assert "is not UTF-8 text" in refusal(tmp_path / "a.bin")


def test_single_text_too_short_to_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word")
    assert "a single text of 4 bytes cannot be split" in refusal(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "cut', "not JSON"),
        (b'{"text": "\xff"}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"body": "x", "id": 3}', "there is no 'text' (keys: 'body', 'id')"),
        ("{}", "(keys: none)"),
        ('{"text": 7}', "'text' holds a number"),
        ('{"text": null}', "'text' holds a null"),
        ('{"text": ["x"]}', "'text' holds a list"),
        ('"text"', "a string; every line"),
    ],
)
def test_bad_line_of_json_lines_is_named(tmp_path: Path, line: str | bytes, says: str) -> None:
    bad = line.encode() if isinstance(line, str) else line
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "good"}\n\n' + bad + b"\n")
    message = refusal(tmp_path / "d.jsonl")
    assert says in message
    assert "d.jsonl', line 3: " in message
    assert len(message) < 300 + len(str(tmp_path))


def test_lone_surrogate_in_json_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a\\ud800b"}\n{"text": "c"}\n')
    corpus = load_corpus(str(tmp_path / "d.jsonl"))
    assert b"a?b" in (corpus.train, corpus.validation)
