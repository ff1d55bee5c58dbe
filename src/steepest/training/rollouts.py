"""A policy's own batches: prompts are answered, answers are rewarded, rewards become advantages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from steepest.contract import SteepestError
from steepest.data import seed_for
from steepest.models import Sampled, sample
from steepest.objectives import advantages, token_logprobs, token_values
from steepest.training.feeds import gathered, measured_rows, own_rows
from steepest.training.learner import Batch
from steepest.training.stage_config import RolloutConfig
from steepest.training.world import ALONE, World

Row = Mapping[str, Any]


class Reward(Protocol):
    """What answers are worth. sampled: (B, T); texts: the answers; rows: what the prompts came with."""

    def __call__(self, sampled: Sampled, texts: Sequence[str], rows: Sequence[Row]) -> Tensor: ...


@dataclass(frozen=True)
class Verified:
    """A function of (completion, row), such as a task's verifier."""

    function: Callable[[str, Row], float]

    def __call__(self, sampled: Sampled, texts: Sequence[str], rows: Sequence[Row]) -> Tensor:
        return torch.tensor([self.function(text, row) for text, row in zip(texts, rows, strict=True)])


@dataclass(frozen=True)
class Scored:
    """A reward model."""

    model: nn.Module

    def __call__(self, sampled: Sampled, texts: Sequence[str], rows: Sequence[Row]) -> Tensor:
        with torch.no_grad():
            return self.model(sampled.ids, sampled.mask).float().cpu()


@dataclass(frozen=True)
class Weighed:
    """Several rewards, each by its weight."""

    parts: Sequence[tuple[float, Reward]]

    def __call__(self, sampled: Sampled, texts: Sequence[str], rows: Sequence[Row]) -> Tensor:
        return torch.stack([weight * part(sampled, texts, rows) for weight, part in self.parts]).sum(0)


@dataclass(frozen=True)
class Answers:
    """How prompts are answered. decode: token ids to text."""

    decode: Callable[[Any], str]
    end_id: int
    pad_id: int
    device: torch.device
    config: RolloutConfig

    def __call__(
        self,
        model: nn.Module,
        ids: Tensor,
        mask: Tensor,
        *,
        temperature: float,
        seed: int,
        among: tuple[int, int] | None = None,
    ) -> tuple[Sampled, list[str]]:
        """Answers to left-padded prompts (B, T), as tokens and as text. among: as `models.sample` has it."""
        sampled = sample(
            *(model, ids.to(self.device), mask.to(self.device)),
            new_tokens=self.config.new_tokens,
            temperature=temperature,
            top_p=self.config.top_p if temperature else 1.0,
            end_id=self.end_id,
            pad_id=self.pad_id,
            seed=seed,
            among=among,
        )
        rows = zip(sampled.ids.cpu(), sampled.targets.cpu(), strict=True)
        return sampled, [self.decode(row[answer].numpy()) for row, answer in rows]


@dataclass
class Rollouts:
    """Rounds of a policy gradient, each a function of the position, the seed and the policy as it is.

    Every rank answers its prompts of a round, with the tokens that one process would draw.

    prompts: the batch of a position.  kind: of advantages, "grpo", "rloo" or "gae".  pieces: micro-batches
    that a round's answers make.  reference: the policy as it was before.  facts: of the latest round of all
    ranks, for the log.
    """

    model: nn.Module
    answers: Answers
    prompts: Callable[[int], Batch]
    reward: Reward
    kind: str
    seed: int
    pieces: int
    world: World = ALONE
    reference: nn.Module | None = None
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def config(self) -> RolloutConfig:
        return self.answers.config

    def round(self, position: int) -> Sequence[Sequence[Batch]]:
        """`updates` steps on one round of answers."""
        asked, group = self.prompts(position), self.config.group
        count = len(asked["ids"])
        given = own_rows(asked, self.world)
        ids, mask = (given[name].repeat_interleave(group, 0) for name in ("ids", "mask"))
        rows = [row for row in given["rows"] for _ in range(group)]
        with gathered(self.model):
            sampled, texts = self.answers(
                *(self.model, ids, mask),
                temperature=self.config.temperature,
                seed=seed_for(self.seed, f"sampling/{position}"),
                among=(self.world.rows(count).start * group, count * group),
            )
        rewards = self.reward(sampled, texts, rows).float()
        if not bool(torch.isfinite(rewards).all()):
            raise SteepestError(f"a reward of round {position} is not finite; look at the reward function.")
        pieces = min(self.pieces, count // self.world.size * group)  # each has a row on every rank
        batch = {"ids": sampled.ids, "mask": sampled.mask, "targets": sampled.targets}
        drawn = partial(token_logprobs, temperature=self.config.temperature)
        batch["old_logp"] = self._ask(drawn, self.model, batch, pieces)
        if self.reference is not None:
            batch["reference_logp"] = self._ask(drawn, self.reference, batch, pieces)
        batch |= self._advantages(batch, rewards.to(sampled.ids.device), pieces)
        self._note(rewards, sampled, batch)
        return [_cut(batch, pieces)] * self.config.updates

    def _ask(
        self, what: Callable[[nn.Module, Batch], Tensor], model: nn.Module, batch: Batch, pieces: int
    ) -> Tensor:
        """Something about every token, a micro-batch at a time."""
        return torch.cat([what(model, part) for part in _cut(batch, pieces)])

    def _advantages(self, batch: Batch, rewards: Tensor, pieces: int) -> dict[str, Tensor]:
        config = self.config
        if self.kind == "rloo":
            return {"advantages": advantages.rloo(rewards, config.group)}
        if self.kind == "grpo":
            return {"advantages": advantages.grpo(rewards, config.group, scale=config.scale)}
        values = self._ask(token_values, self.model, batch, pieces)
        per_token = torch.zeros_like(values)
        if config.kl_in_reward and "reference_logp" in batch:
            per_token -= config.kl_in_reward * (batch["old_logp"] - batch["reference_logp"])
        places = torch.arange(batch["targets"].shape[1], device=values.device)
        last = (batch["targets"] * places).amax(1)
        per_token[torch.arange(len(last), device=values.device), last] += rewards
        found, returns = advantages.gae(
            *(per_token, values, batch["targets"]), discount=config.discount, gae_lambda=config.gae_lambda
        )
        add_up = None if self.world.size == 1 else lambda sums: sums.copy_(self.world.sum(sums))
        return {
            "advantages": advantages.whiten(found, batch["targets"], add_up),
            "returns": returns,
            "old_values": values,
        }

    def _note(self, rewards: Tensor, sampled: Sampled, batch: Batch) -> None:
        group, targets = self.config.group, sampled.targets.sum()
        told: list[Any] = [len(rewards), rewards.sum(), rewards.double().square().sum(), targets]
        told.append(advantages.zero_variance(rewards, group) if group > 1 else 0)
        told.append((batch["old_logp"] - batch["reference_logp"]).sum() if "reference_logp" in batch else 0.0)
        count, total, squares, length, same, difference = self.world.sum([float(x) for x in told]).tolist()
        mean = total / count
        self.facts = {
            "reward": mean,
            "reward_std": math.sqrt(max(squares / count - mean * mean, 0.0)),
            "length": length / count,
        }
        if group > 1:
            self.facts["zero_variance_groups"] = same * group / count
        if "reference_logp" in batch:
            self.facts["kl_reference"] = difference / length


def _cut(batch: Batch, pieces: int) -> list[Batch]:
    """A batch in so many pieces, which differ by one row at most."""
    count = len(batch["ids"])
    edges = [count * i // pieces for i in range(pieces + 1)]
    return [{name: x[a:b] for name, x in batch.items()} for a, b in pairwise(edges)]


@dataclass
class RewardValidation:
    """Mean reward of greedy answers to fixed prompts."""

    prompts: Sequence[Batch]
    answers: Answers
    reward: Reward
    world: World = ALONE

    def __call__(self, model: nn.Module) -> float:
        total, count = 0.0, 0
        with gathered(model):
            for batch in self.prompts:
                given, counts = measured_rows(batch, self.world)
                sampled, texts = self.answers(model, given["ids"], given["mask"], temperature=0.0, seed=0)
                found = self.reward(sampled, texts, given["rows"]).double()
                total, count = total + float(found.sum()) * counts, count + len(found) * counts
        total, told = self.world.sum([total, count]).tolist()
        return total / told
