"""A step is taken whole or not at all, whatever of it is not finite, and the journal says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from session_cases import place, session

from steepest.training import Session, precision
from steepest.training.journal import read_journal, read_metrics
from steepest.training.learner import Learner

TEXT = {"data": "synthetic:0:4000", "steps": 5, "schedule": {"name": "linear", "warmup": 2}}
BAD = 2
"""The attempt, from 0, that something is not finite in."""


def bad_gradient(learner: Learner) -> None:
    dict(learner.model.named_parameters())["transformer.h.0.mlp.c_fc.bias"].grad[1] = float("nan")


def infinite_gradients(learner: Learner) -> None:
    for p in list(learner.model.parameters())[:2]:
        p.grad.fill_(float("inf"))


def inject(
    patch: pytest.MonkeyPatch,
    *,
    attempts: tuple[int, ...] = (BAD,),
    micro: int = 0,
    gradient: Callable[[Learner], None] | None = None,
    loss: float | None = None,
) -> None:
    """Spoil these attempts' gradients after the backward pass, or their loss, whose gradient stays finite."""
    original = Learner._backward

    def backward(self: Learner, batch: Any, at: str) -> Any:
        if at not in {f"{attempt}/{micro}" for attempt in attempts}:
            return original(self, batch, at)
        kept = self.objective
        if loss is not None:
            self.objective = lambda model, given: ((found := kept(model, given))[0] + loss, found[1])
        try:
            return original(self, batch, at)
        finally:
            self.objective = kept
            if gradient is not None:
                gradient(self)

    patch.setattr(Learner, "_backward", backward)


class Watched:
    """A run, and a copy of everything after each attempt."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        self.session: Session = session(folder, {**TEXT, **changes}, log=self.look)

    def look(self, step: int, values: Any) -> None:
        built = self.session.built
        assert built is not None
        tensors = {f"{g}/{n}": t.clone() for g, own in built.tensors().items() for n, t in own.items()}
        facts = built.facts()
        self.seen.append(
            {
                "tensors": tensors,
                "history": json.dumps(facts["guard"]["history"]),
                "clips": json.dumps({name: facts["guard"].get(name) for name in ("zclip", "adagc")}),
                "committed": built.optimizer.committed,
                "rates": [group["lr"] for group in built.optimizer.param_groups],
                "steps": {name: own["step"] for name, own in facts["optimizer"]["parameters"].items()},
                "precision": facts["precision"],
                "position": place(self.session).position,
                "skipped": built.optimizer.skipped,
            }
        )


def assert_nothing_moved(watched: Watched, at: int = BAD) -> None:
    before, after, later = watched.seen[at - 1], watched.seen[at], watched.seen[at + 1]
    assert len(before["tensors"]) > 20
    for name, tensor in before["tensors"].items():
        assert torch.equal(tensor.view(torch.uint8), after["tensors"][name].view(torch.uint8)), name
    for what in ("history", "clips", "committed", "rates", "steps"):
        assert after[what] == before[what], what
    assert after["skipped"] == before["skipped"] + 1
    assert later["position"] == after["position"] + 1 == before["position"] + 2, "the data goes on"
    assert later["committed"] == before["committed"] + 1 and later["rates"] != before["rates"]


GUARDS: dict[str, dict[str, Any]] = {
    "detectors": {},
    "skip": {"skip": True, "minimum": 2},
    "zclip and adagc": {"zclip": True, "adagc": True},
    "update_clip": {"update_clip": True, "minimum": 2},
}


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("fault", "why", "culprits"),
    [
        ({"gradient": bad_gradient}, "gradient", ["transformer.h.0.mlp.c_fc.bias"]),
        ({"gradient": infinite_gradients}, "gradient", ["transformer.wte.weight", "transformer.wpe.weight"]),
        ({"loss": float("nan")}, "the loss is nan", []),
    ],
    ids=["nan in one gradient", "infinite gradients", "nan in the loss only"],
)
def test_nothing_moves_in_a_step_that_is_not_finite(
    fault: Any,
    why: str,
    culprits: list[str],
    accumulate: int,
    guard: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inject(monkeypatch, micro=accumulate - 1, **fault)
    watched = Watched(tmp_path, accumulate=accumulate, guard=guard)
    watched.session.run()
    assert_nothing_moved(watched)
    (veto,) = (line for line in read_journal(tmp_path) if line["kind"] == "veto")
    assert veto["step"] == BAD + 1 and why in veto["why"] and veto["culprits"] == culprits
    if accumulate > 1 and "loss" in fault:
        assert veto["why"].endswith("in micro-batch 2 of 2")
    line = read_metrics(tmp_path)[BAD]
    assert line["committed"] is False and line["attempt"] == BAD + 1
    ledger = watched.session.ledger()
    (own,) = ledger.values()
    assert own == {"trained": [[0, BAD - 1], [BAD + 1, 4]], "skipped": [], "vetoed": [[BAD, BAD]]}


def test_an_overflow_of_float16_halves_the_scale_and_moves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, gradient=infinite_gradients)
    watched = Watched(tmp_path, precision="fp16", guard={"adagc": True})
    watched.session.run()
    assert_nothing_moved(watched)
    scales = [seen["precision"]["value"] for seen in watched.seen]
    assert scales == [65536.0, 65536.0, 32768.0, 32768.0, 32768.0]
    assert read_metrics(tmp_path)[-1]["committed"] is True


def test_a_scale_too_large_for_float16_comes_down_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "LossScale", partial(precision.LossScale, value=2.0**30))
    watched = Watched(tmp_path, precision="fp16", steps=24)
    watched.session.run()
    taken = [line["committed"] for line in read_metrics(tmp_path)]
    assert not taken[0] and all(taken[-4:]) and taken == sorted(taken)
    assert watched.seen[-1]["precision"]["value"] == 2.0 ** (30 - taken.count(False))


def test_too_many_vetoes_end_the_run_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, attempts=tuple(range(2, 40)), gradient=bad_gradient)
    changes = {"optimizer": {"name": "adamw", "lr": 0.01, "skip_limit": 4}, "steps": 20}
    watched = Watched(tmp_path, **changes)
    (result,) = watched.session.run()
    assert (
        result.reason is not None and "4 steps in a row" in result.reason and "mlp.c_fc.bias" in result.reason
    )
    kinds = [line["kind"] for line in read_journal(tmp_path)]
    assert kinds.count("veto") >= 3 and kinds[-1] == "diverged"
    for name, tensor in watched.seen[1]["tensors"].items():
        assert torch.equal(tensor, watched.seen[-1]["tensors"][name]), name
