"""The embedded corpus: the running Python's standard library."""

from __future__ import annotations

import platform
import sysconfig
from pathlib import Path

import pytest

from steepest.contract import SteepestError
from steepest.data import Corpus, load_corpus
from steepest.data.stdlib import read_stdlib, without_shared_headers


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus("stdlib")


def test_is_megabytes_of_text_split_near_the_share(corpus: Corpus) -> None:
    assert corpus.facts["python"] == platform.python_version()
    assert len(corpus.train) > 5_000_000
    share = len(corpus.validation) / len(corpus.train + corpus.validation)
    assert 0.05 <= share < 0.10  # no single file exceeds the share, so at most twice of it
    corpus.train.decode()
    corpus.validation.decode()


def test_is_the_same_when_read_again(corpus: Corpus) -> None:
    assert load_corpus("stdlib") == corpus


def test_files_lie_whole_in_one_split(corpus: Corpus) -> None:
    documents = read_stdlib().documents
    assert len(documents) > 300
    for document in documents:
        text = document.text.strip()
        if len(text) > 200:
            assert (text in corpus.train) != (text in corpus.validation), document.key


def test_leaves_out_tests_and_installed_packages() -> None:
    keys = [document.key for document in read_stdlib().documents]
    assert "argparse.py" in keys and "json/decoder.py" in keys
    assert keys == sorted(keys, key=lambda key: Path(key).parts)
    folders = {part for key in keys for part in key.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert not [key for key in keys if key.startswith("_sysconfigdata")]


def test_licence_headers_that_several_files_share_are_dropped() -> None:
    licence = b"# Licensed to somebody.\n#\n"
    texts = [
        licence + b"# One.\n\nx = 1\n",
        licence + b"# Two.\nx = 1\n",
        b"y = 2\n# Licensed to somebody.\n",
        b"#",
    ]
    assert without_shared_headers(texts) == [
        b"# One.\n\nx = 1\n",
        b"# Two.\nx = 1\n",
        b"y = 2\n# Licensed to somebody.\n",
        b"#",
    ]


def test_no_licence_line_heads_two_files_of_the_standard_library() -> None:
    firsts = [d.text.split(b"\n")[0] for d in read_stdlib().documents]
    comments = [line for line in firsts if line.startswith(b"#")]
    assert comments
    assert len(comments) == len(set(comments))


def test_python_without_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SteepestError, match="keeps no source"):
        load_corpus("stdlib")
