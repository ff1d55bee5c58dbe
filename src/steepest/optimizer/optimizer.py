"""`Optimizer`: one object that runs any rule, or several, on any engine; and its step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from steepest.contract import Rule, Shard, SteepestError, expand, unknown
from steepest.engines import Bucket, Engine, Request, find_engine
from steepest.optimizer import preview, saved
from steepest.optimizer.groups import fill
from steepest.optimizer.observed import Observed
from steepest.optimizer.routes import Route, route_groups
from steepest.optimizer.step import Layout, Lot, Owed, Settled, expand_there
from steepest.optimizer.verdict import CLIP_EPS, LOSS_SCALE, NON_FINITE, Judge, Verdict, culprits, decide
from steepest.placements import Placement
from steepest.rules import find_rule

log = logging.getLogger("steepest")

OPTIONS = (
    *("max_grad_norm", "max_grad_value", "maximize", "skip_limit", "check_finite", "engine"),
    *("state", "param", "seed", "telemetry", "placement"),
)
"""What every rule takes beside its hyperparameters, for the hint at a misspelt name."""


class Optimizer(Observed):
    """Any rule, or several at once, over any parameters.

    Args:
        params: a model, its `parameters()` or `named_parameters()`, or a list of parameter groups.
        rule: the name of a rule, or a `Rule`; a group may name its own under "rule".
        routes: instead of `rule`, an ordered list of `Route`; `params` is then a model or named.
        max_grad_norm: clip gradients by their global norm (after undoing a GradScaler's scale).
        max_grad_value: clip every gradient element to [-value, value] (after the norm).
        maximize: ascend instead of descend.
        skip_limit: raise after this many steps in a row were skipped.
        check_finite: False gives the transaction up: unless clipping needs the norm, nobody looks at the
            gradients before the step, and what is not finite in them goes into the parameters.
        engine: "auto", "fused", "foreach" or "reference".
        state: how slots are stored: a codec's name for all ("int8"), or by slot ({"m": "int4", "v": "fp8"});
            None is float32. A group or a route may have its own. See docs/codecs.md.
        param: how bfloat16 parameters are stored ("split24"); None takes them as they are.
        seed: of the noise of stochastic rounding; saved with the state.
        telemetry: whether every step sums what `telemetry()` reports.
        placement: who steps what; None finds it: DTensors (FSDP2) are stepped as they are cut, anything else
            here. See docs/placements.md. Then `step`, and whatever reads or saves state, is called on
            every rank.
        hyper: the rule's hyperparameters, torch's names; a live one may be a schedule, which is a
            function of the number of committed steps.

    A step is a transaction: with a non-finite gradient not one bit of parameters, state or schedule
    moves, the parameters at fault are named in `last_verdict`, and `skipped` counts it.
    Slots are float32 (float64 for float64 parameters) unless told otherwise, and exist from construction.
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
        check_finite: bool = True,
        engine: str | None = None,
        state: str | Mapping[str, str] | None = None,
        param: str | None = None,
        seed: int = 0,
        telemetry: bool = False,
        placement: Placement | None = None,
        **hyper: Any,
    ) -> None:
        if (rule is None) == (routes is None):
            raise SteepestError("give an Optimizer either rule=... or routes=[...].")
        for name, limit in (("max_grad_norm", max_grad_norm), ("max_grad_value", max_grad_value)):
            if limit is not None and not (isinstance(limit, (int, float)) and 0 < limit < float("inf")):
                raise SteepestError(f"{name}={limit!r} must be a positive number, or None for no clipping.")
        if not isinstance(skip_limit, int) or skip_limit < 1:
            raise SteepestError(f"skip_limit={skip_limit!r} must be a whole number, at least 1.")
        if not isinstance(seed, int) or seed < 0:
            raise SteepestError(f"seed={seed!r} must be a whole number, at least 0.")
        self.max_grad_norm, self.max_grad_value, self.clip_eps = max_grad_norm, max_grad_value, clip_eps
        self.check_finite, self.skip_limit = check_finite, skip_limit
        self.last_verdict = None
        self._engine, self._later = find_engine(engine), dict[int, Engine]()
        self.engine = self._engine.name
        self._step_supports_amp_scaling = True  # GradScaler then leaves `grad_scale` and `found_inf`
        self.observes = telemetry
        self._sums: list[tuple[list[int], Tensor]] = []
        shared = {"maximize": maximize, "state": state, "param": param}
        named = list(params.named_parameters()) if isinstance(params, nn.Module) else params
        if routes is not None:
            if hyper:
                raise SteepestError(f"{next(iter(hyper))!r} belongs inside a Route when routes are given.")
            named = list(named)
            if not named or not isinstance(named[0], tuple):
                raise SteepestError("routes go by name: give the model, or model.named_parameters().")
            super().__init__(route_groups(named, routes), shared, seed=seed, placement=placement)
            return
        found = find_rule(rule)  # type: ignore[arg-type]
        for key in hyper:
            if key not in found.hyper:
                raise unknown(f"option of {found.name}", key, [*found.hyper, *OPTIONS])
        filled, _ = fill(found, hyper, found.name)
        own = {"rule": found.name, **shared, **filled}
        super().__init__(named, own, given=hyper, rule=found, seed=seed, placement=placement)

    last_verdict = Settled()
    committed = Settled()
    skipped = Settled()
    consecutive_skips = Settled()
    _owed: Owed | None = None
    found_inf: Tensor | None = None
    grad_scale: Tensor | None
    """Whether something outside, the loss say, was not finite, which vetoes a step; and what the loss was
    multiplied by, which is undone in it. `torch.amp.GradScaler` sets both, and wants `grad_scale` missing."""
    judge: Judge | None = None
    """Asked in every step with the global norm of the unscaled gradients: it may veto the step, clip it lower
    or slow it down (`Judgement`). Every step is then decided on the host. It stays behind when an optimizer
    is copied or pickled."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimization step; returns the closure's loss if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._settle()
        self._check_groups()
        params = self._owned()
        grads = [p.grad for p in params]
        layout = self._lay_out(params, grads)
        if self.placement.moves:
            grads = [grad if grad is None else self.placement.local(grad) for grad in grads]
        elif not layout.lots or self._defer(layout.lots, grads):
            return loss
        verdict = self._decide(params, grads, self._engine, self.judge)
        if verdict is None:
            return loss
        self.last_verdict = verdict
        if not verdict.commit:
            self._skip(verdict, self._culprits(grads))
            return loss
        grads = list(self.placement.bring(params, grads))
        sums: list[Tensor | None] = []
        for wave in range(self.placement.waves):
            self.placement.arrive(wave)
            lots = [lot for lot in layout.lots if lot.wave == wave]
            engine = self._engine if not wave else self._later.setdefault(wave, find_engine(self.engine))
            sums += engine.run([self.bucket(lot, grads, verdict) for lot in lots])
            self.placement.depart(wave)
        if self.placement.moves:
            self.placement.publish([p for p in params if p.requires_grad])
        self._sums = [(lot.members, s) for lot, s in zip(layout.lots, sums, strict=True) if s is not None]
        self._count(layout.lots, 1)
        self.consecutive_skips = 0
        return loss

    def _count(self, lots: Sequence[Lot], steps: int) -> None:
        """Count so many committed steps more, or fewer."""
        for lot in lots:
            lot.advance(steps)
        self.committed += steps
        self._follow_schedules()

    def _defer(self, lots: list[Lot], grads: Sequence[Tensor | None]) -> bool:
        """Leave the step to an engine that decides about it on the device, if there is one; the host goes on
        as if it were committed, and settles it later."""
        if self.judge is not None or not self._engine.defers([grad for grad in grads if grad is not None]):
            return False
        buckets = [self.bucket(lot, grads, None) for lot in lots]
        request = Request(
            looks=self.check_finite or self.max_grad_norm is not None,
            max_norm=self.max_grad_norm,
            clip_eps=self.clip_eps,
            loss_scale=getattr(self, "grad_scale", None),
            found_inf=self.found_inf,
        )
        pending = self._engine.commit(buckets, request)
        if pending is None:
            return False
        before, counted = self._sums, 0 if pending.captured else 1
        self._sums = [(lot.members, s) for lot, s in zip(lots, pending.sums, strict=True) if s is not None]
        self._count(lots, counted)
        self._owed = Owed(pending, lots, counted, before)
        return True

    def _settle(self) -> None:
        """Learn what became of the last deferred step, and take back what was counted too much. A captured
        step stays owed: the graph may run it again."""
        owed, self._owed = self._owed, None
        if owed is None:
            return
        outcome = owed.pending.resolve()
        self._count(owed.lots, outcome.committed - owed.counted)
        scale = None if outcome.scale == 1.0 else outcome.scale
        if outcome.committed:
            self.last_verdict, self.consecutive_skips = Verdict(True, outcome.norm, scale), 0
        elif outcome.vetoed:
            self._sums = owed.telemetry
        if outcome.vetoed:
            self.skipped += outcome.vetoed - 1
            self.consecutive_skips += outcome.vetoed - 1
        if owed.pending.captured:
            self._owed = owed
        if outcome.vetoed:
            names, members = self._names(), owed.members()
            scaled = not outcome.bad and self.found_inf is not None
            verdict = Verdict(False, outcome.norm, why=LOSS_SCALE if scaled else NON_FINITE)
            self._skip(verdict, tuple(names[members[i]] for i in outcome.bad))

    def _decide(
        self, params: Sequence[Tensor], grads: Sequence[Tensor | None], engine: Engine, judge: Judge | None
    ) -> Verdict | None:
        """One verdict, the same on every rank; None if nobody has a gradient. grads: what is here of them."""
        grad_scale = getattr(self, "grad_scale", None)
        looks = self.check_finite or self.max_grad_norm is not None or judge is not None
        norm, inf = None, self.found_inf is not None and bool(self.found_inf)
        if looks or self.placement.moves:
            there = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
            measure = engine.measure if looks else lambda own: 0.0
            norm, inf, count = self.placement.survey(
                measure, [p for p, _ in there], [g for _, g in there], inf
            )
            if not count:
                return None
        return decide(
            norm if looks else None,
            loss_scale=1.0 if grad_scale is None else float(grad_scale),
            found_inf=inf,
            max_norm=self.max_grad_norm,
            clip_eps=self.clip_eps,
            judge=judge,
        )

    def _culprits(self, grads: Sequence[Tensor | None]) -> tuple[str, ...]:
        """The names of parameters whose gradients are not finite; the ranks too, where others' are."""
        told = self.placement.tell(culprits(zip(self._names(), grads, strict=True)))
        ranks = {name: [rank for rank, bad in enumerate(told) if name in bad] for name in self._names()}
        return tuple(
            name if len(where) == len(told) else f"{name} (rank {', '.join(map(str, where))})"
            for name, where in ranks.items()
            if where
        )

    def _skip(self, verdict: Verdict, names: tuple[str, ...]) -> None:
        self.skipped += 1
        self.consecutive_skips += 1
        self.last_verdict = replace(verdict, culprits=names)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        log.warning("step skipped, nothing moved: %s%s", verdict.why, f" in {shown}" if names else "")
        if self.consecutive_skips >= self.skip_limit:
            last = f"had non-finite gradients, last in {shown}" if names else f"were skipped: {verdict.why}"
            raise SteepestError(
                f"{self.consecutive_skips} steps in a row {last}; "
                "lower the learning rate or look at the data (nothing was changed by these steps)."
            )

    def bucket(self, lot: Lot, grads: Sequence[Any] | Mapping[int, Any], verdict: Verdict | None) -> Bucket:
        """What an engine is given; without a verdict it finds the scale itself, and reads tensors itself."""
        group, tensors = self.param_groups[lot.group], dict[str, Tensor]()
        hyper = {name: group[name] for name in lot.rule.hyper}
        if verdict is None:
            h, tensors = expand_there(hyper, lot.taken + 1, lot.params[0].device)
        else:
            h = expand(hyper, lot.taken + 1)
            if verdict.rate != 1.0:
                h.lr *= verdict.rate
        scale = -1.0 if group["maximize"] else 1.0
        if verdict is not None and verdict.scale is not None:
            scale *= verdict.scale
        h.scale = None if scale == 1.0 else scale
        h.clip_value = self.max_grad_value
        h.l2 = getattr(h, "weight_decay", 0.0) or None
        return Bucket(
            rule=lot.rule,
            h=h,
            codecs=lot.codecs,
            params=lot.params,
            grads=[grads[i] for i in lot.members],
            stored=lot.stored,
            ordinals=lot.members,
            seed=self.seed,
            telemetry=self.observes,
            tensors=tensors,
            shards=lot.shards,
            add_up=lot.add_up,
        )

    def conclude(
        self, verdict: Verdict, sums: list[tuple[list[int], Tensor]], names: Sequence[str] = ()
    ) -> None:
        """Count a step that was decided and taken elsewhere. sums: its telemetry, by places."""
        if verdict.commit:
            self.last_verdict, self._sums, self.consecutive_skips = verdict, sums, 0
            self._count([], 1)
        else:
            self._skip(verdict, tuple(names))

    def _reconcile(self) -> None:
        self._settle()  # before anything is saved, loaded or added
        super()._reconcile()

    @torch.no_grad()
    def buckets(self) -> list[Bucket]:
        """What the engine would be given for the present gradients, not clipped: for looking at."""
        self._settle()
        params = self._owned()
        grads = [p.grad for p in params]
        lots = self._lay_out(params, grads).lots
        here = [grad if grad is None else self.placement.local(grad) for grad in grads]
        here = list(self.placement.bring(params, here))
        return [self.bucket(lot, here, Verdict(True, 1.0)) for lot in lots]

    @torch.no_grad()
    def preview(self, sample: float = 1.0, seed: int = 0) -> dict[str, dict[str, float]]:
        """What the next step would move with the present gradients, as `telemetry()` would tell it: by name,
        `update_norm` and `param_norm` after it. Nothing is changed: one parameter at a time is stepped on a
        copy. A step that would be vetoed moves nothing; the judge is not asked.

        sample: the part of all tensors to look at, drawn by `seed`; at least one tensor is.
        """
        names, moves = (
            self._names(),
            self.placement.moves,
        )  # who owns a gradient may be the only one to have it
        there = [i for i, p in enumerate(self._owned()) if (p.requires_grad if moves else p.grad is not None)]
        places = preview.draw(there, sample, seed)
        return {names[i]: moved for i, moved in self.foresee(places).items()}

    @torch.no_grad()
    def foresee(self, places: set[int]) -> dict[int, dict[str, float]]:
        """`preview` of the parameters at these places of all; all gradients decide about the step."""
        self._reconcile()
        self._check_groups()
        oracle, params = find_engine("reference"), self._owned()
        grads = [p.grad if p.grad is None else self.placement.local(p.grad) for p in params]
        verdict = self._decide(params, grads, oracle, None) or Verdict(False, 0.0)
        whole = self.placement.bring(params, grads)
        rows = torch.zeros(len(params), 3, dtype=torch.float64)
        for lot in Layout(self.param_groups, self.state, self._codecs_of, [], self.placement).lots:
            for k in (k for k, place in enumerate(lot.members) if place in places):
                alone = self.bucket(preview.copied(lot, k), whole, verdict)
                rows[lot.members[k]] = preview.foresee(oracle, alone, verdict.commit)
        self.placement.add_rows(rows, params)
        return preview.told(rows)

    def export_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All state as tensors, keyed "<parameter>/<stored slot>" ("layers.0.weight/m.scale"), and facts that
        JSON can hold: per parameter rule, shape, type, codecs and steps; hyperparameters, counters, seed.

        The tensors are those that the next step changes: copy them, or write them first.
        """
        return saved.export_state(self)

    def shards(self) -> dict[str, Shard]:
        """Which tensors of `export_state` are parts here, and which ones; the others are whole."""
        return saved.shards(self)

    def import_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> list[str]:
        """Take over what `export_state` gave, whole or in parts. Names, shapes, types, rules and codecs are
        all checked first; a mismatch raises, naming both sides, and changes nothing. Hyperparameters stay
        this optimizer's own: where they differ from the saved ones is returned, one sentence each."""
        return saved.import_state(self, tensors, facts)

    def __getstate__(self) -> dict[str, Any]:
        # Schedulers put a wrapped `step` of this very object into `__dict__`; a copy must not carry it. What
        # is made anew is left out.
        self._settle()
        made = ("_engine", "_later", "_layout", "_codecs", "_owed", "placement", "_placed", "_bound")
        own = {
            k: v for k, v in self.__dict__.items() if "hook" not in k and k not in made and not callable(v)
        }
        return {**own, **super().__getstate__()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds it; it is no option of a rule
        self._engine, self._later = find_engine(self.engine), {}
        self._layout, self._codecs = None, {}
        self.placement, self._placed, self._bound = Placement(), False, []
