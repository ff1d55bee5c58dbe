"""What an engine is, and what it is given: parameters that can be stepped together, as they are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from steepest.apply import observe
from steepest.codecs import Noise, decode_all, encode_all, pack, stored_name, tensor_key, unpack, word
from steepest.contract import AddUp, Codec, Live, Rule, Scope, Shard, Slots
from steepest.engines.norms import global_norm


@dataclass(frozen=True, slots=True)
class Bucket:
    """Parameters of one rule, device, type, step count and set of codecs. Every list has one entry a
    parameter; while nothing but gradients changes, the lists of parameters and stored tensors are the same
    objects at every step.

    h:         hyperparameters; also scale, clip_value and l2 (`apply.condition`).
    codecs:    "p" for the parameter, then the slots in the rule's order.
    stored:    the tensors of the state by name: "m", "m.scale", "p.low".
    ordinals:  the place of each parameter among all of the optimizer's, for the noise.
    telemetry: whether `Engine.run` is to return sums.
    tensors:   hyperparameters that are numbers on the device, by name; `h` holds any number in their place.
    shards:    which part of its whole tensor each parameter is; None where all are whole.
    add_up:    how sums over tensors are completed, the same object at every step; None where nothing is cut.
               All parameters of a bucket are cut over the same ranks.
    """

    rule: Rule
    h: Live
    codecs: Mapping[str, Codec]
    params: list[Tensor]
    grads: list[Tensor]
    stored: Mapping[str, list[Tensor]]
    ordinals: list[int]
    seed: int
    telemetry: bool
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    shards: Sequence[Shard] | None = None
    add_up: AddUp | None = None

    @property
    def asks(self) -> bool:
        """Whether a step needs sums to which others have to add theirs: the rule's, or a codec's means."""
        return self.add_up is not None and (
            self.rule.scope is not Scope.ELEMENT
            or any(part.per == "column" for codec in self.codecs.values() for part in codec.parts.values())
        )

    def shard(self, i: int) -> Shard:
        """Which part of its whole tensor parameter i is; all of it where nothing is cut."""
        return self.shards[i] if self.shards else Shard(self.params[i].shape)


@dataclass(frozen=True, slots=True)
class Request:
    """What a verdict about gradients on a device rests on; see `optimizer.verdict.decide`.

    looks: whether the gradients are looked at.  loss_scale and found_inf: one number each, on the device;
    None for 1 and for 0.
    """

    looks: bool
    max_norm: float | None
    clip_eps: float
    loss_scale: Tensor | None = None
    found_inf: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of deferred steps since the last time it was asked.

    norm and scale: of the last one.  bad: the places of its non-finite gradients, if it was vetoed.
    """

    committed: int
    vetoed: int
    norm: float
    scale: float
    bad: tuple[int, ...]


class Pending(Protocol):
    """A deferred step. A captured one was only recorded, and may have been run any number of times."""

    @property
    def captured(self) -> bool: ...
    @property
    def sums(self) -> list[Tensor | None]: ...
    def resolve(self) -> Outcome: ...


class Engine(ABC):
    """One way to run rules. An optimizer has an engine of its own, which may keep plans between steps."""

    name: ClassVar[str]

    def measure(self, grads: Sequence[Tensor]) -> float:
        """The global norm of the gradients as they are; it is finite exactly if all of them are."""
        return global_norm(grads)

    def defers(self, grads: Sequence[Tensor]) -> bool:
        """Whether steps of such gradients are decided on their device, and `commit` is worth asking."""
        return False

    def commit(self, buckets: Sequence[Bucket], request: Request) -> Pending | None:
        """Launch a step whose verdict the host need not wait for: where it is a veto, nothing moves, and
        neither does the step count by which the device computes. None where that cannot be done, or not
        for all parameters; then nothing has been launched. `h.scale` is 1 or -1, or None."""
        return None

    @abstractmethod
    def run(self, buckets: Sequence[Bucket]) -> list[Tensor | None]:
        """One step of all buckets, in place; low-precision tensors are computed in float32.

        For a bucket with telemetry: float64 of (parameters, 4), the sums over each tensor of the squares of
        the gradient (scaled and clipped, before L2 decay), of the update and of the new parameter, and the
        number of elements that should have moved and whose stored form did not, which is counted where the
        parameter's codec is lossy. Else None.
        """


def read(bucket: Bucket, i: int) -> tuple[Tensor, Slots]:
    """Parameter i and its slots, decoded. What is stored plainly in the step's type is not copied."""
    p = bucket.params[i]
    stored = {
        stored_name(slot, part): unpack(_tensor(bucket, i, stored_name(slot, part)), of, p.shape)
        for slot, codec in bucket.codecs.items()
        for part, of in codec.parts.items()
    }
    return decode_all(bucket.codecs, stored)


def write(bucket: Bucket, i: int, old: Tensor, new: Tensor, slots: Mapping[str, Tensor]) -> Tensor | None:
    """Store the new values of parameter i and of the slots that were changed; its row of telemetry.

    old: the decoded parameter as it was.
    """
    p = bucket.params[i]
    types = {stored_name(slot, part): of for slot, c in bucket.codecs.items() for part, of in c.parts.items()}
    fresh = {
        name: pack(value, types[name], p.shape)
        for name, value in encode_all(bucket.codecs, new, slots, noise(bucket, i)).items()
    }
    targets = {name: _tensor(bucket, i, name) for name in fresh}
    sums = _observe(bucket, i, old, new, fresh) if bucket.telemetry else None
    # A rule may return what it was given (keep p in a slot): read before anything is written.
    given = list(targets.values())
    apart = {
        n: x.clone() if any(x is t for t in given) else x for n, x in fresh.items() if x is not targets[n]
    }
    for name, value in apart.items():
        targets[name].copy_(value)
    return sums


def _tensor(bucket: Bucket, i: int, name: str) -> Tensor:
    return bucket.params[i] if name == "p" else bucket.stored[name][i]


def noise(bucket: Bucket, i: int) -> Noise:
    """The noise of parameter i, which follows the places of elements in the whole tensor."""
    p, first = bucket.params[i], bucket.shard(i).start
    key = tensor_key(bucket.seed, bucket.h.t, bucket.ordinals[i])

    @cache
    def words(number: int) -> Tensor:
        index = torch.arange(first, first + p.numel(), dtype=torch.int64, device=p.device)
        return word(index.view(p.shape), key, number)

    return Noise(words)


def _observe(bucket: Bucket, i: int, old: Tensor, new: Tensor, fresh: Mapping[str, Tensor]) -> Tensor:
    stored = [stored_name("p", part) for part in bucket.codecs["p"].parts]
    kept = None
    if bucket.codecs["p"].lossy:
        kept = torch.stack([fresh[name] == _tensor(bucket, i, name) for name in stored]).all(0)
    p, moved, g = (x.double() for x in (old, new, bucket.grads[i]))
    found = observe(bucket.rule, p, moved, g, kept, bucket.h)
    sums = [x.sum(dtype=torch.float64) for x in found.values()]
    return torch.stack(sums + [torch.zeros_like(sums[0])] * (4 - len(sums)))
