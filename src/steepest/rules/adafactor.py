"""Adafactor: the second moment kept as one mean per row and one per column.

Four implementations that people use differ in six places; the table below is those places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from steepest.contract import Hyper, Scope, Slot
from steepest.ops import atleast, atmost, lerp, mean_to, rms, sqrt
from steepest.rules.declare import FLAG, UNIT, WEIGHT_DECAY, rate, rule


@dataclass(frozen=True)
class Dialect:
    """Where the four differ.

    largest:     factor the two largest dimensions (else the last two), if both reach `min_dim`.
    cap:         the largest the second moment's decay may become.
    inside:      eps1 is added to the squared gradient (else it floors the second moment afterwards).
    inverse_sqrt: the rate is held below 1/sqrt(t).
    late:        the learning rate multiplies after momentum (else the average is of scaled updates).
    decay_rate:  what multiplies weight decay: nothing, "lr", or "step" (lr times the parameter's rms).
    """

    largest: bool
    min_dim: int
    cap: float = 1.0
    inside: bool = True
    inverse_sqrt: bool = False
    late: bool = False
    decay_rate: str | None = "lr"


# t5x/adafactor.py; transformers/optimization.py; torch/optim/_adafactor.py; big_vision/optax.py (in torch:
# timm/optim/adafactor_bv.py).
DIALECTS: Mapping[str, Dialect] = {
    "t5x": Dialect(largest=True, min_dim=128, decay_rate=None),
    "hf": Dialect(largest=False, min_dim=1, decay_rate="step"),
    "torch": Dialect(largest=False, min_dim=1, inside=False, inverse_sqrt=True),
    "big_vision": Dialect(largest=True, min_dim=32, cap=0.999, late=True),
}


def factored_dims(shape: torch.Size, h: Mapping[str, Any]) -> tuple[int, int] | None:
    """(dimension averaged for the row means, for the column means), or None where nothing is factored."""
    dialect = DIALECTS[h["dialect"]]
    if len(shape) < 2:
        return None
    order = sorted(range(len(shape)), key=lambda i: (shape[i], i)) if dialect.largest else range(len(shape))
    column, row = order[-2], order[-1]
    return (row, column) if min(shape[row], shape[column]) >= dialect.min_dim else None


def _means(which: int) -> Slot:
    def shape(full: torch.Size, h: Mapping[str, Any]) -> torch.Size:
        dims = factored_dims(full, h)
        return torch.Size(1 if dims and i == dims[which] else n for i, n in enumerate(full))

    return Slot(
        shape=shape, nonnegative=True, of="square", when=lambda full, h: factored_dims(full, h) is not None
    )


def floored(x: Any, floor: Any) -> Any:
    """x, at least the floor, None for none."""
    return x if floor is None else atleast(x, floor)


def roots(r: Any, c: Any, floor: Any = None) -> tuple[Any, Any]:
    """Row by row and column by column, what multiplies to the root of r c / mean r, the second moment that
    two means stand for. Roots come before quotients and products, which may be below float32."""
    return sqrt(r) / sqrt(floored(mean_to(r, c), floor)), sqrt(c)


def normalized(g: Any, g2: Any, s: Any, weight: Any, floor: Any) -> tuple[Any, dict[str, Any]]:
    """The gradient over the root, at least the floor, of its average square as the slots hold it, and the
    slots. As in t5x rows and columns are inverted, so that no element of a matrix is divided. The gradient
    comes first: the inverses of a row and a column that are zero may multiply to infinity."""
    if "v" in s:
        v = lerp(s.v, g2, weight)
        return g / floored(sqrt(v), floor), {"v": v}
    r, c = lerp(s.r, mean_to(g2, s.r), weight), lerp(s.c, mean_to(g2, s.c), weight)
    row, column = (1.0 / root for root in roots(r, c, floor))
    u = g * row * column if floor is None else g * atmost(row * column, 1.0 / floor)
    return u, {"r": r, "c": c}


@rule(
    slots={
        "r": _means(0),
        "c": _means(1),
        "v": Slot(when=lambda shape, h: factored_dims(shape, h) is None, nonnegative=True, of="square"),
        "m": Slot(average="beta1", of="update").if_set("beta1"),
    },
    scope=Scope.TENSOR,
    decay="inside",
    apply="displace",
    paper="arXiv:1804.04235",
    hyper={
        "lr": rate(1e-2),
        "beta2_decay": Hyper(-0.8, low=-1.0, high=0.0),
        # The second is the least size of a step: with 0 a tensor that starts from zero stays there.
        "eps": Hyper((1e-30, 1e-3), low=0.0, open_low=True),
        "d": Hyper(1.0, low=0.0, infinite=True),
        "weight_decay": WEIGHT_DECAY,
        "beta1": Hyper(0.0, **UNIT),
        "scale_parameter": Hyper(True, live=False, choices=(False, True)),
        "relative_step": FLAG,
        "warmup_init": FLAG,
    },
    dialects={
        "t5x": {},
        "hf": {},
        "torch": {"eps": (torch.finfo(torch.float32).eps, 1e-3)},
        "big_vision": {"scale_parameter": False, "d": float("inf"), "beta1": 0.9},
    },
)
def adafactor(p, g, s, h):
    like = DIALECTS[h.dialect]
    inside, floor = (h.eps1, None) if like.inside else (0.0, h.eps1)
    weight = atleast(h.t**h.beta2_decay, 1 - like.cap)
    u, new = normalized(g, g * g + inside, s, weight, floor)
    shrink = 1.0 / atleast(rms(u) / h.d, 1.0)
    lr = atmost(h.t**-0.5, 1e-6 * h.t if h.warmup_init else 1e-2) if h.relative_step else h.lr
    held = atmost(lr, h.t**-0.5) if like.inverse_sqrt else lr
    step = held * atleast(rms(p), h.eps2) if h.scale_parameter else held
    u = u * (shrink if like.late else shrink * step)
    if "m" in s:
        u = new["m"] = lerp(s.m, u, 1 - h.beta1)
    u = u * step if like.late else u
    return u + {None: 1.0, "lr": lr, "step": step}[like.decay_rate] * h.weight_decay * p, new
