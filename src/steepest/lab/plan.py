"""A model, a rule and a storage by name, as `placements.plan` takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from steepest.contract import Scope, Shard
from steepest.engines.parts import run_all
from steepest.lab.bench.cases import Storage, parse_storage
from steepest.lab.bench.shapes import meta_model
from steepest.optimizer import Optimizer
from steepest.placements.blocks import units_of
from steepest.placements.plan import Model
from steepest.rules import Card, find_card


def planned_model(model: str, rule: str, storage: str = "fp32", scope: Scope | None = None) -> Model:
    """What a plan is made of.

    model: as `meta_model` takes it.  rule: an optimizer's name.  storage: as `parse_storage` takes it.
    scope: another one than the rule's, to plan for rules that are not written yet.
    Raises SteepestError for names that are not known and storages that the rule cannot have.
    """
    card, stored, units = find_card(rule), parse_storage(storage), units_of(meta_model(model))
    sums = count_sums([shape for unit in units for shape in unit], card, stored)
    own = card.rule if scope is None else replace(card.rule, scope=scope)
    hyper = {**card.rule.defaults(), **card.settings}
    return Model(units, own, hyper, stored.state, stored.param, stored.dtype, sums)


@torch.no_grad()
def count_sums(shapes: list[torch.Size], card: Card, storage: Storage) -> tuple[int, ...]:
    """How many sums over tensors a step adds up over ranks where all parameters are cut, for each time that
    it does: found by making the step, with tensors that have no numbers."""
    params = [nn.Parameter(torch.empty(s, dtype=storage.dtype, device="meta")) for s in shapes]
    for p in params:
        p.grad = torch.empty_like(p)
    options: dict[str, Any] = {**card.settings, **storage.options()}
    lengths: list[int] = []

    def add_up(vector: Tensor) -> None:
        lengths.append(len(vector))

    buckets = [
        replace(bucket, shards=[Shard(p.shape) for p in bucket.params], add_up=add_up)
        for bucket in Optimizer(params, card.rule, **options).buckets()
    ]
    run_all(buckets, lambda whole: None)
    return tuple(lengths)
