"""What a stage is trained and measured on, by the kind of batch that its objective reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steepest.contract import SteepestError, unknown
from steepest.data import (
    Batches,
    Examples,
    Indices,
    Packed,
    Rows,
    Sampler,
    Tokenizer,
    decode_answer,
    encode_document,
    encode_rows,
    fixed_batches,
    grade,
    load_corpus,
    load_examples,
    load_tokenizer,
    load_verifier,
    seed_for,
    seq2seq_rows,
    validation_batches,
    verify,
)
from steepest.objectives import OBJECTIVES, Objective, reference_logprobs
from steepest.training.config import RunConfig
from steepest.training.curve import Validation
from steepest.training.feeds import Stream, measured_rows, to_device
from steepest.training.learner import Batch, Learner
from steepest.training.loop import Feed
from steepest.training.rollouts import Answers, Reward, RewardValidation, Rollouts, Scored, Verified, Weighed
from steepest.training.stage_config import StageConfig
from steepest.training.text import Text, text_of
from steepest.training.world import ALONE, World

VERIFIERS: Mapping[str, Callable[[str, Mapping[str, Any]], float]] = {"task": verify, "grade": grade}
"""Rewards by a short name: right or wrong, and how right."""

MEASURED = 32
"""Rows that a validation reads at a time."""


@dataclass(frozen=True)
class Context:
    """What sources share: the run's config, tokenizer, device, and models that stages have left behind."""

    config: RunConfig
    tokenizer: Tokenizer
    device: torch.device
    cache: Path | None
    products: Mapping[str, nn.Module]
    world: World = ALONE

    def seed(self, stream: str) -> int:
        return seed_for(self.config.seed, stream)


@dataclass
class Source:
    """The data of a stage. key: equal for stages that go on where the other has ended.

    feed, validation: made for a learner.  prepare: asks the model, as it is when the stage begins, for what
    goes into `tables`, which generations keep.  guess: the loss of a uniform guess, if that means anything.
    rising: the validation is better when it is higher.  unit: what it is measured in.
    """

    key: str
    feed: Callable[[Learner], Feed]
    validation: Callable[[Learner], Callable[[nn.Module], float]]
    guess: float | None = None
    rising: bool = False
    unit: str = "nats a token"
    tables: dict[str, Tensor] = field(default_factory=dict)
    prepare: Callable[[nn.Module], None] = lambda model: None


def load_run_tokenizer(config: RunConfig, cache: Path | None) -> Tokenizer:
    """The tokenizer of a run; one that is trained is trained on the first stage's text."""
    for stage in config.plan():
        if stage.objective_name == "next_token":
            return text_of(config, cache, stage=stage).tokenizer
    if config.tokenizer == "model" or config.tokenizer == "bytes":
        folder = config.model if Path(config.model).is_dir() else None
        return load_tokenizer(config.tokenizer, None, model_path=folder)
    raise SteepestError(
        f"tokenizer {config.tokenizer!r} is trained on text, and no stage reads any; use bytes, or model."
    )


def open_source(stage: StageConfig, objective: Objective, context: Context) -> Source:
    """The source of a stage."""
    return OPENERS[objective.batch](stage, objective, context)


# ---------------------------------------------------------------------- text


def _text(stage: StageConfig, objective: Objective, context: Context) -> Source:
    text = text_of(context.config, context.cache, stage=stage)
    shape = {"batch": stage.batch, "length": stage.context}
    if stage.packing:
        train, held_out = (_packed(text, part, stage.context) for part in (0, 1))
        at: Callable[[int], Batch] = Sampler(train, batch=stage.batch, seed=context.seed("data")).at
        measured: Sequence[Batch] = fixed_batches(held_out, batch=MEASURED, limit=stage.validation_windows)
    else:
        at = Batches(text.train, **shape, seed=context.seed("data")).at
        measured = validation_batches(
            text.validation, batch=MEASURED, length=stage.context, limit=stage.validation_windows
        )
    return Source(
        key=f"text {stage.data} {stage.batch} {stage.context} {stage.packing}",
        feed=lambda learner: Stream(at, stage.accumulate, context.device, context.world),
        validation=lambda learner: Validation(
            [to_device(batch, context.device) for batch in measured],
            learner.objective,
            context.world,
        ),
        guess=math.log(text.tokenizer.vocab_size),
    )


def _packed(text: Text, part: int, length: int) -> Packed:
    documents = [encode_document(text.tokenizer, d) for d in text.corpus.documents()[part]]
    return Packed(documents, length=length, pad_id=text.tokenizer.pad_id)


# ---------------------------------------------------------------------- examples


@lru_cache(maxsize=4)
def _examples(spec: str, kind: str) -> Examples:
    return load_examples(spec, kind)


KINDS = {
    "completion": "completion",
    "seq2seq": "completion",
    "preference": "preference",
    "policy": "prompts",
}
"""The kind of examples that a kind of batch is made of."""


def check_data(stage: StageConfig) -> None:
    """Raise if a stage's data cannot be read."""
    kind = OBJECTIVES[stage.objective_name].batch
    if kind in KINDS:
        _examples(stage.data, KINDS[kind])
    else:
        load_corpus(stage.data, text_key=stage.text_key)


def _rows(stage: StageConfig, kind: str, context: Context) -> tuple[Rows, Rows]:
    """Encoded rows to train on and to measure on."""
    found = _examples(stage.data, kind)
    encode = partial(encode_rows, kind=kind, tokenizer=context.tokenizer, context=stage.context)
    return encode(found.train), encode(found.validation)


def _measured(stage: StageConfig, rows: Rows | WithReference, context: Context) -> list[Batch]:
    return [
        to_device(b, context.device)
        for b in fixed_batches(rows, batch=MEASURED, limit=stage.validation_windows)
    ]


def _completions(stage: StageConfig, objective: Objective, context: Context) -> Source:
    train, held_out = _rows(stage, "completion", context)
    return _from_rows(stage, train, held_out, context)


def _seq2seq(stage: StageConfig, objective: Objective, context: Context) -> Source:
    found = _examples(stage.data, "completion")
    encode = partial(
        seq2seq_rows, tokenizer=context.tokenizer, context=stage.context, start_id=context.tokenizer.pad_id
    )
    return _from_rows(stage, encode(found.train), encode(found.validation), context)


def _from_rows(
    stage: StageConfig,
    train: Rows | WithReference,
    held_out: Rows | WithReference,
    context: Context,
    unit: str = "nats a token",
) -> Source:
    sampler = Sampler(train, batch=stage.batch, seed=context.seed(f"data/{stage.data}"), by_length=True)
    measured = cache(partial(_measured, stage, held_out, context))  # made late: the model is asked before
    return Source(
        key=f"{stage.objective_name} {stage.data} {stage.batch} {stage.context}",
        feed=lambda learner: Stream(sampler.at, stage.accumulate, context.device, context.world),
        validation=lambda learner: (
            lambda model: Validation(measured(), learner.objective, context.world)(model)
        ),
        unit=unit,
    )


# ---------------------------------------------------------------------- preferences


def _preferences(stage: StageConfig, objective: Objective, context: Context) -> Source:
    train, held_out = _rows(stage, "preference", context)
    if "reference" not in objective.options or stage.objective_options.get("reference", "cached") != "cached":
        return _from_rows(stage, train, held_out, context, unit="nats a pair")
    tables: dict[str, Tensor] = {}
    told = WithReference("train", train, tables), WithReference("held_out", held_out, tables)
    source = _from_rows(stage, *told, context, unit="nats a pair")
    source.tables = tables

    def ask(model: nn.Module) -> None:
        for part in told:
            part.ask(model, context.device, context.world)

    source.prepare = ask
    return source


REFERENCE = ("reference_chosen", "reference_rejected")


@dataclass(frozen=True)
class WithReference:
    """Rows with what the model says of them before a stage changes it: asked once, and kept in `tables`."""

    part: str
    rows: Rows
    tables: dict[str, Tensor]

    @property
    def lengths(self) -> Indices:
        return self.rows.lengths

    def batch(self, indices: Indices) -> Batch:
        columns = {name: self.tables[f"{self.part}.{name}"] for name in REFERENCE}
        own = torch.from_numpy(indices)
        return {**self.rows.batch(indices), **{name: column[own] for name, column in columns.items()}}

    def ask(self, model: nn.Module, device: torch.device, world: World) -> None:
        """Fill the tables, the same on every rank; each asks about its rows."""
        count = len(self.lengths)
        found = []
        for indices in np.split(np.arange(count), range(MEASURED, count, MEASURED)):
            rows, counts = measured_rows(self.rows.batch(indices), world)
            told = reference_logprobs(model, to_device(rows, device))
            found.append({name: told[name].cpu() for name in REFERENCE} if counts else {})
        batches = [own for told in zip(*world.gather(found), strict=True) for own in told if own]
        for name in REFERENCE:
            self.tables[f"{self.part}.{name}"] = torch.cat([batch[name] for batch in batches])


# ---------------------------------------------------------------------- rollouts


def _policy(stage: StageConfig, objective: Objective, context: Context) -> Source:
    train, held_out = _rows(stage, "prompts", context)
    sampler = Sampler(train, batch=stage.batch, seed=context.seed(f"data/{stage.data}"))
    tokenizer = context.tokenizer
    answers = Answers(
        decode=lambda ids: decode_answer(tokenizer, ids),
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
        device=context.device,
        config=stage.rollout,
    )
    reward = _reward(stage, context)
    generated = stage.data.startswith("tasks")
    check = Verified(VERIFIERS["task"]) if generated else reward

    def feed(learner: Learner) -> Feed:
        return Rollouts(
            model=learner.model,
            answers=answers,
            prompts=sampler.at,
            reward=reward,
            kind=objective.advantages,
            seed=context.config.seed,
            pieces=stage.accumulate,
            world=context.world,
        )

    return Source(
        key=f"prompts {stage.data} {stage.batch} {stage.context}",
        feed=feed,
        validation=lambda learner: RewardValidation(
            _measured(stage, held_out, context), answers, check, context.world
        ),
        rising=True,
        unit="of answers right" if generated else "reward",
    )


def _reward(stage: StageConfig, context: Context) -> Reward:
    given = stage.rollout.reward
    weighed = {given: 1.0} if isinstance(given, str) else given
    parts = [(weight, _one_reward(name, stage, context)) for name, weight in weighed.items()]
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1.0 else Weighed(parts)


def _one_reward(name: str, stage: StageConfig, context: Context) -> Reward:
    if name in VERIFIERS:
        return Verified(VERIFIERS[name])
    if name.startswith("stage:"):
        return Scored(context.products[name.removeprefix("stage:")])
    if ":" in name:
        return Verified(load_verifier(name))
    raise unknown("reward", name, [*VERIFIERS, "stage:NAME", "package.module:function"])


OPENERS: Mapping[str, Callable[[StageConfig, Objective, Context], Source]] = {
    "text": _text,
    "completion": _completions,
    "seq2seq": _seq2seq,
    "preference": _preferences,
    "policy": _policy,
}
