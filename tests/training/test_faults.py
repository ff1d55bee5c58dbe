"""Faults of one process that no other test provokes: what happens, and that nothing is lost by it."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import session_cases
import torch
from session_cases import assert_same, config, finished, generations
from torch import nn

import steepest
from steepest import schedules
from steepest.contract import SteepestError
from steepest.training import journal, parse_config
from steepest.training.checkpoint import Payload, Store, write
from steepest.training.journal import read_journal, read_metrics
from steepest.training.rollouts import Verified
from steepest.training.session import Session

SOURCES = Path(steepest.__file__).parent
TEXT: dict[str, Any] = {"data": "synthetic:0:4000", "steps": 3}
POLICY: dict[str, Any] = {
    "objective": "grpo",
    "rollout": {"group": 2, "new_tokens": 4, "reward": "session_cases:letters"},
    "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.0},
}

Edit = Callable[[dict[str, Any], dict[str, Any]], None]


def cut(folder: Path, changes: dict[str, Any]) -> None:
    """A run that is stopped after its second step, which is saved."""

    def log(step: int, values: Any) -> None:
        if step > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finished(folder, changes, log=log)


def rewrite(folder: Path, edit: Edit) -> None:
    """One more generation, intact as a file: the newest one after an edit of its tensors and facts."""
    store = Store(folder / "checkpoints", keep=100)
    found = store.load()
    tensors = {group: {n: t.clone() for n, t in own.items()} for group, own in found.tensors.items()}
    edit(tensors, found.facts)
    store.save(Payload(tensors=tensors, facts=found.facts), step=found.step, wait=True)


def refused(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    """The run is not continued, for this reason, and what is saved stays as it is."""
    before = generations(folder)
    with pytest.raises(SteepestError, match=sentence):
        finished(folder, changes)
    assert generations(folder) == before and "resume" not in [x["kind"] for x in read_journal(folder)]


# ---------------------------------------------------------------------- saved state that is not as it was


@pytest.mark.parametrize("slot", ["m", "v"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_moments_that_are_not_finite_are_not_continued(slot: str, value: float, tmp_path: Path) -> None:
    cut(tmp_path, TEXT)
    name = f"transformer.h.0.mlp.c_fc.weight/{slot}"
    rewrite(tmp_path, lambda tensors, facts: tensors["optimizer"][name][0, 0].fill_(value))
    refused(tmp_path, TEXT, f"not finite in optimizer/{name}; go back to an earlier generation")


def lost_slot(tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    del tensors["optimizer"]["transformer.ln_f.weight/v"]


def foreign_slot(tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    tensors["optimizer"]["elsewhere.weight/v"] = torch.zeros(2)


def lost_parameter(tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    del facts["built"]["optimizer"]["parameters"]["transformer.ln_f.weight"]
    for slot in ("m", "v"):
        del tensors["optimizer"][f"transformer.ln_f.weight/{slot}"]


def lost_weight(tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    del tensors["model"]["transformer.ln_f.weight"]


def newer_optimizer(tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    facts["built"]["optimizer"]["version"] = 99


def newer_config(tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    facts["config"]["telepathy"] = True


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lost_slot, "transformer.ln_f.weight: .*v"),
        (foreign_slot, "'elsewhere.weight/v' belongs to no saved parameter"),
        (lost_parameter, "parameters, this optimizer has"),
        (lost_weight, "differ in transformer.ln_f.weight"),
        (newer_optimizer, "has format 99, newer than"),
        (newer_config, "telepathy"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_state_with_something_missing_or_foreign_is_refused(
    edit: Edit, sentence: str, tmp_path: Path
) -> None:
    cut(tmp_path, TEXT)
    rewrite(tmp_path, edit)
    refused(tmp_path, TEXT, sentence)


def test_a_key_that_a_config_did_not_have_yet_is_no_difference(tmp_path: Path) -> None:
    """A run of an older version goes on: what was not there to be chosen was its default."""
    cut(tmp_path, TEXT)

    def older(tensors: dict[str, Any], facts: dict[str, Any]) -> None:
        for key in ("recompute", "sinks", "until"):
            del facts["config"][key]

    rewrite(tmp_path, older)
    assert finished(tmp_path, TEXT).results[0].steps == 3


def test_a_loss_scale_that_is_missing_is_not_begun_anew(tmp_path: Path) -> None:
    half = {**TEXT, "precision": "fp16"}
    cut(tmp_path, half)
    rewrite(tmp_path, lambda tensors, facts: facts["built"]["precision"].clear())
    refused(tmp_path, half, "holds no loss scale")


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *given: Any, **more: Any) -> Any:
        return self.module(*given, **more)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (lambda usual: lambda vocab_size, context: Wrapped(usual(vocab_size, context)), r"module\.transform"),
        (
            lambda usual: lambda vocab_size, context: usual(vocab_size + 8, context),
            r"wte.weight is \((\d+), 16\) .*, this model's is \((?!\1)\d+, 16\)",
        ),
    ],
    ids=["renamed modules", "a larger vocabulary"],
)
def test_another_model_is_refused_when_it_is_loaded(
    other: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(tmp_path, TEXT)
    monkeypatch.setattr(session_cases, "gpt2", other(session_cases.gpt2))
    refused(tmp_path, TEXT, sentence)


# ---------------------------------------------------------------------- numbers that cannot be


@pytest.mark.parametrize("clip", [0, -1.0, math.nan, math.inf])
def test_a_clip_that_cannot_be_is_a_sentence(clip: float) -> None:
    with pytest.raises(SteepestError, match="clip: input should be"):
        config(clip=clip)


@pytest.mark.parametrize(
    ("optimizer", "where"),
    [
        ({"name": "adamw", "lr": 0.1, "eps": 0}, "the optimizer"),
        ({"name": "adafactor", "lr": 0.1, "eps": [0.0, 1e-3]}, "the optimizer"),
        ({"name": "adamw", "lr": 0.1, "lora_b": {"eps": 0.0}}, "lora_b"),
    ],
)
def test_an_eps_of_zero_is_a_sentence_that_names_its_group(optimizer: dict[str, Any], where: str) -> None:
    """A gradient that is zero, as of a token that a batch does not have, would divide zero by it."""
    with pytest.raises(SteepestError, match=f"{where}: an eps of 0 makes NaN"):
        config(optimizer=optimizer)


def test_a_schedule_that_is_stepped_past_its_end_holds() -> None:
    p = nn.Parameter(torch.ones(2))
    shape = schedules.cosine(0.1, 4, final=0.1)
    opt = steepest.AdamW([("p", p)], lr=shape)
    rates = []
    for _ in range(12):
        rates.append(opt.param_groups[0]["lr"])
        p.grad = torch.ones(2)
        opt.step()
    assert rates[:4] == [shape(k) for k in range(4)] and rates[4] < rates[3]
    assert rates[4:] == [shape(4)] * 8, "torch's cosine would have come back to its peak"


# ---------------------------------------------------------------------- rewards


def spoiled(after: int) -> Callable[..., float]:
    """A verifier whose word is NaN from some call on."""
    calls, usual = count(), session_cases.letters

    def reward(completion: str, row: Any) -> float:
        return usual(completion, row) if next(calls) < after else math.nan

    return reward


def scored(after: int) -> Callable[..., torch.Tensor]:
    """Rewards of which one is NaN from some round on, as a broken reward model's."""
    calls, usual = count(), Verified.__call__

    def rewards(self: Verified, *given: Any) -> torch.Tensor:
        found = usual(self, *given)
        if next(calls) >= after:
            found[-1] = math.nan
        return found

    return rewards


@pytest.mark.parametrize(
    ("owner", "name", "fault", "sentence"),
    [
        (
            session_cases,
            "letters",
            lambda: spoiled(8 + 3),
            "verifier 'session_cases:letters' gave nan on .*row",
        ),
        (
            Verified,
            "__call__",
            lambda: scored(1 + 1),
            "a reward of round 1 is not finite; look at the reward",
        ),
    ],
    ids=["verifier", "reward model"],
)
def test_a_reward_that_is_nan_stops_before_anything_has_learnt_from_it(
    owner: Any, name: str, fault: Any, sentence: str, tmp_path: Path
) -> None:
    finished(tmp_path / "whole", POLICY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fault())
        with pytest.raises(SteepestError, match=sentence):
            finished(tmp_path / "cut", POLICY)
    assert max(generations(tmp_path / "cut")) == 1
    finished(tmp_path / "cut", POLICY)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_groups_of_equal_rewards_move_nothing_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_cases, "letters", lambda completion, row: 0.25)
    made = finished(tmp_path, {**POLICY, "objective": {"name": "grpo", "kl_coef": 0.0}})
    lines = read_metrics(tmp_path)
    assert [line["zero_variance_groups"] for line in lines] == [1.0] * 3
    assert all(line["committed"] and line["update_norm"] == 0.0 for line in lines)
    first, *_, last = generations(tmp_path).values()
    weights = {key: sha for key, sha in first["tensors"].items() if key[0] == "model"}
    assert len(weights) > 10 and weights.items() <= {**last["tensors"], **_as_model(last)}.items()
    assert made.results[0].reason is None


def _as_model(one: dict[str, Any]) -> dict[Any, Any]:
    """The policy of a finished run, under the name that it had while it was trained."""
    return {("model", name): sha for (group, name), sha in one["tensors"].items() if group == "policy"}


# ---------------------------------------------------------------------- clocks


class Falling(datetime):
    """A clock that is set back by an hour whenever it is read."""

    read = count()

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) - timedelta(hours=next(cls.read))


def test_a_clock_that_is_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path / "whole", TEXT)
    for room in (journal, write):
        monkeypatch.setattr(room, "datetime", Falling)
    cut(tmp_path / "cut", TEXT)
    told: list[str] = []
    finished(tmp_path / "cut", TEXT, tell=told.append)
    assert told[0] == "continued from gen-000002"
    assert next(Falling.read) > 5
    assert_same(tmp_path / "whole", tmp_path / "cut")
    seconds = [line["seconds"] for line in read_metrics(tmp_path / "cut")]
    assert min(seconds) > 0 and seconds == sorted(seconds)


STAMPS = {"training/journal.py", "training/checkpoint/write.py", "lab/bench/facts.py"}
"""Who writes down the time of day, and does no more with it."""


def test_durations_are_of_clocks_that_only_go_forward() -> None:
    """The time of day is asked for stamps alone; `time.time` and files' times are not asked for at all."""
    readers = set()
    files = list(SOURCES.rglob("*.py"))
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                where = f"{file.relative_to(SOURCES)}:{node.lineno}"
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                wall = owner == "time" and node.attr in ("time", "time_ns", "localtime", "gmtime")
                assert not wall and node.attr not in ("st_mtime", "st_ctime", "getmtime"), where
                if owner in ("datetime", "date") and node.attr in ("now", "utcnow", "today"):
                    readers.add(str(file.relative_to(SOURCES)))
    assert len(files) > 100 and readers == STAMPS


# ---------------------------------------------------------------------- random streams


def test_streams_are_named_and_counted_whatever_else_draws(tmp_path: Path) -> None:
    """Other draws, between steps and before, from every generator there is, are nobody's business."""
    import random

    import numpy as np

    def draw(step: int, values: Any) -> None:
        torch.rand(step * 7)
        random.random()
        np.random.rand(3)

    finished(tmp_path / "whole", TEXT)
    finished(tmp_path / "other", TEXT, log=draw)
    assert_same(tmp_path / "whole", tmp_path / "other")


def test_a_run_that_cannot_begin_leaves_the_one_before(tmp_path: Path) -> None:
    """A mistake in the config is found before a folder is touched."""
    finished(tmp_path, TEXT)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SteepestError, match="did you mean"):
        Session(
            parse_config({**session_cases.BASE, **TEXT, "objective": "next_tokn"}, "config"), tmp_path
        ).run()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
