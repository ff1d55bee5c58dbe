"""Tokenizers: bytes, a byte-level BPE trained on the corpus itself, or the model's own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from steepest.contract import SteepestError, unknown
from steepest.data.corpus import Corpus

TokenIds = np.ndarray[tuple[int], np.dtype[np.int32]]

CHUNK = 2**16
"""Characters encoded at once: long enough that a border between two matters to no token count."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def name(self) -> str: ...

    @property
    def vocab_size(self) -> int:
        """Ids lie in [0, vocab_size)."""
        ...

    def encode(self, data: bytes) -> TokenIds:
        """(n,) int32 ids of UTF-8 text."""
        ...

    def decode(self, ids: Any) -> bytes:
        """The text that (n,) integers spell."""
        ...

    @property
    def end_id(self) -> int:
        """The token that ends a text. No valid UTF-8 text is encoded with it, bar one that spells it out."""
        ...

    @property
    def pad_id(self) -> int:
        """The token that fills a row. Masks decide what is padding, so it may be the end's."""
        ...

    @property
    def start_ids(self) -> tuple[int, ...]:
        """What the model expects before every text: its beginning-of-text token, or nothing."""
        ...

    @property
    def chat(self) -> Any | None:
        """The tokenizer of `transformers` with the model's own chat template; `None` where there is none."""
        ...


END, PAD = b"\xff", b"\xfe"
"""Bytes that occur in no UTF-8 text. As tokens they mark the end of a text and fill rows, so a vocabulary of
bytes needs no further ids for that, and a model keeps its shape from pre-training to its last stage."""


def encode_document(tokenizer: Tokenizer, data: bytes) -> TokenIds:
    """(n,) int32 ids of a text as a whole: the start that its model expects, the text, the end."""
    return _flat([tokenizer.start_ids, tokenizer.encode(data), [tokenizer.end_id]])


def decode_answer(tokenizer: Tokenizer, ids: Any) -> str:
    """The text of generated ids (n,), up to the first end token."""
    ids = np.asarray(ids)
    (ends,) = np.nonzero(ids == tokenizer.end_id)
    return tokenizer.decode(ids[: ends[0]] if len(ends) else ids).decode("utf-8", errors="replace")


class ByteTokenizer:
    """Every byte is its own token. Round trips on any bytes."""

    name = "bytes"
    vocab_size = 256
    end_id, pad_id = END[0], PAD[0]
    start_ids: tuple[int, ...] = ()
    chat = None

    def encode(self, data: bytes) -> TokenIds:
        return np.frombuffer(data, dtype=np.uint8).astype(np.int32)

    def decode(self, ids: Any) -> bytes:
        return np.asarray(ids).astype(np.uint8).tobytes()


class BpeTokenizer:
    """A byte-level BPE of the `tokenizers` library. Round trips on valid UTF-8."""

    start_ids: tuple[int, ...] = ()
    chat = None

    def __init__(self, backend: Any) -> None:
        """backend: a `tokenizers.Tokenizer` with the byte-level alphabet."""
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size()
        self.name = f"bpe:{self.vocab_size}"
        alphabet = _byte_alphabet()
        tokens = map(backend.id_to_token, range(self.vocab_size))
        self._spelling = [bytes(alphabet[character] for character in token) for token in tokens]
        # Bytes that no text has are in no merge: each is a token of its own that no text is encoded with.
        self.end_id, self.pad_id = self._spelling.index(END), self._spelling.index(PAD)

    def encode(self, data: bytes) -> TokenIds:
        return _flat(encoding.ids for encoding in self._backend.encode_batch_fast(list(_chunks(data))))

    def decode(self, ids: Any) -> bytes:
        return b"".join(self._spelling[token] for token in np.asarray(ids).tolist())


class ModelTokenizer:
    """The tokenizer in a model's folder. Round trips as far as that one does."""

    name = "model"

    def __init__(self, backend: Any) -> None:
        """backend: a tokenizer of `transformers`."""
        self._backend = backend
        self.vocab_size: int = len(backend)
        self.chat = backend if getattr(backend, "chat_template", None) else None

    @property
    def end_id(self) -> int:
        end: int | None = self._backend.eos_token_id
        if end is None:
            raise SteepestError(
                "the model's tokenizer names no token that ends a text; set eos_token in its "
                "tokenizer_config.json, or use 'bytes' or 'bpe:4096'."
            )
        return end

    @property
    def pad_id(self) -> int:
        pad: int | None = self._backend.pad_token_id
        return self.end_id if pad is None else pad

    @property
    def start_ids(self) -> tuple[int, ...]:
        first = self._backend("").input_ids[:1]
        return tuple(first) if first == [self._backend.bos_token_id] else ()

    def encode(self, data: bytes) -> TokenIds:
        chunks = list(_chunks(data))
        if not chunks:
            return _flat([])
        rows = self._backend(chunks, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return _flat(rows["input_ids"])

    def decode(self, ids: Any) -> bytes:
        text: str = self._backend.decode(np.asarray(ids).tolist(), clean_up_tokenization_spaces=False)
        return text.encode()


def load_tokenizer(
    spec: str, corpus: Corpus | None, *, model_path: str | None = None, cache: Path | None = None
) -> Tokenizer:
    """The tokenizer of a spec: "bytes", "bpe:SIZE" or "model".

    A BPE is trained on `corpus.train` alone; the same text and size give the same one, and it is
    kept in the folder `cache`, if given. The others need no corpus; "model" reads the tokenizer
    in the folder `model_path`.
    Raises SteepestError on an unknown spec, a size the corpus cannot support, a folder without tokenizer.
    """
    kind, _, rest = spec.partition(":")
    if spec == "bytes":
        return ByteTokenizer()
    if spec == "model":
        return _load_model_tokenizer(model_path)
    if kind == "bpe":
        if corpus is None:
            raise SteepestError(f"tokenizer {spec!r} is trained on text; give a corpus, or use 'bytes'.")
        return BpeTokenizer(_load_bpe(corpus, _bpe_size(rest), cache))
    raise unknown("tokenizer", spec, ["bytes", "bpe:4096", "model"])


def _bpe_size(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise SteepestError(f"tokenizer 'bpe:{text}' has no size; write for example 'bpe:4096'.")
    size = int(text)
    if size < 257:
        raise SteepestError(
            f"tokenizer 'bpe:{size}' is too small: bytes alone take 256; ask for 257 or more."
        )
    return size


def _load_bpe(corpus: Corpus, size: int, cache: Path | None) -> Any:
    if cache is None:
        return _train_bpe(corpus, size)
    kept = cache / f"bpe-{size}-{corpus.digest}.json"
    backend = _read_bpe(kept, size)
    if backend is None:
        backend = _train_bpe(corpus, size)
        _write(kept, backend.to_str())
    return backend


def _train_bpe(corpus: Corpus, size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_chunks(corpus.train), trainer)
    if backend.get_vocab_size() < size:
        raise SteepestError(
            f"tokenizer 'bpe:{size}' is too large for this text, which supports {backend.get_vocab_size()} "
            "tokens; ask for fewer or give more text."
        )
    return backend


def _read_bpe(path: Path, size: int) -> Any | None:
    """The tokenizer kept at `path`; `None` if there is none, or a damaged one."""
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception:  # a damaged file; the library raises bare Exception
        return None
    return backend if backend.get_vocab_size() == size else None


def _write(path: Path, text: str) -> None:
    """Whole or not at all, whoever else writes the same file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SteepestError(
            f"cannot keep the tokenizer in {str(path.parent)!r}: {reason}; "
            "free space or choose another folder."
        ) from error


def _load_model_tokenizer(model_path: str | None) -> Tokenizer:
    if model_path is None:
        raise SteepestError(
            "tokenizer 'model' needs a model in a local folder; give its path, or use 'bytes' or 'bpe:4096'."
        )
    if not Path(model_path).is_dir():
        raise SteepestError(
            f"there is no model folder {model_path!r}; give the folder that holds the tokenizer."
        )
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(model_path, local_files_only=True)
    except Exception as error:  # the library's errors for a missing or damaged file have no common class
        raise SteepestError(
            f"there is no tokenizer that can be loaded in {model_path!r}; "
            "copy the model's tokenizer files there, or use 'bytes' or 'bpe:4096'."
        ) from error
    return ModelTokenizer(backend)


def _chunks(data: bytes) -> Iterator[str]:
    """The text in pieces of at most CHUNK characters, cut after a line or before a word if there is one."""
    text = data.decode("utf-8", errors="replace")
    start = 0
    while start < len(text):
        end = start + CHUNK
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or text.rfind(" ", start + 1, end)
            end = end if end > start else start + CHUNK
        yield text[start:end]
        start = end


def _flat(rows: Any) -> TokenIds:
    arrays = [np.asarray(row, dtype=np.int32) for row in rows]
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level BPE: itself if visible, else from 256 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
