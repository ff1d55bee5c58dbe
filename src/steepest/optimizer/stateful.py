"""Groups and their state, through an optimizer's life: adding, checking, following schedules, saving."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor

from steepest.contract import Codec, Rule, Schedule, SteepestError, compute_dtype, expand
from steepest.optimizer import interchange
from steepest.optimizer.groups import KEYS, Place, check, fill, get, put
from steepest.optimizer.routes import routing_digest
from steepest.optimizer.state import (
    VERSION,
    Held,
    allocate,
    codecs_for,
    compare,
    compare_codecs,
    describe_codecs,
    encode_slot,
    match,
    slot_names,
    slots_of,
)
from steepest.optimizer.step import Layout, facts_of
from steepest.placements import Placement, find_placement
from steepest.rules import find_rule


@dataclass(slots=True)
class Beside:
    """What is kept of a group beside what torch shows of it.

    schedules: its scheduled hyperparameters.  places: its parameters as they were last seen.
    codecs: its choice of codecs, and the hyperparameters under which it was found possible.
    """

    schedules: dict[Place, Schedule]
    codecs: tuple[Any, ...]
    places: list[Tensor] = field(default_factory=list)


class Stateful(torch.optim.Optimizer):
    """What `Optimizer` is beside its step. The only subclass of `torch.optim.Optimizer`, and the only place
    that knows parameters.

    given: hyperparameters as they were given; unlike torch's defaults, they still hold the schedules.
    rule:  what groups have that name none.
    """

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        given: Mapping[str, Any] | None = None,
        rule: Rule | None = None,
        seed: int = 0,
        placement: Placement | None = None,
    ) -> None:
        self.seed, self.committed, self.skipped, self.consecutive_skips = seed, 0, 0, 0
        self.placement, self._placed = placement or Placement(), placement is not None
        self._bound: list[Tensor] | None = None
        self._given = dict(given or {})
        self._rules = {rule.name: rule} if rule else {}
        self._beside: list[Beside] = []
        self._codecs: dict[Any, dict[str, Codec]] = {}
        self._layout: Layout | None = None
        super().__init__(params, defaults)
        self._bound = []
        self._reconcile()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; every key is checked against its rule, and its state is allocated now."""
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise SteepestError(f"a parameter group must be a dict with 'params', got {param_group!r}.")
        where = f"group {len(self.param_groups)}"
        rule = self._find(param_group.get("rule", self.defaults.get("rule")), where)
        # Another rule, or another dialect, brings its own defaults.
        shared = rule.name == self.defaults.get("rule") and "dialect" not in param_group
        given = {**(self.defaults | self._given if shared else {}), **param_group}
        hyper, schedules = fill(rule, given, where)
        super().add_param_group({**param_group, **hyper, "rule": rule.name})
        group = self.param_groups[-1]
        for key in set(self.defaults) - set(rule.hyper) - KEYS:
            group.pop(key, None)
        try:
            for p in filter(_is_trained, group["params"]):
                codecs_for(rule, p, group, rule.slots_for(p.shape, group), where)
        except SteepestError:
            self.param_groups.pop()
            raise
        self._beside.append(Beside(schedules, _choice(rule, group)))
        self._follow_schedules()
        if self._bound is not None:  # not while the first groups come in: owners are found over all of them
            self._reconcile()

    def _find(self, rule: str | Rule | None, where: str) -> Rule:
        if rule is None:
            raise SteepestError(f"{where} names no rule; add 'rule': 'adamw' (or another) to it.")
        if isinstance(rule, str) and rule in self._rules:
            return self._rules[rule]
        found = find_rule(rule)
        return self._rules.setdefault(found.name, found)

    def _codecs_of(self, g: int, p: Tensor) -> tuple[Rule, dict[str, Codec]]:
        """A parameter's rule, and the codecs of the slots it has or is going to have."""
        group = self.param_groups[g]
        rule = self._rules[group["rule"]]
        held = slot_names(rule, self.state[p]) if p in self.state else ()
        slots = dict.fromkeys((*held, *rule.slots_for(p.shape, group)))
        names = tuple(name for name in rule.slots if name in slots)
        key = g, names, p.shape, p.dtype
        if key not in self._codecs:
            self._codecs[key] = codecs_for(rule, p, group, names, f"group {g}")
        return rule, self._codecs[key]

    def _reconcile(self) -> None:
        """Give every trainable parameter its state, also one that was unfrozen or swapped for another, and
        the slots it needs now that a hyperparameter is not zero any more (momentum under OneCycleLR).

        accelerate replaces the tensors of `param_groups` after construction (FSDP2); the state moves
        along by position when the new tensor has the old one's shape.
        """
        self._bind()
        place = -1
        for g, (group, beside) in enumerate(zip(self.param_groups, self._beside, strict=True)):
            for i, p in enumerate(group["params"]):
                place += 1
                if not self.placement.owns(place):
                    continue
                old = beside.places[i] if i < len(beside.places) else None
                if old is not None and old is not p and old in self.state and p not in self.state:
                    moved = self.state.pop(old)
                    if old.shape == p.shape and old.device == p.device and self.placement.shard(p) is None:
                        self.state[p] = moved
                if p in self.state or _is_trained(p):
                    rule, codecs = self._codecs_of(g, p)
                    if p not in self.state or set(codecs) - {"p", *slot_names(rule, self.state[p])}:
                        fresh = allocate(rule, self.placement.local(p), group, codecs, p.shape)
                        self.state[p] = fresh | self.state.get(p, {})
            beside.places[:] = group["params"]

    def _bind(self) -> None:
        """Tell the placement of the parameters there are, if they are not those it knows."""
        owned = [(group, p) for group in self.param_groups for p in group["params"]]
        params = [p for _, p in owned]
        if self._bound is None or len(self._bound) != len(params) or not all(map(is_, self._bound, params)):
            if not self._placed:
                self.placement = find_placement(params)
            self.placement.bind(params, [self._rules[group["rule"]].scope for group, _ in owned])
            self._bound = params

    def _lay_out(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Layout:
        """What moves together, found anew only where something changed since the last step."""
        needed = [
            [*self._rules[group["rule"]].slots_for(group["params"][0].shape, group)]
            for group in self.param_groups
            if group["params"]
        ]

        def facts() -> list[Any]:
            here = list(map(self.placement.local, params)) if self.placement.moves else params
            return [needed, *facts_of(params, here, grads, self.state)]

        if self._layout is None or not self._layout.holds(facts()):
            self._reconcile()
            self._layout = Layout(self.param_groups, self.state, self._codecs_of, facts(), self.placement)
        return self._layout

    def _names(self) -> list[str]:
        """A name for every parameter; one that two have is told apart by their places."""
        places = [(g, i) for g, group in enumerate(self.param_groups) for i, _ in enumerate(group["params"])]
        times = Counter(names := [self.name_of(g, i) for g, i in places])
        return [
            name if times[name] == 1 else f"{name} (parameter {i} of group {g})"
            for name, (g, i) in zip(names, places, strict=True)
        ]

    def name_of(self, group: int, index: int) -> str:
        """A parameter's name, or its place where it was given without one."""
        names = self.param_groups[group].get("param_names")
        return names[index] if names else f"parameter {index} of group {group}"

    def holdings(self) -> list[Held]:
        """Every parameter with what is held of it, in order."""
        self._reconcile()
        owned = [(g, group, p) for g, group in enumerate(self.param_groups) for p in group["params"]]
        return [
            Held(
                *(name, place, g, group, p, *self._codecs_of(g, p), self.state.get(p)),
                self.placement.local(p),
                self.placement.shard(p),
            )
            for place, (name, (g, group, p)) in enumerate(zip(self._names(), owned, strict=True))
        ]

    def adopt(self, states: Mapping[Tensor, dict[str, Any]], **counters: int) -> None:
        """Put these parameters' states, and counters of this object, in force."""
        self._layout = None
        self.state.update(states)
        for name, value in counters.items():
            setattr(self, name, value)
        self._follow_schedules()

    def routing(self) -> list[list[Any]]:
        """The routing table: [name, shape, rule, weight decay, codecs] for every parameter, in order.
        Codecs are in words, "m int8, v fp8, p split24"; a frozen parameter has none."""
        return [
            [
                self.name_of(g, i),
                list(p.shape),
                group["rule"],
                float(group.get("weight_decay", 0.0)),
                describe_codecs(self._codecs_of(g, p)[1]) if p in self.state or _is_trained(p) else "",
            ]
            for g, group in enumerate(self.param_groups)
            for i, p in enumerate(group["params"])
        ]

    def routing_digest(self) -> str:
        """A short hash of the routing table."""
        return routing_digest(self.routing())

    def state_bytes(self) -> int:
        """Bytes of all slots as allocated, and of what parameters keep beside themselves."""
        return sum(
            t.numel() * t.element_size() for state in self.state.values() for t in slots_of(state).values()
        )

    # ------------------------------------------------------------------ schedules

    def _follow_schedules(self) -> None:
        for group, beside in zip(self.param_groups, self._beside, strict=True):
            for place, schedule in beside.schedules.items():
                put(group, place, schedule(self.committed))

    def _check_groups(self) -> None:
        for i, (group, beside) in enumerate(zip(self.param_groups, self._beside, strict=True)):
            rule = self._rules[group["rule"]]
            check(rule, _readable(rule, group), f"group {i}")
            for place, schedule in beside.schedules.items():
                if abs(get(group, place) - schedule(self.committed)) > 1e-6 * abs(schedule(self.committed)):
                    raise SteepestError(
                        f"group {i}: {place[0]} follows the schedule it was built with, but was also set to "
                        f"{get(group, place):g} from outside; use one of the two."
                    )
            if (choice := _choice(rule, group)) != beside.codecs:
                if choice[:2] != beside.codecs[:2]:
                    raise SteepestError(
                        f"group {i}: state and param are chosen when a group is made, and were changed to "
                        f"{choice[0]!r} and {choice[1]!r} since; build a new optimizer."
                    )
                for p in {p.shape: p for p in group["params"] if p in self.state}.values():
                    codecs_for(rule, p, group, slot_names(rule, self.state[p]), f"group {i}")
                beside.codecs = choice

    # ------------------------------------------------------------------ saving and loading

    def state_dict(self) -> dict[str, Any]:
        """torch's shape, and in each group what `load_state_dict` checks: version, counters, shapes.

        Of DTensors every rank gives DTensors of its part; with owners (ZeRO) every rank asks, and gets all.
        It stands in the groups because torch.distributed.checkpoint keeps `state` and `param_groups` only.
        """
        self._reconcile()
        out = super().state_dict()
        if self.placement.moves:
            held_here = [held for held in self.holdings() if held.state]
            out["state"] = self.placement.gather({h.place: h.wrapped(self.placement) for h in held_here})
        for group, saved in zip(self.param_groups, out["param_groups"], strict=True):
            params = group["params"]
            saved["steepest"] = {
                "version": VERSION,
                "committed": self.committed,
                "skipped": self.skipped,
                "shapes": [list(p.shape) for p in params],
                "frozen": [i for i, at in enumerate(saved["params"]) if at not in out["state"]],
                "seed": self.seed,
            }
        return out

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` saved. Names, shapes, types, slots and rules are all checked first;
        a mismatch raises and leaves the optimizer as it was. Types are never cast."""
        for pre in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre(self, state_dict) or state_dict
        self._reconcile()
        if not all("steepest" in group for group in state_dict["param_groups"]):
            raise SteepestError(
                "this state was not saved by steepest; load torch.optim states with import_torch_state()."
            )
        own = state_dict["param_groups"][0]["steepest"]
        if own["version"] > VERSION:
            raise SteepestError(
                f"this state has format {own['version']}, newer than {VERSION}; update steepest."
            )
        fresh: dict[Tensor, dict[str, Any]] = {}
        known = {held.p: held for held in self.holdings()}
        for g, i, theirs in match(state_dict, self.param_groups, self.name_of):
            held = known[self.param_groups[g]["params"][i]]
            if self.placement.owns(held.place):
                fresh[held.p] = held.unwrapped(self.placement, theirs)
                self._compare(held, fresh[held.p], state_dict["param_groups"][g])
        for g, (group, saved) in enumerate(zip(self.param_groups, state_dict["param_groups"], strict=True)):
            check(self._rules[group["rule"]], {**group, **saved}, f"saved group {g}")
        for p, theirs in fresh.items():
            self.state[p] = {
                k: v.detach().to(known[p].local.device, copy=True) if isinstance(v, Tensor) else v
                for k, v in theirs.items()
            }
        self._take_groups(state_dict["param_groups"])
        self.committed, self.skipped, self.consecutive_skips = own["committed"], own["skipped"], 0
        self.seed = own.get("seed", self.seed)
        self._follow_schedules()
        for post in self._optimizer_load_state_dict_post_hooks.values():
            post(self)

    def _compare(self, held: Held, theirs: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
        """Raise unless a saved parameter state fits; `saved` is its group."""
        chosen = {"state": saved.get("state"), "param": saved.get("param")}
        names = [name for name in held.codecs if name != "p"]
        where, group = f"saved group {held.index}", {**held.group, **chosen}
        compare_codecs(held.name, codecs_for(held.rule, held.p, group, names, where), held.codecs, chosen)
        compare(held.name, theirs, held.state or held.start())

    def _take_groups(self, saved: list[dict[str, Any]]) -> None:
        self._layout = None
        self._codecs.clear()
        for group, theirs, beside in zip(self.param_groups, saved, self._beside, strict=True):
            for key, value in theirs.items():
                if key not in ("params", "param_names", "steepest"):
                    group[key] = copy.deepcopy(value)  # a tensor lr is not shared with what was saved
            beside.codecs = _choice(self._rules[group["rule"]], group)

    def import_torch_state(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of the same algorithm in torch.optim (or lion-pytorch, apex, timm):
        moments and step counts. Hyperparameters stay this optimizer's own."""
        if any("steepest" in group for group in state_dict["param_groups"]):
            raise SteepestError("this state was saved by steepest; load it with load_state_dict().")
        self._reconcile()
        fresh: dict[Tensor, dict[str, Any]] = {}
        steps, known = [0], {held.p: held for held in self.holdings()}
        for g, i, theirs in match(state_dict, self.param_groups, self.name_of):
            held = known[self.param_groups[g]["params"][i]]
            shapes = held.rule.slots_for(held.p.shape, held.group)
            taken = interchange.from_torch(held.rule.name, held.name, theirs, shapes) or {}
            steps.append(taken.pop("step", held.state["step"] if held.state else 0))
            if not self.placement.owns(held.place):
                continue
            fresh[held.p] = (held.state or held.start()) | ({"step": steps[-1]} if taken else {})
            for slot, value in taken.items():
                here = held.slice(slot, self.placement.unwrap(value, value.shape))
                x = here.to(device=held.local.device, dtype=compute_dtype(held.p), copy=True)
                fresh[held.p] |= encode_slot(slot, held.codecs[slot], x)
        self.adopt(fresh, committed=max(steps))

    def export_torch_state(self) -> dict[str, Any]:
        """The state as torch.optim's own optimizer of this algorithm loads it."""
        self._reconcile()
        packed = super().state_dict()
        state = {}
        for held in self.holdings():
            if held.state:
                decoded = held.decoded(self.placement)
                state[held.place] = interchange.to_torch(held.rule.name, held.name, decoded, held.p.dtype)
        state = self.placement.gather(state)
        groups = [interchange.torch_group(group) for group in packed["param_groups"]]
        return {"state": state, "param_groups": groups}


def _readable(rule: Rule, group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's hyperparameters, with defaults for numbers that lie on another device: to read those would
    be to wait for it."""

    def there(value: Any) -> bool:
        if isinstance(value, (int, float)):
            return False
        parts = value if isinstance(value, (tuple, list)) else (value,)
        return any(isinstance(part, Tensor) and part.device.type != "cpu" for part in parts)

    return {k: of.default if there(group[k]) else group[k] for k, of in rule.hyper.items()}


def _is_trained(p: Tensor) -> bool:
    return p.requires_grad or p.grad is not None


def _choice(rule: Rule, group: Mapping[str, Any]) -> tuple[Any, ...]:
    """A group's codecs, and the decays of averages where rounding to nearest depends on them."""
    choice = copy.copy(group["state"]), group["param"]
    if "_rn" not in str(group["state"]):
        return choice
    h = vars(expand(_readable(rule, group), 1))
    return *choice, *(h[slot.average] for slot in rule.slots.values() if slot.average)
