"""Drop-in constructors: torch's names for arguments, the rule's own defaults.

Each takes what torch.optim takes, and beside it `Options`. The numbers here are the published defaults;
`docs/optimizers/` gives their source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from steepest.contract import SteepestError, unknown
from steepest.optimizer.optimizer import Optimizer
from steepest.placements import Placement
from steepest.rules import find_rule

Betas = tuple[Any, Any]


class Options(TypedDict, total=False):
    """What every constructor takes beside its hyperparameters; see `Optimizer`.

    foreach=True and foreach=False choose the foreach and the reference engine, fused=True the fused one.
    capturable and differentiable are accepted when False.
    """

    max_grad_norm: float | None
    max_grad_value: float | None
    maximize: bool
    skip_limit: int
    check_finite: bool
    engine: str | None
    state: str | Mapping[str, str] | None
    param: str | None
    seed: int
    telemetry: bool
    placement: Placement | None
    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    own = dict(given)
    for key in ("capturable", "differentiable"):
        if own.pop(key, False):
            raise SteepestError(f"{key}=True is not supported; leave it out.")
    foreach, fused = own.pop("foreach", None), own.pop("fused", None)
    if fused:
        own.setdefault("engine", "fused")
    elif foreach is not None:
        own.setdefault("engine", "foreach" if foreach else "reference")
    return own


class SGD(Optimizer):
    """Gradient descent, with momentum if it is not zero. As `torch.optim.SGD`."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        momentum: Any = 0.0,
        dampening: Any = 0.0,
        weight_decay: Any = 0.0,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "sgd",
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            **_options(options),
        )


class RMSprop(Optimizer):
    """As `torch.optim.RMSprop`."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-2,
        alpha: Any = 0.99,
        eps: Any = 1e-8,
        weight_decay: Any = 0.0,
        momentum: Any = 0.0,
        centered: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "rmsprop",
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            **_options(options),
        )


class Adagrad(Optimizer):
    """As `torch.optim.Adagrad`."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-2,
        lr_decay: Any = 0.0,
        weight_decay: Any = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: Any = 1e-10,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "adagrad",
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            **_options(options),
        )


class Adam(Optimizer):
    """As `torch.optim.Adam`: weight decay is added to the gradient."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = 0.0,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        own = _options(options)
        super().__init__(
            params, "adam", lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, **own
        )


class AdamW(Optimizer):
    """As `torch.optim.AdamW`: weight decay acts on the parameter."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = 1e-2,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        own = _options(options)
        super().__init__(
            params, "adamw", lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, **own
        )


class Adafactor(Optimizer):
    """Adafactor with factored second moments; `dialect` is "t5x" (default), "hf", "torch" or
    "big_vision". Arguments left at None take the dialect's default."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-2,
        beta2_decay: Any = -0.8,
        eps: Betas | None = None,
        d: float | None = None,
        weight_decay: Any = 0.0,
        *,
        dialect: str = "t5x",
        beta1: Any = None,
        scale_parameter: bool | None = None,
        relative_step: bool = False,
        warmup_init: bool = False,
        **options: Unpack[Options],
    ) -> None:
        if eps is not None and eps[0] is None:  # torch's own default
            eps = (find_rule("adafactor").defaults(dialect)["eps"][0], eps[1])
        chosen = {"eps": eps, "d": d, "beta1": beta1, "scale_parameter": scale_parameter}
        super().__init__(
            params,
            "adafactor",
            dialect=dialect,
            lr=lr,
            beta2_decay=beta2_decay,
            weight_decay=weight_decay,
            relative_step=relative_step,
            warmup_init=warmup_init,
            **{name: value for name, value in chosen.items() if value is not None},
            **_options(options),
        )


class LAMB(Optimizer):
    """AdamW's direction times a trust ratio a tensor; `dialect` is "nv" (default; with the global
    clipping to `max_grad_norm` that is part of it), "paper" or "deepspeed". Arguments left at None
    take the dialect's default."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: Any = None,
        *,
        dialect: str = "nv",
        always_adapt: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        own = _options(options)
        if dialect == "nv":
            own.setdefault("max_grad_norm", 1.0)
        chosen: dict[str, Any] = {"eps": eps, "weight_decay": weight_decay, "always_adapt": always_adapt}
        super().__init__(
            params,
            "lamb",
            dialect=dialect,
            lr=lr,
            betas=betas,
            clip_eps=0.0,  # apex divides by the norm itself
            **{name: value for name, value in chosen.items() if value is not None},
            **own,
        )


class LARS(Optimizer):
    """Momentum on gradients rescaled tensor by tensor to the parameter's norm."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1.0,
        momentum: Any = 0.9,
        dampening: Any = 0.0,
        weight_decay: Any = 0.0,
        nesterov: bool = False,
        trust_coefficient: Any = 1e-3,
        eps: Any = 1e-8,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "lars",
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            trust_coefficient=trust_coefficient,
            eps=eps,
            **_options(options),
        )


class Lion(Optimizer):
    """The sign of an average of gradient and momentum. Wants 1/10 to 1/3 of AdamW's lr and more decay."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-4,
        betas: Betas = (0.9, 0.99),
        weight_decay: Any = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, "lion", lr=lr, betas=betas, weight_decay=weight_decay, **_options(options))


class Signum(Optimizer):
    """The sign of the momentum (signSGD where momentum is 0)."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-4,
        momentum: Any = 0.9,
        weight_decay: Any = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params, "signum", lr=lr, momentum=momentum, weight_decay=weight_decay, **_options(options)
        )


CONSTRUCTORS: Mapping[str, type[Optimizer]] = {
    cls.__name__: cls for cls in (SGD, RMSprop, Adagrad, Adam, AdamW, Adafactor, LAMB, LARS, Lion, Signum)
}


def constructor(name: str) -> type[Optimizer]:
    """The constructor of this name, "AdamW"."""
    if name not in CONSTRUCTORS:
        raise unknown("constructor", name, CONSTRUCTORS)
    return CONSTRUCTORS[name]
