"""Each rule agrees with an implementation that other people wrote and others use.

In float64, the learning rate changing at every step; what is left is the order of roundings.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import steepest
from laws.cases import feed, tensors
from steepest.rules import CARDS

SHAPES = [(7, 6), (5,), (1,), (257, 3), (130, 140), (2, 3, 4)]
MATRICES = [(7, 6), (257, 3), (130, 140)]
LRS = [0.02, 0.05, 0.03, 0.04, 0.01, 0.01, 0.3, 0.02, 0.06, 0.005, 0.001, 0.01]


def timm(module: str, name: str) -> Any:
    """A class of `timm.optim`, loaded from its own file: the whole of timm needs torchvision."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        pytest.skip("timm is not installed; pip install --no-deps timm")
    package = types.ModuleType("timm_optim")
    package.__path__ = [str(Path(found.origin).parent / "optim")]
    sys.modules.setdefault("timm_optim", package)
    return getattr(importlib.import_module(f"timm_optim.{module}"), name)


def installed(module: str, name: str) -> Any:
    return getattr(pytest.importorskip(module, reason=f"{module} is not installed"), name)


@dataclass(frozen=True)
class Peer:
    """Our constructor and theirs; `both` goes to both, `ours` and `theirs` are where names differ."""

    constructor: str
    load: Callable[[], Any]
    both: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=lambda: SHAPES)
    enough: float = 1e-13
    """The largest difference allowed, relative to a tensor's largest element."""


def of_torch(name: str, **both: Any) -> Peer:
    return Peer(name, lambda: getattr(torch.optim, name), both)


def torch_adafactor(**both: Any) -> Peer:
    """torch's eps1 is by default that of the parameter's type; here it is that of float32 for all."""
    theirs = {"eps": (torch.finfo(torch.float32).eps, 1e-3)}
    return Peer("Adafactor", lambda: torch.optim.Adafactor, both, {"dialect": "torch"}, theirs)


def hf_adafactor(ours: dict[str, Any] | None = None, **theirs: Any) -> Peer:
    theirs = {"relative_step": False, "lr": 0.01, **theirs}
    ours = {"dialect": "hf", **(ours or {})}
    return Peer("Adafactor", lambda: installed("transformers.optimization", "Adafactor"), {}, ours, theirs)


def timm_lamb(ours: dict[str, Any], foreach: bool = False, **theirs: Any) -> Peer:
    return Peer("LAMB", lambda: timm("lamb", "Lamb"), {}, ours, {**theirs, "foreach": foreach})


def timm_lars(foreach: bool = False, **both: Any) -> Peer:
    theirs = {"always_adapt": True, "trust_coeff": 1e-3, "foreach": foreach}
    return Peer("LARS", lambda: timm("lars", "Lars"), {"momentum": 0.9, **both}, {}, theirs)


def timm_adafactor(**theirs: Any) -> Peer:
    ours = {"dialect": "big_vision", "weight_decay": theirs.get("weight_decay", 0.0)}
    if theirs.get("clipping_threshold"):
        ours["d"] = theirs["clipping_threshold"]
    ours["beta1"] = theirs.get("momentum", 0.9) or 0.0
    theirs = {"momentum_dtype": torch.float64, "min_dim_size_to_factor": 32, **theirs}
    return Peer("Adafactor", lambda: timm("adafactor_bv", "AdafactorBigVision"), {}, ours, theirs)


PEERS = {
    "sgd-torch": of_torch("SGD", weight_decay=0.1),
    "sgd-dampening-torch": of_torch("SGD", momentum=0.9, dampening=0.3),
    "sgd-nesterov-torch": of_torch("SGD", momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd-maximize-torch": of_torch("SGD", momentum=0.9, maximize=True, weight_decay=0.1),
    "rmsprop-torch": of_torch("RMSprop", weight_decay=0.1),
    "rmsprop-centered-torch": of_torch("RMSprop", centered=True, momentum=0.9, alpha=0.9),
    "adagrad-torch": of_torch("Adagrad", weight_decay=0.1),
    "adagrad-decay-torch": of_torch("Adagrad", lr_decay=0.1, initial_accumulator_value=0.1),
    "adam-torch": of_torch("Adam", weight_decay=0.1),
    "adam-amsgrad-torch": of_torch("Adam", amsgrad=True, betas=(0.8, 0.95)),
    "adamw-torch": of_torch("AdamW"),
    "adamw-amsgrad-torch": of_torch("AdamW", amsgrad=True, maximize=True, weight_decay=0.1),
    "adafactor-torch": torch_adafactor(weight_decay=0.1),
    "adafactor-decay_rate-torch": torch_adafactor(d=1.05, beta2_decay=-0.5),
    "adafactor-hf": hf_adafactor({"weight_decay": 0.1}, weight_decay=0.1),
    "adafactor-momentum-hf": hf_adafactor({"beta1": 0.9}, beta1=0.9),
    "adafactor-absolute-hf": hf_adafactor({"scale_parameter": False}, scale_parameter=False),
    "adafactor-relative-hf": hf_adafactor(
        {"relative_step": True, "warmup_init": True}, relative_step=True, warmup_init=True, lr=None
    ),
    "adafactor-timm": timm_adafactor(),
    "adafactor-clip-timm": timm_adafactor(momentum=None, clipping_threshold=0.5, weight_decay=0.1),
    "lamb-timm": timm_lamb({}),
    "lamb-timm-foreach": timm_lamb({}, foreach=True),
    "lamb-unclipped-timm": timm_lamb({"max_grad_norm": None}, max_grad_norm=None),
    "lamb-no_decay-timm": timm_lamb({"weight_decay": 0.0}, weight_decay=0.0),
    "lamb-always_adapt-timm": timm_lamb(
        {"weight_decay": 0.0, "always_adapt": True}, weight_decay=0.0, always_adapt=True
    ),
    "lars-timm": timm_lars(),
    "lars-decay-timm": timm_lars(weight_decay=0.1),
    "lars-nesterov-timm-foreach": timm_lars(foreach=True, nesterov=True, weight_decay=0.1),
    "lars-pytorch_optimizer": Peer(
        "LARS",
        lambda: installed("pytorch_optimizer", "LARS"),
        {"weight_decay": 0.1, "momentum": 0.9},
        {"eps": 0.0},
        shapes=MATRICES,  # vectors take plain SGD there
    ),
    "lion-timm": Peer("Lion", lambda: timm("lion", "Lion"), {"weight_decay": 0.1}),
    "lion-lion_pytorch": Peer("Lion", lambda: installed("lion_pytorch", "Lion"), {"weight_decay": 0.1}),
    "lion-betas-lion_pytorch": Peer(
        "Lion", lambda: installed("lion_pytorch", "Lion"), {"betas": (0.95, 0.98)}
    ),
    "signum-pytorch_optimizer": Peer(
        "Signum", lambda: installed("pytorch_optimizer", "SignSGD"), {"weight_decay": 0.1, "momentum": 0.9}
    ),
    "signsgd-pytorch_optimizer": Peer(
        "Signum", lambda: installed("pytorch_optimizer", "SignSGD"), {"momentum": 0.0}
    ),
}


def run(opt: torch.optim.Optimizer, params: list[torch.Tensor], lrs: list[float | None]) -> None:
    for k, lr in enumerate(lrs):
        feed(params, seed=20 + k)
        opt.param_groups[0]["lr"] = lr
        opt.step()


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_every_optimizer_has_a_peer():
    assert {peer.constructor for peer in PEERS.values()} == {card.constructor for card in CARDS.values()}


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS.keys())
def test_rule_agrees_with_its_peer(peer: Peer) -> None:
    start = tensors(peer.shapes, seed=1)
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    own = steepest.optimizer.constructor(peer.constructor)(ours, **peer.both, **peer.ours)
    other = peer.load()(theirs, **peer.both, **peer.theirs)
    fixed = peer.theirs.get("relative_step", False)
    run(own, ours, LRS)
    run(other, theirs, [None] * len(LRS) if fixed else list(LRS))
    moved = [gap(p.data, s) for p, s in zip(ours, start, strict=True)]
    assert min(moved) > 1e-6  # the comparison is of something
    for p, q in zip(ours, theirs, strict=True):
        assert gap(p.data, q.data) <= peer.enough, (
            f"shape {tuple(p.shape)} is off by {gap(p.data, q.data):.2g}"
        )


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adagrad", "Adam", "AdamW"])
def test_float32_stays_with_torch(name: str) -> None:
    """The type people train in: twelve steps leave torch.optim's numbers by a few units in the last place."""
    start = tensors(SHAPES, seed=2, dtype=torch.float32)
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    run(getattr(steepest, name)(ours, weight_decay=0.1), ours, LRS)
    run(getattr(torch.optim, name)(theirs, weight_decay=0.1), theirs, LRS)
    for p, q in zip(ours, theirs, strict=True):
        assert gap(p.data, q.data) <= 16 * torch.finfo(torch.float32).eps
