"""Building a stage from its config: which model it trains, with what, on what; and all of it from a save."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steepest.adapters import add_adapter, merge, parse_adapter
from steepest.contract import SteepestError
from steepest.data import seed_for
from steepest.models import RewardModel, ValuedModel, build_model, compile_model, recompute
from steepest.objectives import OBJECTIVES, Objective, get_objective
from steepest.optimizer import Carried, Optimizer, carry
from steepest.placements import Offloaded, Placed, Placement, find_placement, place
from steepest.training.built import Built, Tensors
from steepest.training.check import check_plan
from steepest.training.config import RunConfig
from steepest.training.controls import Controls
from steepest.training.feeds import usable_device
from steepest.training.guard import Guard, GuardConfig
from steepest.training.health import Health
from steepest.training.learner import Learner
from steepest.training.loop import Stage
from steepest.training.parts import Given, parts, state_parts, together
from steepest.training.precision import Precision
from steepest.training.recipe import build_optimizer
from steepest.training.rollouts import Rollouts
from steepest.training.sources import Context, load_run_tokenizer, open_source
from steepest.training.stage_config import ROUTES, StageConfig
from steepest.training.text import Text, text_of
from steepest.training.weights import load_weights, weights
from steepest.training.world import ALONE, World

CUT = ("fsdp", "hybrid")
"""Placements in which every tensor is cut."""


@dataclass
class Builder:
    """The models of a run, from stage to stage.

    policy: the model that goes through the stages.  products: what stages have trained beside it (reward
    models), by stage.  positions: rounds read so far of every source.
    previous: the optimizer of the stage before. Between stages all of this is whole, on every rank.
    """

    config: RunConfig
    cache: Path | None = None
    world: World = ALONE
    policy: nn.Module | None = None
    products: dict[str, nn.Module] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    previous: Optimizer | None = None
    adapter: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.plan = self.config.plan()
        check_plan(self.config, self.world.size)
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        tokenizer = load_run_tokenizer(self.config, self.cache)
        device = usable_device(self.world.device(self.config.device))
        self.context = Context(self.config, tokenizer, device, self.cache, self.products, self.world)

    # ------------------------------------------------------------ entering and leaving

    def enter(self, index: int) -> Built:
        """The stage, ready for its first step: the optimizer's state has crossed the border."""
        stage = self.plan[index]
        goes_on = self.previous is not None and not is_apart(stage)
        # State is converted by numbers of whole tensors, which are all here until the model is cut.
        early = goes_on and self.world.size > 1 and self.config.placement in CUT
        early &= not _looks_ahead(stage.moments)  # that asks for gradients, which only the placed model has
        whole, carried = self._carry(index) if early else (None, None)
        built = self._build(index)
        built.stage.place.position = self.positions.get(built.source.key, 0)
        built.source.prepare(built.model)
        if whole is not None:
            built.optimizer.import_state(*whole.export_state())
        elif goes_on:
            with self._first_gradients(built):
                _, carried = self._carry(index, built.optimizer)
        if carried is not None:
            built.carried, built.words = carried.to_json(), str(carried)
        return built

    def _carry(self, index: int, into: Optimizer | None = None) -> tuple[Optimizer, Carried]:
        """Take the state of the stage before over, into an optimizer of this one."""
        stage = self.plan[index]
        into = into or build_optimizer(stage, self._model(index))
        assert self.previous is not None
        return into, carry(self.previous, into, stage.moments or self._usual(index))

    def _usual(self, index: int) -> str:
        """The moment policy where none is stated."""
        stage = self.plan[index]
        before = next(own for own in reversed(self.plan[:index]) if not is_apart(own))
        return "keep" if _stored(stage.optimizer) == _stored(before.optimizer) else "convert"

    def _first_gradients(self, built: Built) -> AbstractContextManager[None]:
        """What the stage's first step would see, where a moment policy asks how large that step is to be."""
        if not _looks_ahead(built.config.moments):
            return nullcontext()
        stage = built.stage
        return stage.learner.looking(stage.feed.round(stage.place.position)[0])

    def leave(self, built: Built) -> None:
        """Keep what later stages need."""
        self.positions[built.source.key] = built.stage.place.position
        if is_apart(built.config):
            self.products[built.config.name] = _finished(built.model)
        else:
            self.previous = built.optimizer
        if self.world.size > 1 and built.optimizer.placement.moves:
            self._make_whole(built)

    def _make_whole(self, built: Built) -> None:
        """Models and state that lie over the ranks, on every rank: the next stage may change their
        structure, and places them anew."""
        index = self.plan.index(built.config) + 1
        self.restore(index, together(self.tensors(None), self.world), self.facts(None), None)

    def text(self, name: str) -> Text | None:
        """The text that a stage reads, if it reads any."""
        stage = next(stage for stage in self.plan if stage.name == name)
        reads = OBJECTIVES[stage.objective_name].batch == "text"
        return text_of(self.config, self.cache, stage=stage) if reads else None

    def final(self) -> nn.Module:
        """The policy as it is used: without adapters."""
        if self.policy is None:
            raise SteepestError("no stage has trained the policy; there is nothing to save.")
        return merge(copy.deepcopy(self.policy)) if self.adapter is not None else self.policy

    # ------------------------------------------------------------ the parts of a stage

    def _build(self, index: int) -> Built:
        stage, config = self.plan[index], self.config
        objective = OBJECTIVES[stage.objective_name]
        drawn = {"temperature": stage.rollout.temperature} if objective.batch == "policy" else {}
        function = get_objective(stage.objective_name, **{**drawn, **stage.objective_options})
        model = self._model(index)
        reference = self._reference(stage, objective)
        model, placed = self._place(compile_model(model) if config.compile else model)
        source = open_source(stage, objective, self.context)
        controls = Controls.of(stage)
        learner = Learner(
            model,
            build_optimizer(
                *(stage, model),
                observes=config.health.every > 0,
                around=controls.held if controls else None,
                placement=self._placement(model, placed),
            ),
            controls.objective(function) if controls else function,
            seed=config.seed,
            precision=Precision(config.precision, self.context.device),
            guard=Guard(GuardConfig(**stage.guard)),
            world=self.world,
            placed=placed,
        )
        if placed is not None:
            placed.attach()
        feed = source.feed(learner)
        if isinstance(feed, Rollouts):
            feed.reference = reference
        built = Stage(
            *(stage.name, learner, feed, source.validation(learner)),
            steps=stage.steps,
            evals=stage.evals,
            until=stage.until,
            guess=source.guess if index == 0 else None,
            rising=source.rising,
        )
        health = Health(config.health.every) if config.health.every else None
        return Built(stage, built, source, reference, health, controls)

    def _reference(self, stage: StageConfig, objective: Objective) -> nn.Module | None:
        if objective.batch != "policy" or not stage.rollout.reference or self.policy is None:
            return None
        return self._place(_finished(copy.deepcopy(self.policy)), frozen=True)[0]

    def _place(self, model: nn.Module, *, frozen: bool = False) -> tuple[nn.Module, Placed | None]:
        """A model over the ranks: as it is asked about and saved, and as it is trained. A frozen one is cut
        where the others are, and otherwise left alone."""
        if self.world.size == 1 or (frozen and self.config.placement not in CUT):
            return model, None
        kind, world = self.config.placement, self.world
        shard = world.local_size if kind == "hybrid" else None  # copies are on other machines
        # Some rows may leave a parameter out; and DistributedDataParallel then keeps its buckets as they are,
        # so that a run that is continued adds up in the same order.
        placed = place(model, kind, device=self.context.device.type, shard=shard, unused=True)
        if placed.model is not model and hasattr(model, "config"):
            placed.model.config = model.config  # objectives ask the model that they call
        return model, placed

    def _placement(self, model: nn.Module, placed: Placed | None) -> Placement | None:
        """Who steps what; None lets the optimizer find it."""
        inner = placed.placement if placed else None
        return Offloaded(inner or find_placement(list(model.parameters()))) if self.config.offload else inner

    def _model(self, index: int) -> nn.Module:
        """The model that a stage trains, with the adapters it asks for."""
        stage = self.plan[index]
        kind = OBJECTIVES[stage.objective_name].model
        if self.policy is None:
            self.policy = self._first("seq2seq" if kind == "seq2seq" else "causal")
        if kind == "scored":
            plain = copy.deepcopy(self.policy)
            plain = merge(plain) if self.adapter is not None else plain
            scored = self._with_head(RewardModel, plain, stage)
            return self._adapted(scored, stage)
        self._exchange(stage)
        return self._with_head(ValuedModel, self.policy, stage) if kind == "valued" else self.policy

    def _first(self, kind: Any) -> nn.Module:
        model = build_model(
            self.config.model,
            vocab_size=self.context.tokenizer.vocab_size,
            context=max(stage.context + _answer(stage) for stage in self.plan),
            seed=self.context.seed("init"),
            kind=kind,
            pad_vocab=self.config.pad_vocab,
        )
        if self.config.recompute:
            recompute(model)
        return Precision(self.config.precision, self.context.device).cast(model).to(self.context.device)

    def _with_head(self, head: Any, model: nn.Module, stage: StageConfig) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.context.seed(f"head/{stage.name}"))
            whole: nn.Module = head(model)
        return whole.to(self.context.device).train()

    def _exchange(self, stage: StageConfig) -> None:
        """Put on the policy the adapter that the stage asks for: the one it has, another, or none."""
        asked = stage.adapter
        if self.policy is None or asked == "keep" or asked == self.adapter:
            return
        if self.adapter is not None:
            self.policy = merge(self.policy)
        self.adapter = asked if isinstance(asked, dict) else None
        self.policy = self._adapted(self.policy, stage)

    def _adapted(self, model: nn.Module, stage: StageConfig) -> nn.Module:
        if stage.adapter is None or stage.adapter == "keep":
            return model
        assert isinstance(stage.adapter, Mapping)  # check_plan has raised
        seed = seed_for(self.config.seed, f"adapter/{stage.name}")
        return add_adapter(model, parse_adapter(stage.adapter), seed)

    # ------------------------------------------------------------ saving and restoring

    def tensors(self, built: Built | None) -> dict[str, Given]:
        """Everything of the run that is a tensor, by group: what this rank gives of it."""
        world = self.world
        out: dict[str, Given] = {
            f"product.{name}": parts(weights(m), world) for name, m in self.products.items()
        }
        if built is not None:
            out |= built.tensors()
        waits = built is None or is_apart(built.config)
        if waits and self.policy is not None:
            out["policy"] = parts(weights(self.policy), world)
        if waits and self.previous is not None:
            out["optimizer" if built is None else "previous"] = state_parts(self.previous, world)
        return out

    def facts(self, built: Built | None) -> dict[str, Any]:
        """The numbers beside: JSON. previous: of the policy's optimizer, while no stage trains the policy."""
        waits = built is None or is_apart(built.config)
        kept = self.previous.export_state()[1] if waits and self.previous is not None else None
        return {"positions": dict(self.positions), "products": list(self.products), "previous": kept}

    def restore(
        self, index: int, tensors: Tensors, facts: Mapping[str, Any], built: Mapping[str, Any] | None
    ) -> Built | None:
        """The run as it was saved. Its structure is a function of the config; the numbers are read."""
        self.policy = self.previous = self.adapter = None
        self.products.clear()
        self.positions = dict(facts["positions"])
        for i, stage in enumerate(self.plan[:index]):
            model = self._model(i)
            if not is_apart(stage):
                owner = stage, model
            elif stage.name in facts["products"]:
                load_weights(model, tensors[f"product.{stage.name}"])
                self.products[stage.name] = _finished(model)
        if facts["previous"] is not None:
            self.previous = build_optimizer(*owner)
            saved = tensors["optimizer" if built is None else "previous"]
            self.previous.import_state(saved, facts["previous"])
        found = self._build(index) if built is not None else None
        if self.policy is not None and "policy" in tensors:
            load_weights(self.policy, tensors["policy"])
        if found is not None and built is not None:
            found.load(tensors, built)
        return found


def _stored(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """What decides how an optimizer's state is stored: rules, codecs, dialects, those of routes too."""
    out: dict[str, Any] = {key: optimizer.get(key) for key in ("name", "state", "param", "dialect")}
    return out | {route: _stored(optimizer[route]) for route in ROUTES if route in optimizer}


def is_apart(stage: StageConfig) -> bool:
    """Whether a stage trains a model of its own and leaves the policy as it is."""
    return OBJECTIVES[stage.objective_name].model == "scored"


def _looks_ahead(moments: Any) -> bool:
    """Whether a moment policy is to find a factor by the first step's size."""
    if isinstance(moments, Mapping):
        return any(map(_looks_ahead, moments.values()))
    return "rescale_v" in moments if isinstance(moments, (str, list, tuple)) else False


def _answer(stage: StageConfig) -> int:
    """Tokens that a stage writes behind its prompts."""
    return stage.rollout.new_tokens if OBJECTIVES[stage.objective_name].batch == "policy" else 0


def _finished(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)
