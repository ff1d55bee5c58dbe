"""The optimizer of a stage, over the model it trains: one object, whatever the number of recipes in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from steepest.adapters import is_lora_a, is_lora_b, is_magnitude
from steepest.contract import Schedule
from steepest.optimizer import Optimizer, decay_groups
from steepest.placements import Placement
from steepest.rules import find_card
from steepest.training.stage_config import StageConfig

Named = list[tuple[str, Tensor]]


def build_optimizer(
    stage: StageConfig,
    model: nn.Module,
    *,
    observes: bool = False,
    around: Callable[[Schedule], Schedule] | None = None,
    placement: Placement | None = None,
) -> Optimizer:
    """The stage's optimizer: its rate on its schedule, and weight decay on matrices only.

    With an adapter the low-rank matrices are not decayed; `lora_b`, `rest` and `value` are what differs for
    the second matrices, for what is trained beside the adapter, and for a value head: any options of the
    optimizer, `lr_ratio` (LoRA+, arXiv:2402.12354: 16 for `lora_b`), or another rule under `name`.

    observes: with telemetry.  around: what every schedule of a learning rate is put into.  placement: who
    steps what; None lets the optimizer find it.
    """
    card = find_card(stage.optimizer["name"])
    make = _rates(stage, around)
    whole_rate = make(stage.optimizer["lr"])
    groups = list(_groups(stage, model, make))
    whole = {**card.settings, **stage.hyper}
    return Optimizer(
        groups,
        card.rule,
        lr=whole_rate,
        max_grad_norm=stage.clip,
        telemetry=observes,
        placement=placement,
        **whole,
    )


def _groups(stage: StageConfig, model: nn.Module, make: Make) -> Iterator[dict[str, Any]]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    special = {"lora_b": is_lora_b, "value": _is_value_head}
    if not any(is_lora_a(name) for name, _ in named):
        special.pop("lora_b")
    parts: dict[str, Named] = {"": []}
    adapted = "lora_b" in special
    for name, p in named:
        route = next((route for route, is_its in special.items() if is_its(name)), "")
        if adapted and not route and not (is_lora_a(name) or is_magnitude(name)):
            route = "rest"
        parts.setdefault(route, []).append((name, p))
    for route, own in parts.items():
        options = _options(stage, stage.optimizer.get(route, {}), make)
        if route == "value":  # its own schedule object: a controller of the policy's rate leaves it alone
            options.setdefault("lr", make(stage.optimizer["lr"]))
        if not own:
            continue
        if adapted and route in ("", "lora_b"):
            yield {"params": own, **options, "weight_decay": 0.0}
            continue
        for group in decay_groups(own):
            yield {**options, **group}


def _options(stage: StageConfig, given: Mapping[str, Any], make: Make) -> dict[str, Any]:
    """A route's options as those of a parameter group: its own rule, its own rate on the stage's schedule."""
    own = {key: value for key, value in given.items() if key not in ("name", "lr", "lr_ratio")}
    rate = given.get("lr", stage.optimizer["lr"]) * given.get("lr_ratio", 1.0)
    if rate != stage.optimizer["lr"] or "name" in given:
        own["lr"] = make(rate)
    if "name" in given:
        card = find_card(given["name"])
        own = {**card.settings, **own, "rule": card.rule}
    return own


Make = Callable[[float], Schedule]
"""From a peak rate to its schedule."""


def _rates(stage: StageConfig, around: Callable[[Schedule], Schedule] | None) -> Make:
    def make(peak: float) -> Schedule:
        schedule = stage.schedule.build(peak, stage.steps)
        return around(schedule) if around is not None else schedule

    return make


def _is_value_head(name: str) -> bool:
    return name.startswith("value_head.") or ".value_head." in name
