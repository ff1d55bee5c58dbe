"""`Optimizer`: the only subclass of `torch.optim.Optimizer`, and the only place that knows parameters."""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steepest.contract import Live, Rule, Schedule, SteepestError, expand, unknown
from steepest.engines import find_engine
from steepest.optimizer import interchange
from steepest.optimizer.groups import Place, check, fill, get, put
from steepest.optimizer.routes import Route, route_groups, routing_digest
from steepest.optimizer.state import VERSION, allocate, compare, order_of, slots_of
from steepest.optimizer.verdict import CLIP_EPS, Verdict, examine
from steepest.rules import find_rule

log = logging.getLogger("steepest")

OPTIONS = ("max_grad_norm", "max_grad_value", "maximize", "skip_limit", "engine")
"""What every rule takes beside its hyperparameters, for the hint at a misspelt name."""


class Optimizer(torch.optim.Optimizer):
    """Any rule, or several at once, over any parameters.

    Args:
        params: a model, its `parameters()` or `named_parameters()`, or a list of parameter groups.
        rule: the name of a rule, or a `Rule`; a group may name its own under "rule".
        routes: instead of `rule`, an ordered list of `Route`; `params` is then a model or named.
        max_grad_norm: clip gradients by their global norm (after undoing a GradScaler's scale).
        max_grad_value: clip every gradient element to [-value, value] (after the norm).
        maximize: ascend instead of descend.
        skip_limit: raise after this many steps in a row were skipped for non-finite gradients.
        engine: "auto", "foreach" or "reference".
        hyper: the rule's hyperparameters, torch's names; a live one may be a schedule, which is a
            function of the number of committed steps.

    A step is a transaction: with a non-finite gradient not one bit of parameters, state or schedule
    moves, the parameters at fault are named in `last_verdict`, and `skipped` counts it.
    Slots are float32 (float64 for float64 parameters) and exist from construction.
    """

    def __init__(
        self,
        params: Any,
        rule: str | Rule | None = None,
        *,
        routes: Sequence[Route] | None = None,
        max_grad_norm: float | None = None,
        max_grad_value: float | None = None,
        clip_eps: float = CLIP_EPS,
        maximize: bool = False,
        skip_limit: int = 25,
        engine: str | None = None,
        **hyper: Any,
    ) -> None:
        if (rule is None) == (routes is None):
            raise SteepestError("give an Optimizer either rule=... or routes=[...].")
        for name, limit in (("max_grad_norm", max_grad_norm), ("max_grad_value", max_grad_value)):
            if limit is not None and not (isinstance(limit, (int, float)) and 0 < limit < float("inf")):
                raise SteepestError(f"{name}={limit!r} must be a positive number, or None for no clipping.")
        if not isinstance(skip_limit, int) or skip_limit < 1:
            raise SteepestError(f"skip_limit={skip_limit!r} must be a whole number, at least 1.")
        self.max_grad_norm, self.max_grad_value, self.clip_eps = max_grad_norm, max_grad_value, clip_eps
        self.skip_limit, self.committed, self.skipped, self.consecutive_skips = skip_limit, 0, 0, 0
        self.last_verdict: Verdict | None = None
        self.engine, self._run = find_engine(engine)
        self._step_supports_amp_scaling = True
        self._rules: dict[str, Rule] = {}
        self._schedules: list[dict[Place, Schedule]] = []
        self._places: list[list[Tensor]] = []
        self._given: dict[str, Any] = {}
        named = list(params.named_parameters()) if isinstance(params, nn.Module) else params
        if routes is not None:
            if hyper:
                raise SteepestError(f"{next(iter(hyper))!r} belongs inside a Route when routes are given.")
            named = list(named)
            if not named or not isinstance(named[0], tuple):
                raise SteepestError("routes go by name: give the model, or model.named_parameters().")
            super().__init__(route_groups(named, routes), {"maximize": maximize})
            return
        found = find_rule(rule)  # type: ignore[arg-type]
        self._rules[found.name] = found
        for key in hyper:
            if key not in found.hyper:
                raise unknown(f"option of {found.name}", key, [*found.hyper, *OPTIONS])
        filled, _ = fill(found, hyper, found.name)
        self._given = hyper  # unlike torch's defaults, this still holds the schedules
        super().__init__(named, {"rule": found.name, "maximize": maximize, **filled})

    # ------------------------------------------------------------------ groups

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
        for key in set(self.defaults) - set(rule.hyper) - {"rule", "maximize"}:
            group.pop(key, None)
        self._schedules.append(schedules)
        self._places.append([])
        self._follow_schedules()
        self._reconcile()

    def _find(self, rule: str | Rule | None, where: str) -> Rule:
        if rule is None:
            raise SteepestError(f"{where} names no rule; add 'rule': 'adamw' (or another) to it.")
        if isinstance(rule, str) and rule in self._rules:
            return self._rules[rule]
        found = find_rule(rule)
        return self._rules.setdefault(found.name, found)

    def _reconcile(self) -> None:
        """Give every trainable parameter its state, also one that was unfrozen or swapped for another.

        accelerate replaces the tensors of `param_groups` after construction (FSDP2); the state moves
        along by position when the new tensor has the old one's shape.
        """
        for group, places in zip(self.param_groups, self._places, strict=True):
            rule = self._rules[group["rule"]]
            held = next((p for p in group["params"] if p in self.state), None)
            if held is not None and rule.slots_for(held.shape, group).keys() - self.state[held].keys():
                # A hyperparameter that was zero no longer is (momentum under OneCycleLR): the slot it needs.
                for p in filter(self.state.__contains__, group["params"]):
                    self.state[p] = allocate(rule, p, group) | self.state[p]
            for i, p in enumerate(group["params"]):
                old = places[i] if i < len(places) else None
                if old is not None and old is not p and old in self.state and p not in self.state:
                    moved = self.state.pop(old)
                    if old.shape == p.shape and old.device == p.device:
                        self.state[p] = moved
                if p not in self.state and (p.requires_grad or p.grad is not None):
                    self.state[p] = allocate(rule, p, group)
            places[:] = group["params"]

    def name_of(self, group: int, index: int) -> str:
        """A parameter's name, or its place where it was given without one."""
        names = self.param_groups[group].get("param_names")
        return names[index] if names else f"parameter {index} of group {group}"

    def routing(self) -> list[list[Any]]:
        """The routing table: [name, shape, rule, weight decay] for every parameter, in order."""
        return [
            [self.name_of(g, i), list(p.shape), group["rule"], float(group.get("weight_decay", 0.0))]
            for g, group in enumerate(self.param_groups)
            for i, p in enumerate(group["params"])
        ]

    def routing_digest(self) -> str:
        """A short hash of the routing table."""
        return routing_digest(self.routing())

    def state_bytes(self) -> int:
        """Bytes of all slots as allocated."""
        return sum(
            t.numel() * t.element_size() for state in self.state.values() for t in slots_of(state).values()
        )

    # ------------------------------------------------------------------ schedules

    def _follow_schedules(self) -> None:
        for group, schedules in zip(self.param_groups, self._schedules, strict=True):
            for place, schedule in schedules.items():
                put(group, place, schedule(self.committed))

    def _check_groups(self) -> None:
        for i, (group, schedules) in enumerate(zip(self.param_groups, self._schedules, strict=True)):
            check(self._rules[group["rule"]], group, f"group {i}")
            for place, schedule in schedules.items():
                if abs(get(group, place) - schedule(self.committed)) > 1e-6 * abs(schedule(self.committed)):
                    raise SteepestError(
                        f"group {i}: {place[0]} follows the schedule it was built with, but was also set to "
                        f"{get(group, place):g} from outside; use one of the two."
                    )

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimization step; returns the closure's loss if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_groups()
        self._reconcile()
        work = [
            (g, i, p)
            for g, group in enumerate(self.param_groups)
            for i, p in enumerate(group["params"])
            if p.grad is not None
        ]
        if not work:
            return loss
        verdict = self._decide(work)
        self.last_verdict = verdict
        if not verdict.commit:
            self._skip(verdict)
            return loss
        for rule, params, h in self._buckets(work, verdict):
            slots = {name: [self.state[p][name] for p in params] for name in slots_of(self.state[params[0]])}
            self._run(rule, params, [p.grad for p in params], slots, h)  # type: ignore[misc]
        for _, _, p in work:
            self.state[p]["step"] += 1
        self.committed += 1
        self.consecutive_skips = 0
        self._follow_schedules()
        return loss

    def _decide(self, work: Sequence[tuple[int, int, Tensor]]) -> Verdict:
        # torch.amp.GradScaler leaves these two on an optimizer that declares `_step_supports_amp_scaling`.
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        return examine(
            [self.name_of(g, i) for g, i, _ in work],
            [p.grad for _, _, p in work],  # type: ignore[misc]
            loss_scale=1.0 if grad_scale is None else float(grad_scale),
            found_inf=found_inf is not None and bool(found_inf),
            max_norm=self.max_grad_norm,
            clip_eps=self.clip_eps,
        )

    def _skip(self, verdict: Verdict) -> None:
        self.skipped += 1
        self.consecutive_skips += 1
        shown = ", ".join(verdict.culprits[:3]) or "the loss scaler's own check"
        more = f" and {len(verdict.culprits) - 3} more" if len(verdict.culprits) > 3 else ""
        log.warning("step skipped, nothing moved: non-finite gradient in %s%s", shown, more)
        if self.consecutive_skips >= self.skip_limit:
            raise SteepestError(
                f"{self.consecutive_skips} steps in a row had non-finite gradients, last in {shown}{more}; "
                "lower the learning rate or look at the data (nothing was changed by these steps)."
            )

    def _buckets(
        self, work: Sequence[tuple[int, int, Tensor]], verdict: Verdict
    ) -> Iterator[tuple[Rule, list[Tensor], Live]]:
        """Parameters that can be stepped together: one group, device, type, step count, set of slots."""
        buckets: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for g, _, p in work:
            state, grad = self.state[p], p.grad
            buckets[g, state["step"], p.device, p.dtype, grad.dtype, (*state,)].append(p)  # type: ignore[union-attr]
        for (g, steps, *_), params in buckets.items():
            group = self.param_groups[g]
            rule = self._rules[group["rule"]]
            h = expand({name: group[name] for name in rule.hyper}, steps + 1)
            sign = -1.0 if group["maximize"] else 1.0
            scale = sign * (1.0 if verdict.scale is None else verdict.scale)
            h.scale = None if scale == 1.0 else scale
            h.clip_value = self.max_grad_value
            h.l2 = getattr(h, "weight_decay", 0.0) or None
            yield rule, params, h

    # ------------------------------------------------------------------ saving and loading

    def state_dict(self) -> dict[str, Any]:
        """torch's shape, and in each group what `load_state_dict` checks: version, counters, shapes.

        It stands in the groups because torch.distributed.checkpoint keeps `state` and `param_groups` only.
        """
        self._reconcile()
        out = super().state_dict()
        for group, saved in zip(self.param_groups, out["param_groups"], strict=True):
            params = group["params"]
            saved["steepest"] = {
                "version": VERSION,
                "committed": self.committed,
                "skipped": self.skipped,
                "shapes": [list(p.shape) for p in params],
                "frozen": [i for i, p in enumerate(params) if p not in self.state],
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
        fresh = dict(self._matched(state_dict))
        for g, (group, theirs) in enumerate(zip(self.param_groups, state_dict["param_groups"], strict=True)):
            check(self._rules[group["rule"]], {**group, **theirs}, f"saved group {g}")
        for p, saved in fresh.items():
            self.state[p] = {
                k: v.detach().to(p.device, copy=True) if isinstance(v, Tensor) else v
                for k, v in saved.items()
            }
        self._take_groups(state_dict["param_groups"])
        self.committed, self.skipped, self.consecutive_skips = own["committed"], own["skipped"], 0
        self._follow_schedules()
        for post in self._optimizer_load_state_dict_post_hooks.values():
            post(self)

    def _matched(
        self, state_dict: dict[str, Any], torch_names: bool = False
    ) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """(parameter, its saved state in this library's names), everything checked."""
        groups = state_dict["param_groups"]
        if len(groups) != len(self.param_groups):
            raise SteepestError(
                f"the saved state has {len(groups)} parameter groups, "
                f"this optimizer {len(self.param_groups)}."
            )
        for g, (saved, group) in enumerate(zip(groups, self.param_groups, strict=True)):
            if not torch_names and saved.get("rule") != group["rule"]:
                raise SteepestError(
                    f"group {g}: the saved state is of {saved.get('rule')!r}, "
                    f"this optimizer runs {group['rule']!r}."
                )
            order = order_of(saved, group, f"group {g}")
            for i, (p, at) in enumerate(zip(group["params"], order, strict=True)):
                name = self.name_of(g, i)
                facts = saved.get("steepest", {"shapes": None, "frozen": [at]})
                if facts["shapes"] is not None and facts["shapes"][at] != list(p.shape):
                    raise SteepestError(
                        f"{name}: saved with shape {facts['shapes'][at]}, here it is {list(p.shape)}."
                    )
                theirs = state_dict["state"].get(saved["params"][at])
                if theirs is None and at not in facts["frozen"]:
                    raise SteepestError(
                        f"{name}: the saved state lacks this parameter's entry; it is damaged."
                    )
                if theirs is None:  # frozen when it was saved
                    continue
                own = self.state[p] if p in self.state else allocate(self._rules[group["rule"]], p, group)
                if torch_names:
                    theirs = interchange.from_torch(group["rule"], name, theirs, own)
                compare(name, theirs, own)
                yield p, theirs

    def _take_groups(self, saved: list[dict[str, Any]]) -> None:
        for group, theirs in zip(self.param_groups, saved, strict=True):
            for key, value in theirs.items():
                if key not in ("params", "param_names", "steepest"):
                    group[key] = copy.deepcopy(value)  # a tensor lr is not shared with what was saved

    def import_torch_state(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of the same algorithm in torch.optim (or lion-pytorch, apex, timm):
        moments and step counts. Hyperparameters stay this optimizer's own."""
        if any("steepest" in group for group in state_dict["param_groups"]):
            raise SteepestError("this state was saved by steepest; load it with load_state_dict().")
        self._reconcile()
        fresh = dict(self._matched(state_dict, torch_names=True))
        self.state.update(fresh)
        self.committed = max((int(s["step"]) for s in fresh.values()), default=0)
        self._follow_schedules()

    def export_torch_state(self) -> dict[str, Any]:
        """The state as torch.optim's own optimizer of this algorithm loads it."""
        self._reconcile()
        packed = super().state_dict()
        flat = [(p, g, i) for g, group in enumerate(self.param_groups) for i, p in enumerate(group["params"])]
        state = {
            index: interchange.to_torch(
                self.param_groups[g]["rule"], self.name_of(g, i), self.state[p], p.dtype
            )
            for index, (p, g, i) in enumerate(flat)
            if p in self.state
        }
        groups = [interchange.torch_group(group) for group in packed["param_groups"]]
        return {"state": state, "param_groups": groups}

    def __getstate__(self) -> dict[str, Any]:
        # Schedulers put a wrapped `step` of this very object into `__dict__`; a copy must not carry it.
        own = {k: v for k, v in self.__dict__.items() if "hook" not in k and not callable(v)}
        return {**own, **super().__getstate__()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds it; it is no option of a rule
        self.engine, self._run = find_engine(self.engine)
