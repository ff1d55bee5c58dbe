"""Small runs of every objective, ways to stop them at any moment, and what must be equal afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from steepest.models import quiet
from steepest.optimizer import Optimizer
from steepest.training import RunConfig, Session, Validation, parse_config
from steepest.training.checkpoint import Store
from steepest.training.journal import Journal, read_metrics
from steepest.training.learner import Learner
from steepest.training.loop import Place
from steepest.training.rollouts import Answers, RewardValidation, Rollouts
from steepest.training.stages import Builder


def gpt2(vocab_size: int, context: int, dropout: float = 0.1) -> nn.Module:
    """Two blocks of width 16, with dropout: noise that a resumed run has to repeat."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with quiet():
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": max(context, 8)}
        ends = {"bos_token_id": None, "eos_token_id": None}
        drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **sizes, **ends, **drop, use_cache=False))


def still(vocab_size: int, context: int) -> nn.Module:
    """The same without dropout."""
    return gpt2(vocab_size, context, dropout=0.0)


def masked(vocab_size: int, context: int) -> nn.Module:
    """The same with a buffer that is not finite."""
    model = still(vocab_size, context)
    model.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
    return model


def t5(vocab_size: int) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    with quiet():
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
        ends = {"eos_token_id": None, "pad_token_id": 0, "decoder_start_token_id": 0}
        return T5ForConditionalGeneration(
            T5Config(vocab_size=vocab_size, **sizes, **ends, dropout_rate=0.1, use_cache=False)
        )


def letters(completion: str, row: Mapping[str, Any]) -> float:
    """A reward for small letters, and for different ones: a policy that has collapsed gets little."""
    return len({c for c in completion if c.islower()}) / 6


BASE: Mapping[str, Any] = {
    "model": "session_cases:gpt2",
    "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "schedule": {"name": "cosine", "warmup": 1},
    "data": "tasks:copy:1:40",
    "batch": 4,
    "context": 24,
    "steps": 3,
    "evals": 2,
    "validation_windows": 4,
    "threads": 1,
    "seed": 3,
    "checkpoint": {"every": 1, "keep": 100, "background": False, "minutes": None},
    "health": {"every": 2},
}
ROLLOUT = {"group": 2, "new_tokens": 4, "reward": "grade", "updates": 2}
LORA = {"kind": "lora", "r": 2, "dropout": 0.1}

OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "next_token": {"data": "synthetic:0:4000", "accumulate": 2},
    "packed": {"data": "synthetic:0:4000", "packing": True},
    "sft": {"objective": "sft", "adapter": LORA},
    "seq2seq": {"objective": "seq2seq", "model": "session_cases:t5"},
    "dpo": {"objective": "dpo"},
    "reward": {"objective": "reward"},
    "grpo": {
        "objective": {"name": "grpo", "kl_coef": 0.1},
        "rollout": ROLLOUT,
        "steps": 4,
        "schedule": {"name": "constant", "warmup": 1},
        "controller": {"rate": {"updates": 4}, "kl": {"start": 0.1, "kl": 0.01, "horizon": 8}},
    },
    "ppo": {"objective": "ppo", "rollout": ROLLOUT, "batch": 2, "accumulate": 2},
}

LIFE: Mapping[str, Any] = {
    "moments": "convert",
    "steps": 2,
    "stages": [
        {"name": "pretrain", "data": "synthetic:0:4000"},
        {"name": "finetune", "objective": "sft", "adapter": LORA, "optimizer": {"name": "lion", "lr": 1e-3}},
        {"name": "judge", "objective": "reward"},
        {"name": "verified", "objective": "grpo", "adapter": "keep", "rollout": ROLLOUT},
        {
            **{"name": "scored", "objective": "grpo", "adapter": "keep"},
            "rollout": {**ROLLOUT, "reward": "stage:judge", "updates": 1},
        },
    ],
}
"""Every kind of border: adapters put on and kept, a model beside the policy, rewards by it."""


def config(**changes: Any) -> RunConfig:
    return parse_config({**BASE, **changes}, "config")


def session(folder: Path, changes: Mapping[str, Any], **more: Any) -> Session:
    """A run in its folder; torch's own generator stands anywhere, as it does in another process."""
    torch.manual_seed(random.getrandbits(32))
    return Session(config(**changes), folder, **more)


def finished(folder: Path, changes: Mapping[str, Any], **more: Any) -> Session:
    made = session(folder, changes, **more)
    made.run()
    return made


class Killed(BaseException):
    """The process is gone."""


class Moments:
    """Every moment that a run passes, by name; at one of them it is killed.

    fed: what was trained on and measured, by attempt and micro-batch.
    """

    PLACES: tuple[tuple[type, str, str], ...] = (
        (Builder, "enter", "border"),
        (Builder, "leave", "end of a stage"),
        (Learner, "_backward", "forward and backward"),
        (Optimizer, "step", "optimizer step"),
        (Validation, "__call__", "validation"),
        (RewardValidation, "__call__", "validation"),
        (Rollouts, "round", "round"),
        (Answers, "__call__", "generation"),
        (Journal, "metrics", "metrics"),
        (Store, "save", "save"),
    )

    def __init__(self, patch: pytest.MonkeyPatch, at: int | None = None) -> None:
        self.at, self.log = at, list[str]()
        self.look: Callable[[], None] = lambda: None
        self.fed: dict[str, Any] = {}
        for owner, name, what in self.PLACES:
            patch.setattr(owner, name, self._around(getattr(owner, name), what))

    def reach(self, moment: str) -> None:
        self.log.append(moment)
        self.look()
        if self.at == len(self.log) - 1:
            raise Killed(moment)

    def _around(self, original: Callable[..., Any], what: str) -> Callable[..., Any]:
        def around(*args: Any, **given: Any) -> Any:
            self.reach(f"before {what}")
            if original.__name__ == "_backward":
                self.fed[args[2]] = bits(args[1])
            out = original(*args, **given)
            self.reach(f"after {what}")
            return out

        around.__name__ = original.__name__
        return around


def bits(batch: Any) -> Any:
    """A batch as something that can be compared."""
    if isinstance(batch, torch.Tensor):
        return batch.tolist()
    if isinstance(batch, Mapping):
        return {name: bits(value) for name, value in batch.items()}
    return batch


TIMES = ("seconds", "tokens_per_second", "step_ms", "eta_seconds")
"""What two runs need not have in common."""


def untimed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: untimed(inner) for key, inner in value.items() if key not in TIMES}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def generations(folder: Path) -> dict[int, Any]:
    """All that is saved, by step, of the latest generation of each: checksums of every tensor, and facts."""
    found: dict[int, Any] = {}
    verified = Store(folder / "checkpoints").check()
    assert verified, "nothing was saved"
    for one in sorted((one.manifest for one in verified if one.manifest), key=lambda m: m.number):
        tensors = {
            (group, name): fact.sha256
            for group, name, fact in one.tensors()
            if name.rpartition("/")[2] not in TIMES
        }
        found[one.step] = {"tensors": tensors, "facts": untimed(one.facts)}
    return found


def assert_same(one: Path, other: Path) -> None:
    """Two folders hold one run: parameters, slots, rates, guards, curves and metrics at every step."""
    ours, theirs = generations(one), generations(other)
    assert list(ours) == list(theirs)
    for step in ours:
        for key in ("tensors", "facts"):
            assert ours[step][key] == theirs[step][key], f"{key} of step {step}"
    measured = [untimed(read_metrics(folder)) for folder in (one, other)]
    assert measured[0] == measured[1]
    steps = [line["step"] for line in measured[0]]
    assert steps == list(range(1, len(steps) + 1)) and steps, "every step once"


def place(made: Session) -> Place:
    assert made.built is not None
    return made.built.stage.place
