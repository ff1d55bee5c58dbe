"""The three ways down, and the one line that every engine runs: condition, rule, apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from steepest.contract import Live, Rule, Slots
from steepest.ops import add_scaled, clip, where


def descend(p: Any, u: Any, h: Any) -> Any:
    """p - lr u."""
    return add_scaled(p, u, -h.lr)


def decoupled(p: Any, u: Any, h: Any) -> Any:
    """p (1 - lr wd) - lr u: weight decay beside the gradient, not in it (arXiv:1711.05101)."""
    return add_scaled(p * (1 - h.lr * h.weight_decay), u, -h.lr)


def displace(p: Any, u: Any, h: Any) -> Any:
    """p - u, for a rule whose direction already holds the learning rate (Adafactor)."""
    return p - u


APPLY: Mapping[str, Callable[[Any, Any, Any], Any]] = {
    "descend": descend,
    "decoupled": decoupled,
    "displace": displace,
}


def condition(rule: Rule, p: Any, g: Any, h: Any) -> Any:
    """The gradient as the rule sees it: unscaled, clipped, and with weight decay inside if it is L2.

    `h.scale` undoes the loss scale, clips by global norm and turns maximizing into minimizing in one
    multiplication. `h.scale`, `h.clip_value` and `h.l2` are None where there is nothing to do.
    """
    if h.scale is not None:
        g = g * h.scale
    if h.clip_value is not None:
        g = clip(g, -h.clip_value, h.clip_value)
    if rule.decay == "l2" and h.l2 is not None:
        g = add_scaled(g, p, h.l2)
    return g


def observe(rule: Rule, p: Any, new: Any, g: Any, kept: Any, h: Any) -> dict[str, Any]:
    """What telemetry adds up over a tensor: the squares of the gradient (scaled and clipped, before L2
    decay), of the update and of the new parameter, and 1 for an update lost to rounding.

    kept: where the stored form of the parameter stayed as it was; None where storing it loses nothing.
    """
    seen = condition(rule, p, g, Live(**{**vars(h), "l2": None}))
    u = new - p
    squares = {"g": seen * seen, "u": u * u, "p": new * new}
    return squares if kept is None else {**squares, "lost": where(kept & (u != 0.0), 1.0, 0.0)}


def advance(rule: Rule, p: Any, g: Any, s: Slots, h: Any) -> tuple[Any, dict[str, Any]]:
    """One step of one parameter: new parameter, new slots. Nothing is mutated."""
    u, slots = rule(p, condition(rule, p, g, h), s, h)
    return APPLY[rule.apply](p, u, h), slots
