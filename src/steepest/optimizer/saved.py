"""An optimizer's state as named tensors and plain facts, for files that hold no Python objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from steepest.contract import Shard, SteepestError
from steepest.optimizer.state import VERSION, Held, compare, slots_of
from steepest.optimizer.stateful import Stateful

COUNTERS = ("committed", "skipped", "consecutive_skips", "seed")
OPTIONS = ("max_grad_norm", "max_grad_value", "clip_eps", "check_finite", "skip_limit")
"""What an optimizer counts, and what it is told beside its groups."""


def export_state(optimizer: Stateful) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """See `Optimizer.export_state`."""
    holdings = optimizer.holdings()
    tensors = {
        f"{held.name}/{part}": tensor.detach()
        for held in holdings
        for part, tensor in slots_of(held.state or {}).items()
    }
    steps = [held.state["step"] if held.state else -1 for held in holdings]
    steps = [max(told) for told in zip(*optimizer.placement.tell(steps), strict=True)]
    facts = {
        "version": VERSION,
        **{name: getattr(optimizer, name) for name in COUNTERS},
        "named": _is_named(optimizer),
        "parameters": {h.name: _facts(h, None if s < 0 else s) for h, s in zip(holdings, steps, strict=True)},
        **_settings(optimizer, holdings),
    }
    return tensors, facts


def import_state(optimizer: Stateful, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> list[str]:
    """See `Optimizer.import_state`."""
    if not {"version", "parameters", "groups", *COUNTERS} <= set(facts):
        raise SteepestError("these facts are not from an optimizer's export_state(); take them from there.")
    if (version := facts["version"]) > VERSION:
        raise SteepestError(f"this state has format {version}, newer than {VERSION}; update steepest.")
    holdings = optimizer.holdings()
    stored: dict[str, dict[str, Any]] = {name: {} for name in facts["parameters"]}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        if name not in stored:
            raise SteepestError(f"saved tensor {key!r} belongs to no saved parameter; the state is damaged.")
        stored[name][part] = tensor
    fresh: dict[Tensor, dict[str, Any]] = {}
    pairs: dict[tuple[int, int], None] = {}
    for held, name in zip(holdings, _match(optimizer, holdings, facts), strict=True):
        theirs = facts["parameters"][name]
        _compare(held, theirs)
        pairs[held.index, theirs["group"]] = None
        if theirs["step"] is None and not stored[name]:
            continue
        if not optimizer.placement.owns(held.place):
            continue
        here = held.part(stored[name])
        compare(held.name, {"step": theirs["step"], **here}, held.state or held.start())
        moved = {part: t.detach().to(held.local.device, copy=True) for part, t in here.items()}
        fresh[held.p] = {"step": theirs["step"], **moved}
    optimizer.adopt(fresh, **{name: facts[name] for name in COUNTERS})
    return _differences(facts, _settings(optimizer, holdings), pairs)


def _is_named(optimizer: Stateful) -> bool:
    return all("param_names" in group for group in optimizer.param_groups)


def shards(optimizer: Stateful) -> dict[str, Shard]:
    """See `Optimizer.shards`."""
    return {
        f"{held.name}/{name}": shard
        for held in optimizer.holdings()
        for name, shard in held.cut().items()
        if held.state
    }


def _facts(held: Held, step: int | None = None) -> dict[str, Any]:
    return {
        "place": held.place,
        "group": held.index,
        "rule": held.rule.name,
        "shape": list(held.p.shape),
        "dtype": _word(held.p.dtype),
        "codecs": {slot: codec.name for slot, codec in held.codecs.items()},
        "step": step,
    }


def _settings(optimizer: Stateful, holdings: Sequence[Held]) -> dict[str, Any]:
    """Hyperparameters and options: what may be edited between saving and loading."""
    groups: list[dict[str, Any]] = [{} for _ in optimizer.param_groups]
    for held in holdings:
        names = [*held.rule.hyper, "maximize", "state", "param"]
        groups[held.index] = groups[held.index] or {name: _plain(held.group[name]) for name in names}
    return {"groups": groups, "options": {name: _plain(getattr(optimizer, name)) for name in OPTIONS}}


def _plain(value: Any) -> Any:
    """A hyperparameter as JSON can hold it; what is not finite becomes a word."""
    if isinstance(value, Mapping):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(x) for x in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return float(value) if math.isfinite(value) else str(float(value))


def _match(optimizer: Stateful, holdings: Sequence[Held], facts: Mapping[str, Any]) -> list[str]:
    """The name that each own parameter was saved under: its own if both sides have names, else by place."""
    theirs = sorted(facts["parameters"], key=lambda name: int(facts["parameters"][name]["place"]))
    if len(theirs) != len(holdings):
        raise SteepestError(
            f"the saved state has {len(theirs)} parameters, this optimizer has {len(holdings)}."
        )
    if not (facts["named"] and _is_named(optimizer)):
        return theirs
    ours = [held.name for held in holdings]
    if missing := [name for name in ours if name not in facts["parameters"]]:
        extra = next(name for name in theirs if name not in ours)
        raise SteepestError(f"the saved state has no parameter {missing[0]!r}; it has {extra!r} instead.")
    return ours


def _compare(held: Held, theirs: Mapping[str, Any]) -> None:
    """Raise, naming both sides, where a parameter was saved as another kind."""
    for what, own in _facts(held).items():
        if what in ("rule", "shape", "dtype") and theirs[what] != own:
            raise SteepestError(f"{held.name}: saved with {what} {theirs[what]}, here it is {own}.")
    for slot, codec in held.codecs.items():
        saved = theirs["codecs"].get(slot, codec.name)
        if saved != codec.name:
            kept = "the parameter" if slot == "p" else slot
            raise SteepestError(
                f"{held.name}: saved with {kept} as {saved}, this optimizer keeps {codec.name}; build it "
                f"with {'param' if slot == 'p' else 'state'} as it was."
            )


def _differences(
    facts: Mapping[str, Any], own: Mapping[str, Any], pairs: Mapping[tuple[int, int], None]
) -> list[str]:
    """What was edited since, "group 0: lr 0.1 -> 0.2", of all pairs of own and saved groups that share a
    parameter."""
    compared = [(f"group {g}: ", facts["groups"][h], own["groups"][g]) for g, h in pairs]
    compared.append(("", facts["options"], own["options"]))
    return [
        f"{where}{name} {theirs.get(name)} -> {value}"
        for where, theirs, ours in compared
        for name, value in ours.items()
        if theirs.get(name) != value
    ]


def _word(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
