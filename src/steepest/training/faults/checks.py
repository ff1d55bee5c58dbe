"""What needs no run: asked of the library in one process, about the config's own model and optimizer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from steepest import schedules
from steepest.optimizer import Optimizer, Route, carry
from steepest.training.config import parse_config
from steepest.training.faults.bench import RATE, Bench, same_weights, sentence
from steepest.training.faults.terms import demand

BAD_RATES = (math.nan, math.inf, -1e-3)
NEAR_MISSES = {"otpimizer": "optimizer", "stpes": "steps", "bacth": "batch"}


def bad_clips(bench: Bench) -> str:
    """Thresholds of clipping that cannot be, in the config and in the library."""
    model = bench.model()
    for clip in (0, -1.0, math.nan, math.inf):
        said = sentence(lambda: parse_config({**bench.given, "clip": clip}, "the config"), "clip")  # noqa: B023
    for clip in (0.0, -1.0, math.nan):
        sentence(lambda: bench.optimizer(model, max_grad_norm=clip), "max_grad_norm")  # noqa: B023
    return said


def bad_hyperparameters(bench: Bench) -> str:
    """Values out of range in the second of two groups, and in the config."""
    named = list(bench.model().named_parameters())
    for rate in BAD_RATES:
        groups = [{"params": named[:1]}, {"params": named[1:], "lr": rate}]
        said = sentence(lambda: bench.optimizer(groups), "group 1", "lr")  # noqa: B023
        config = {**bench.given, "optimizer": {**bench.given["optimizer"], "lr": rate}}
        sentence(lambda: parse_config(config, "the config"), "lr")  # noqa: B023
    groups = [{"params": named[:1]}, {"params": named[1:], "betas": (0.9, 1.0)}]
    sentence(lambda: bench.optimizer(groups, "adamw"), "group 1", "betas")
    adam = {"name": "adamw", "lr": RATE, "eps": 0.0}
    sentence(lambda: parse_config({**bench.given, "optimizer": adam}, "the config"), "eps")
    optimizer = bench.optimizer(named)
    optimizer.param_groups[0]["lr"] = math.nan
    named[0][1].grad = torch.zeros_like(named[0][1])
    sentence(optimizer.step, "lr")
    return said


def unknown_keys(bench: Bench) -> str:
    """Misspelt keys, in the config and in a group."""
    for wrong, right in NEAR_MISSES.items():
        config = {**bench.given, wrong: bench.given[right]}
        said = sentence(lambda: parse_config(config, "the config"), wrong, f"did you mean '{right}'")  # noqa: B023
    inner = {**bench.given, "checkpoint": {"evry": 3}}
    sentence(lambda: parse_config(inner, "the config"), "checkpoint.evry", "checkpoint.every")
    named = list(bench.model().named_parameters())
    sentence(lambda: bench.optimizer([{"params": named, "weight_decy": 0.1}]), "did you mean 'weight_decay'")
    return said


def routes(bench: Bench) -> str:
    """Parameters that no route claims, routes that claim nothing, and a weight under two names."""
    model = bench.model()
    first, *_ = (name for name, _ in model.named_parameters())

    def routed(*matches: str) -> Optimizer:
        return Optimizer(model, routes=[Route(match, bench.rule, lr=RATE) for match in matches])

    said = sentence(lambda: routed(first), "no route claims")
    sentence(lambda: routed("nowhere.*", "*"), "'nowhere.*'", "matches no parameter")
    sentence(lambda: routed("*", first), "matches no parameter")
    model.add_module("again", _Holder(dict(model.named_parameters())[first]))
    counts = [sum(len(group["params"]) for group in routed("*").param_groups)]
    counts.append(len({id(p) for p in model.parameters()}))
    demand(counts[0] == counts[1], f"a weight under two names is stepped {counts[0] - counts[1]} times more")
    return said


class _Holder(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


def unfrozen(bench: Bench) -> str:
    """A parameter that is trained from the third step on counts its own steps from there."""
    model, other = bench.model(), bench.model()
    name, p = next((name, p) for name, p in model.named_parameters() if p.ndim > 1)
    p.requires_grad_(False)
    kept = p.detach().clone()
    optimizer = bench.optimizer(model.named_parameters())
    bench.train(model, optimizer, 1, 2)
    demand(torch.equal(p, kept), "a frozen parameter has moved")
    p.requires_grad_(True)
    bench.train(model, optimizer, 3, 3)
    taken = optimizer.state[p]["step"]
    demand(taken == 1, f"it counts {taken} steps after its first")
    fresh = bench.optimizer([(name, dict(other.named_parameters())[name])])
    bench.give_gradients(other, 3)
    fresh.step()
    demand(torch.equal(p, dict(other.named_parameters())[name]), "its first step is not a first step")
    return "a parameter that is unfrozen has a first step of its own"


def another_order(bench: Bench) -> str:
    """State is matched by name, whatever the order."""
    model, other = bench.model(), bench.model()
    straight = bench.optimizer(model.named_parameters())
    bench.train(model, straight, 1, 2)
    turned = bench.optimizer(list(other.named_parameters())[::-1])
    other.load_state_dict(model.state_dict())
    turned.import_state(*straight.export_state())
    bench.train(model, straight, 3, 4)
    bench.train(other, turned, 3, 4)
    same_weights(model, other, "with parameters in another order these became others")
    return "state goes by name: the next steps are the same bits"


def other_rule(bench: Bench) -> str:
    """State of another optimizer is refused when it is loaded, and converted at a border, with a report."""
    model = bench.model()
    old = bench.optimizer(model.named_parameters())
    bench.train(model, old, 1, 2)
    rule = "lion" if bench.rule != "lion" else "adamw"
    new = bench.optimizer(model.named_parameters(), rule)
    before = _state(new)
    said = sentence(lambda: new.import_state(*old.export_state()), old.param_groups[0]["rule"], rule)
    demand(
        all(torch.equal(before[key], x) for key, x in _state(new).items()), "a refused load has changed state"
    )
    report = carry(old, new, "convert")
    demand({row.new_rule for row in report.rows} == {rule}, f"the report of the border says {report}")
    bench.train(model, new, 3, 3)
    return said


def _state(optimizer: Optimizer) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in optimizer.export_state()[0].items()}


def other_codec(bench: Bench) -> str:
    """State in another number format is refused with both named, and never narrowed in silence."""
    model = bench.model()
    model.register_parameter("table", nn.Parameter(torch.zeros(64, 256)))  # no codec takes small tensors
    old = bench.optimizer(model.named_parameters(), "adamw")
    bench.train(model, old, 1, 2)
    new = bench.optimizer(model.named_parameters(), "adamw", state="int8")
    said = sentence(lambda: new.import_state(*old.export_state()), "float32", "int8")
    same = bench.optimizer(model.named_parameters(), "adamw")
    same.import_state(*old.export_state())
    kinds = {(key, tensor.dtype) for key, tensor in old.export_state()[0].items()}
    demand(
        {(key, tensor.dtype) for key, tensor in _state(same).items()} == kinds, "a type of state has changed"
    )
    return said


def past_the_end(bench: Bench) -> str:
    """A schedule that is stepped past its end holds."""
    p = nn.Parameter(torch.ones(2))
    shape = schedules.cosine(0.1, 4, final=0.1)
    optimizer: Any = Optimizer([("p", p)], "adamw", lr=shape)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        p.grad = torch.ones(2)
        optimizer.step()
    demand(rates[:4] == [shape(k) for k in range(4)], f"the rates before its end are {rates[:4]}")
    demand(rates[4:] == [shape(4)] * 8, f"the rates past its end are {rates[4:]}")
    return "past its end a schedule holds"
