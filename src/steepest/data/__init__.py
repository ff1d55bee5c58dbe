"""Text, its tokens, and the order in which they are seen. See docs/data.md."""

from steepest.data.batches import Batches, validation_batches
from steepest.data.corpus import Corpus, load_corpus
from steepest.data.seeds import seed_for
from steepest.data.synthetic import synthetic_floor
from steepest.data.tokenizer import Tokenizer, load_tokenizer
from steepest.data.units import bits_per_byte

__all__ = [
    "Batches",
    "Corpus",
    "Tokenizer",
    "bits_per_byte",
    "load_corpus",
    "load_tokenizer",
    "seed_for",
    "synthetic_floor",
    "validation_batches",
]
