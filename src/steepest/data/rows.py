"""Rows of tokens of different lengths: the order in which they are seen, and how some become a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch

from steepest.contract import SteepestError, unknown
from steepest.data.batches import Indices, permutation
from steepest.data.chat import Encoded, Turns, encode_answer, encode_prompt
from steepest.data.examples import Row
from steepest.data.seeds import seed_for
from steepest.data.tokenizer import TokenIds, Tokenizer

Batch = dict[str, Any]
Overlong = Literal["cut", "drop"]
"""What becomes of a row longer than the context. Both are counted."""

MULTIPLE = 8
"""Padded lengths are multiples of this, where the context allows it: kernels like it, and shapes repeat."""
POOL = 50
"""Batches whose rows are sorted by length together; more of them pad less and shuffle less."""


class Source(Protocol):
    """Rows that batches can be made of."""

    @property
    def lengths(self) -> Indices:
        """(n,) tokens of each row."""
        ...

    def batch(self, indices: Indices) -> Batch: ...


class Order:
    """The order of training: each epoch visits the rows once, less those that do not fill its last batch.

    There is no state: `at(position)` depends on the seed and the position only.
    """

    def __init__(self, lengths: Indices, *, batch: int, seed: int, by_length: bool = False) -> None:
        """lengths: (n,) tokens of each row; batch: rows of a batch.

        by_length: rows of one batch are of similar lengths, so that less is padding. The batches still come
        in a random order, and which rows share a batch changes from epoch to epoch.
        """
        if batch < 1:
            raise SteepestError(f"batch={batch} must be at least 1.")
        self.batches_per_epoch = len(lengths) // batch
        """Whole batches of an epoch."""
        if not self.batches_per_epoch:
            raise SteepestError(
                f"there are {len(lengths):,} rows to train on and one batch needs {batch:,}; give more rows "
                "or make the batch smaller."
            )
        self._lengths = lengths
        self._batch = batch
        self._seed = seed
        self._by_length = by_length

    def at(self, position: int) -> Indices:
        """(batch,) numbers of the rows in the batch at a position from 0."""
        if position < 0:
            raise SteepestError(f"there is no batch at position {position}; positions count from 0.")
        epoch, place = divmod(position, self.batches_per_epoch)
        order: Indices = permutation(len(self._lengths), self._seed, epoch)
        if not self._by_length:
            return order[place * self._batch :][: self._batch]
        place = int(permutation(self.batches_per_epoch, seed_for(self._seed, "batches"), epoch)[place])
        pool, inside = divmod(place, POOL)
        rows = order[: self.batches_per_epoch * self._batch][pool * POOL * self._batch :][
            : POOL * self._batch
        ]
        rows = rows[np.argsort(self._lengths[rows], kind="stable")]
        return rows[inside * self._batch :][: self._batch]


class Sampler:
    """Batches of a source in the order of training, each a pure function of seed and position."""

    def __init__(self, source: Source, *, batch: int, seed: int, by_length: bool = False) -> None:
        self.order = Order(source.lengths, batch=batch, seed=seed, by_length=by_length)
        self._source = source

    def at(self, position: int) -> Batch:
        """The batch at a position from 0, in the source's format."""
        return self._source.batch(self.order.at(position))


def fixed_batches(source: Source, *, batch: int, limit: int | None = None) -> list[Batch]:
    """Fixed rows to measure on, evenly spaced over the source and the same for everyone.

    limit: most rows to take, `None` for all. The last batch may have fewer rows.
    """
    count = len(source.lengths)
    if not count or batch < 1 or (limit is not None and limit < 1):
        raise SteepestError(
            f"{count} rows in batches of {batch} with limit={limit} leave nothing to measure on; "
            "give validation rows, and take at least one."
        )
    taken = min(count, limit or count)
    chosen = np.arange(taken, dtype=np.int64) * count // taken
    return [source.batch(chosen[start : start + batch]) for start in range(0, taken, batch)]


@dataclass(frozen=True, eq=False)
class Item:
    """An example and its tokens: a prompt, a completion, or two answers."""

    row: Row
    sides: tuple[Encoded, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """Encoded examples of one kind, in memory: a `Source`."""

    items: tuple[Item, ...]
    lengths: Indices
    """(n,) tokens of each; of a pair, of the longer one."""
    collate: Callable[[Sequence[Item]], Batch]
    cut: int
    """Examples that were longer than the context and lost tokens."""
    dropped: int
    """Examples that were longer than the context and left out."""

    def batch(self, indices: Indices) -> Batch:
        """The examples of these numbers as tensors."""
        return self.collate([self.items[i] for i in indices.tolist()])


def encode_rows(
    examples: Sequence[Row], kind: str, tokenizer: Tokenizer, *, context: int, overlong: Overlong = "cut"
) -> Rows:
    """Examples of a kind as rows of at most `context` tokens. What `batch` gives, int64 ids and bool masks:

    completion: {"ids", "mask", "targets"}, each (B, T), padded on the right. mask: the tokens that are
                there; targets: those to be predicted from the ones before them (the completion's or the
                assistants', with their end tokens).
    preference: {"chosen": the same, "rejected": the same, of one length, "margin": (B,) float32, 0 for none}.
    prompts:    {"ids", "mask"}, padded on the left for generation, and "rows": the B examples themselves.

    A longer example loses the beginning of its prompt, which both answers share, and if one token of prompt
    is not short enough, the end of its answer, the end token with it ("cut"); or it is left out ("drop").
    Raises SteepestError, naming its line, for an example that cannot be encoded or has nothing to predict.
    """
    if kind not in COLLATE:
        raise unknown("kind of examples", kind, COLLATE)

    def groups(row: Row) -> Groups:
        if not row.answers:
            return ((_unpredicted(encode_prompt(tokenizer, row.prompt)),),)
        return (tuple(_answered(tokenizer, row, answer) for answer in row.answers),)

    collate = partial(COLLATE[kind], pad_id=tokenizer.pad_id, context=context)
    return _rows(examples, groups, collate, context, overlong)


def seq2seq_rows(
    examples: Sequence[Row], tokenizer: Tokenizer, *, context: int, start_id: int, overlong: Overlong = "cut"
) -> Rows:
    """Examples of kind "completion" for a model that reads a prompt and writes the answer apart from it.

    Batches are {"inputs": (B, S) ids, "inputs_mask": (B, S), "ids", "mask", "targets": (B, T)}: the prompt
    with an end token, and the answer behind the decoder's `start_id`; both padded on the right, and cut to
    `context` tokens each as `encode_rows` says.
    """

    def groups(row: Row) -> Groups:
        answer = encode_answer(tokenizer, row.prompt, row.answers[0])
        first = int(answer.targets.argmax())
        prompt = np.append(encode_prompt(tokenizer, row.prompt), np.int32(tokenizer.end_id))
        ids = np.insert(answer.ids[first:], 0, np.int32(start_id))
        return (_unpredicted(prompt),), (Encoded(ids, np.insert(answer.targets[first:], 0, False)),)

    collate = partial(_seq2seq, pad_id=tokenizer.pad_id, context=context)
    return _rows(examples, groups, collate, context, overlong)


Groups = tuple[tuple[Encoded, ...], ...]
"""The sides of an example; those of one group begin with the same prompt and are cut together."""


def _rows(
    examples: Sequence[Row],
    groups_of: Callable[[Row], Groups],
    collate: Callable[[Sequence[Item]], Batch],
    context: int,
    overlong: Overlong,
) -> Rows:
    if context < 2:
        raise SteepestError(f"context={context} leaves nothing to predict; give at least 2 tokens.")
    if overlong not in get_args(Overlong):
        raise unknown("way with longer rows", overlong, get_args(Overlong))
    items: list[Item] = []
    cut = dropped = 0
    for row in examples:
        try:
            groups = groups_of(row)
        except SteepestError as error:
            raise SteepestError(f"{row.where}: {error}") from None
        longer = any(len(side) > context for group in groups for side in group)
        if longer and overlong == "drop":
            dropped += 1
            continue
        cut += longer
        items.append(Item(row, tuple(side for group in groups for side in _fit(group, context))))
    if dropped and not items:
        raise SteepestError(
            f"all {dropped:,} rows are longer than the context of {context} tokens; raise it, or cut them."
        )
    lengths = np.array([max(map(len, item.sides)) for item in items], dtype=np.int64)
    return Rows(tuple(items), lengths, collate, cut, dropped)


def _answered(tokenizer: Tokenizer, row: Row, answer: Turns) -> Encoded:
    out = encode_answer(tokenizer, row.prompt, answer)
    out.targets[:1] = False  # nothing stands before the first token to predict it from
    if not out.targets.any():
        raise SteepestError("there is no token to predict; give a prompt and an answer with text in them.")
    return out


def _unpredicted(ids: TokenIds) -> Encoded:
    if not len(ids):
        raise SteepestError("the prompt is empty; give one with text in it.")
    return Encoded(ids, np.zeros(len(ids), dtype=np.bool_))


def _fit(group: Sequence[Encoded], context: int) -> list[Encoded]:
    """Sides with one prompt in `context` tokens: less of its beginning, then of the answers' ends."""
    excess = max(0, *(len(side) - context for side in group))
    spare = min(int(side.targets.argmax()) - 1 if side.targets.any() else len(side) for side in group)
    start = min(excess, spare)
    return [Encoded(side.ids[start:][:context], side.targets[start:][:context]) for side in group]


def _padded(
    sides: Sequence[Encoded], pad_id: int, context: int, *, width: int = 0, left: bool = False
) -> dict[str, torch.Tensor]:
    """Sides as tensors (B, T), T the length of the longest, or `width`, up to the next multiple of eight."""
    longest = max(width, *map(len, sides))
    shape = len(sides), max(longest, min(context, -(-longest // MULTIPLE) * MULTIPLE))
    ids = np.full(shape, pad_id, dtype=np.int64)
    mask, targets = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    for row, side in enumerate(sides):
        place = slice(shape[1] - len(side), None) if left else slice(len(side))
        ids[row, place], mask[row, place], targets[row, place] = side.ids, True, side.targets
    return {
        "ids": torch.from_numpy(ids),
        "mask": torch.from_numpy(mask),
        "targets": torch.from_numpy(targets),
    }


def _completions(items: Sequence[Item], pad_id: int, context: int) -> Batch:
    return _padded([item.sides[0] for item in items], pad_id, context)


def _pairs(items: Sequence[Item], pad_id: int, context: int) -> Batch:
    width = max(len(side) for item in items for side in item.sides)
    chosen, rejected = (
        _padded([item.sides[i] for item in items], pad_id, context, width=width) for i in (0, 1)
    )
    margins = torch.tensor([float(item.row.get("margin", 0.0)) for item in items])
    return {"chosen": chosen, "rejected": rejected, "margin": margins}


def _prompts(items: Sequence[Item], pad_id: int, context: int) -> Batch:
    batch = _padded([item.sides[0] for item in items], pad_id, context, left=True)
    return {"ids": batch["ids"], "mask": batch["mask"], "rows": tuple(item.row for item in items)}


def _seq2seq(items: Sequence[Item], pad_id: int, context: int) -> Batch:
    inputs = _padded([item.sides[0] for item in items], pad_id, context)
    outputs = _padded([item.sides[1] for item in items], pad_id, context)
    return {"inputs": inputs["ids"], "inputs_mask": inputs["mask"], **outputs}


COLLATE = {"completion": _completions, "preference": _pairs, "prompts": _prompts}
"""Kind of examples to what makes a batch of them."""
