"""The peers: who else has the algorithm, where it is found and how it is called. Data.

`timm` imports torchvision when it is imported whole, so its optimizers are loaded from their own files.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steepest.contract import SteepestError


@dataclass(frozen=True)
class Peer:
    """Another library's optimizer.

    same: it computes the same update; another algorithm is timed for context and never the fastest peer.
    clip: it is timed once more behind `clip_grad_norm_`.
    """

    name: str
    module: str
    cls: str
    options: Mapping[str, Any] = field(default_factory=dict)
    same: bool = True
    clip: bool = False

    def make(self, params: Sequence[Any], lr: float) -> Any:
        """The optimizer over these parameters; whatever it raises, it raises."""
        found = getattr(_module(self.module), self.cls)
        made = found(params, lr=lr, **self.options)
        if hasattr(made, "train"):  # schedulefree steps in training mode only
            made.train()
        return made


def _module(name: str) -> Any:
    if not name.startswith("timm."):
        return importlib.import_module(name)
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        raise SteepestError("timm is not installed; pip install --no-deps timm")
    package = types.ModuleType("timm_optim")
    package.__path__ = [str(Path(spec.origin).parent / "optim")]
    sys.modules.setdefault("timm_optim", package)
    return importlib.import_module(f"timm_optim.{name.rpartition('.')[2]}")


def _torch(cls: str, *, fused: bool = True, **options: Any) -> tuple[Peer, ...]:
    kinds = ("fused", "foreach") if fused else ("foreach",)
    return tuple(Peer(f"torch {k}", "torch.optim", cls, {**options, k: True}, clip=True) for k in kinds)


def _optimi(cls: str, **options: Any) -> Peer:
    return Peer("optimi", "optimi", cls, options)


def _third(cls: str, **options: Any) -> Peer:
    return Peer("pytorch_optimizer", "pytorch_optimizer", cls, options)


def _timm(module: str, cls: str, **options: Any) -> Peer:
    return Peer("timm", f"timm.optim.{module}", cls, options)


def _bnb(cls: str, **options: Any) -> Peer:
    bits = "8-bit" if cls.endswith("8bit") else "32-bit"
    return Peer(f"bitsandbytes {bits}", "bitsandbytes.optim", cls, options)


def _ao(cls: str, **options: Any) -> Peer:
    return Peer("torchao", "torchao.optim", cls, options)


def _free(cls: str) -> Peer:
    return Peer("schedulefree", "schedulefree", cls, same=False)


_MOMENTUM: Mapping[str, Any] = {"momentum": 0.9}

PEERS: Mapping[tuple[str, str], tuple[Peer, ...]] = {
    ("sgd", "fp32"): (*_torch("SGD"), _optimi("SGD"), _third("SGD")),
    ("momentum", "fp32"): (
        *_torch("SGD", **_MOMENTUM),
        _optimi("SGD", **_MOMENTUM),
        _third("SGD", **_MOMENTUM),
        _bnb("SGD", **_MOMENTUM),
        _free("SGDScheduleFree"),
    ),
    ("rmsprop", "fp32"): (*_torch("RMSprop", fused=False), _third("RMSprop"), _bnb("RMSprop")),
    ("adagrad", "fp32"): (*_torch("Adagrad"), _bnb("Adagrad")),
    ("adam", "fp32"): (*_torch("Adam"), _optimi("Adam"), _third("Adam"), _bnb("Adam")),
    ("adamw", "fp32"): (
        *_torch("AdamW"),
        _optimi("AdamW"),
        _third("AdamW"),
        _timm("adamw", "AdamWLegacy"),
        _bnb("AdamW"),
        _free("AdamWScheduleFree"),
    ),
    ("adafactor", "fp32"): (
        *_torch("Adafactor", fused=False),
        Peer("transformers", "transformers.optimization", "Adafactor", {"relative_step": False}),
        _third("AdaFactor", relative_step=False, betas=(None, 0.999)),
        _timm("adafactor_bv", "AdafactorBigVision", momentum=None),
    ),
    ("lamb", "fp32"): (
        _timm("lamb", "Lamb", max_grad_norm=None, foreach=True),
        _third("Lamb", weight_decay=0.01, max_grad_norm=0.0),
        _bnb("LAMB", max_unorm=1.0),
    ),
    ("lars", "fp32"): (
        _timm("lars", "Lars", foreach=True, **_MOMENTUM),
        _third("LARS", **_MOMENTUM),
        _bnb("LARS", **_MOMENTUM),
    ),
    ("lion", "fp32"): (
        _optimi("Lion"),
        Peer("lion_pytorch", "lion_pytorch", "Lion"),
        _third("Lion"),
        _timm("lion", "Lion", foreach=True),
        _bnb("Lion"),
    ),
    ("signum", "fp32"): (_third("SignSGD"),),
    ("momentum", "int8"): (_bnb("SGD8bit", **_MOMENTUM),),
    ("rmsprop", "int8"): (_bnb("RMSprop8bit"),),
    ("adagrad", "int8"): (_bnb("Adagrad8bit"),),
    ("adam", "int8"): (_ao("Adam8bit"), _bnb("Adam8bit")),
    ("adamw", "int8"): (_ao("AdamW8bit"), _bnb("AdamW8bit")),
    ("lamb", "int8"): (_bnb("LAMB8bit"),),
    ("lars", "int8"): (_bnb("LARS8bit", **_MOMENTUM),),
    ("lion", "int8"): (_bnb("Lion8bit"),),
    ("adam", "fp8"): (_ao("AdamFp8"),),
    ("adamw", "fp8"): (_ao("AdamWFp8"),),
    ("adam", "int4"): (_ao("Adam4bit"),),
    ("adamw", "int4"): (_ao("AdamW4bit"),),
    **{
        (card, "kahan"): (_optimi(cls, kahan_sum=True, **options),)
        for card, cls, options in (
            ("sgd", "SGD", {}),
            ("momentum", "SGD", _MOMENTUM),
            ("adam", "Adam", {}),
            ("adamw", "AdamW", {}),
            ("lion", "Lion", {}),
        )
    },
    ("adamw", "bf16/bf16"): (_ao("_AdamW", bf16_stochastic_round=True),),
    ("adamw", "bf16/int8"): (_ao("AdamW8bit", bf16_stochastic_round=True),),
}
"""(card, storage) to those who have it too."""

BASELINES = ("torch fused",)
"""Peers of the fp32 case that are timed beside the other storages, to see what compression costs."""


def peers_of(card: str, storage: str, small: bool = False) -> tuple[Peer, ...]:
    """Who is timed beside a case; beside many small tensors only torch and who stands in for it."""
    found = PEERS.get((card, storage), ())
    return tuple(p for p in found if not small or p.name.startswith(("torch", "timm")))
