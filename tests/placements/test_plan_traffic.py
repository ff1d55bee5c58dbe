"""What a plan says is sent, against what is sent: two ranks count the collectives and bytes of a step."""

import importlib
from dataclasses import replace

import pytest
import torch

from placements.ranks import on_ranks
from steepest import Optimizer
from steepest.contract import Scope
from steepest.lab.bench import parse_storage
from steepest.lab.plan import count_sums
from steepest.models import build_model
from steepest.placements.blocks import units_of
from steepest.placements.place import KINDS, place
from steepest.placements.plan import Model, plan
from steepest.rules import find_card

RULES = {
    "adamw": ("adamw", None),
    "lamb": ("lamb", None),
    "adafactor": ("adafactor", None),
    "matrix": ("momentum", Scope.MATRIX),
}
CASES = [(kind, rule) for kind in KINDS for rule in RULES]
TORCHS = {"parameters", "gradients", "gradients, between copies"}
"""Sent by DistributedDataParallel and FSDP2; what the optimizer sends it counts itself."""


LIMITS = {"owned.PIECE": 2**14, "release.BUCKET": 2**12, "matrices.BATCH": 2**14}
"""So small that a tiny model travels in many pieces, on ranks and in their plan."""


def tiny():
    return build_model("tiny", vocab_size=300, context=8, seed=0)


def rule_of(name):
    card_name, scope = RULES[name]
    card = find_card(card_name)
    rule = card.rule if scope is None else replace(card.rule, scope=scope)
    return card, rule, {**card.rule.defaults(), **card.settings}


def count(rank, world):
    """(collectives, bytes) of a step of every case on this rank."""
    for name, limit in LIMITS.items():
        module, constant = name.split(".")
        setattr(importlib.import_module(f"steepest.placements.{module}"), constant, limit)
    found = {}
    for kind, name in CASES:
        card, rule, _ = rule_of(name)
        placed = place(tiny(), kind)
        opt = Optimizer(
            placed.model.named_parameters(), rule, placement=placed.placement, lr=1e-3, **card.settings
        )
        placed.attach()
        opt.placement.traffic()
        tokens = torch.arange(8).view(1, 8) + rank
        placed.model(input_ids=tokens, labels=tokens).loss.backward()
        placed.finish()
        opt.step()
        assert opt.last_verdict.commit
        sent = opt.placement.traffic()
        found[kind, name] = sent.collectives, sent.bytes
    return found


@pytest.fixture(scope="module")
def counted():
    return on_ranks(2, count)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_plan_says_what_is_sent(counted, monkeypatch, kind, name):
    for constant, limit in LIMITS.items():
        monkeypatch.setattr(f"steepest.placements.{constant}", limit)
    card, rule, hyper = rule_of(name)
    units = units_of(tiny())
    sums = count_sums([shape for unit in units for shape in unit], card, parse_storage("fp32"))
    group = 2 if kind == "hybrid" else None
    planned = plan(Model(units, rule, hyper, sums=sums), kind, 2, group)
    own = [move for move in planned.moves if move.what not in TORCHS]
    assert [calls for calls, _ in (c[kind, name] for c in counted)] == [sum(m.calls for m in own)] * 2
    busiest = max(size for _, size in (c[kind, name] for c in counted))
    assert busiest == sum(move.bytes for move in own)
