"""Text, its tokens, and the order in which they are seen. See docs/data.md."""

from steepest.data.batches import Batches, Indices, validation_batches
from steepest.data.chat import Encoded, encode_answer, encode_prompt
from steepest.data.corpus import Corpus, load_corpus
from steepest.data.examples import Examples, Row, load_examples
from steepest.data.packing import Packed
from steepest.data.rows import Order, Rows, Sampler, encode_rows, fixed_batches, seq2seq_rows
from steepest.data.seeds import seed_for
from steepest.data.synthetic import synthetic_floor
from steepest.data.tasks import Task, Verifier, grade, load_verifier, preferences, task, verify
from steepest.data.tokenizer import Tokenizer, decode_answer, encode_document, load_tokenizer
from steepest.data.units import bits_per_byte

__all__ = [
    "Batches",
    "Corpus",
    "Encoded",
    "Examples",
    "Indices",
    "Order",
    "Packed",
    "Row",
    "Rows",
    "Sampler",
    "Task",
    "Tokenizer",
    "Verifier",
    "bits_per_byte",
    "decode_answer",
    "encode_answer",
    "encode_document",
    "encode_prompt",
    "encode_rows",
    "fixed_batches",
    "grade",
    "load_corpus",
    "load_examples",
    "load_tokenizer",
    "load_verifier",
    "preferences",
    "seed_for",
    "seq2seq_rows",
    "synthetic_floor",
    "task",
    "validation_batches",
    "verify",
]
