"""A corpus and its tokens, loaded once a process and shared by its runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from steepest.contract import SteepestError
from steepest.data import Corpus, Tokenizer, bits_per_byte, load_corpus, load_tokenizer
from steepest.training.config import RunConfig
from steepest.training.stage_config import StageConfig


@dataclass(frozen=True)
class Text:
    """A corpus as tokens."""

    corpus: Corpus
    tokenizer: Tokenizer
    train: np.ndarray[Any, Any]
    validation: np.ndarray[Any, Any]

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A loss on the validation split, comparable between tokenizers."""
        return bits_per_byte(nats_per_token, len(self.validation), len(self.corpus.validation))


def text_of(config: RunConfig, cache: Path | None = None, *, stage: StageConfig | None = None) -> Text:
    """The text that a run, or one of its stages, trains on."""
    own = config if stage is None else stage
    folder = str(cache) if cache else None
    return _load(own.data, own.text_key, config.tokenizer, config.model, folder)


@lru_cache(maxsize=2)
def _load(data: str, text_key: str, tokenizer: str, model: str, cache: str | None) -> Text:
    corpus = load_corpus(data, text_key=text_key)
    folder = model if Path(model).is_dir() else None
    if tokenizer == "model" and folder is None:
        raise SteepestError("tokenizer 'model' needs a model folder; for presets use bytes or bpe:4096.")
    coder = load_tokenizer(tokenizer, corpus, model_path=folder, cache=Path(cache) if cache else None)
    return Text(corpus, coder, coder.encode(corpus.train), coder.encode(corpus.validation))
