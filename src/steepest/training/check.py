"""What can be known to be wrong with a run before any of it is trained."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from steepest.adapters import parse_adapter
from steepest.contract import SteepestError
from steepest.objectives import OBJECTIVES, get_objective
from steepest.training.config import RunConfig, sentence
from steepest.training.control import ControllerConfig
from steepest.training.guard import GuardConfig
from steepest.training.sources import check_data
from steepest.training.stage_config import StageConfig


def check_plan(config: RunConfig, ranks: int = 1) -> None:
    """Raise, in one sentence that names the stage, for the first mistake: an objective or an option of it, an
    adapter, a guard, a controller, a reward model that no stage trains, data that is not there, a batch with
    fewer rows than there are ranks."""
    if ranks > 1 and config.placement == "one":
        raise SteepestError(
            f"placement one is a single process and {ranks} were started; say placement: ddp (or zero1, "
            "zero2, fsdp), or start one."
        )
    trained: list[str] = []
    for stage in config.plan():
        where = f"stage {stage.name}: " if stage.name else ""
        try:
            _check(stage, trained, ranks)
        except SteepestError as error:
            raise SteepestError(f"{where}{error}") from None
        if OBJECTIVES[stage.objective_name].model == "scored":
            trained.append(stage.name)


def _check(stage: StageConfig, trained: list[str], ranks: int) -> None:
    get_objective(stage.objective_name, **stage.objective_options)
    if isinstance(stage.adapter, Mapping):
        parse_adapter(stage.adapter)
    elif stage.adapter not in (None, "keep"):
        raise SteepestError(
            f"adapter {stage.adapter!r} is neither 'keep' nor settings, as in {{kind: lora}}."
        )
    _parse(GuardConfig, stage.guard, "guard")
    if stage.controller is not None:
        _parse(ControllerConfig, stage.controller, "controller")
    if ranks > 1:
        _check_ranks(stage, ranks)
    rewards = stage.rollout.reward
    for name in [rewards] if isinstance(rewards, str) else rewards:
        own = name.removeprefix("stage:")
        if own != name and own not in trained:
            raise SteepestError(
                f"there is no reward model of a stage {own!r} before it; {', '.join(trained) or 'no stage'} "
                "trains one."
            )
    check_data(stage)


def _check_ranks(stage: StageConfig, ranks: int) -> None:
    if stage.batch < ranks:
        raise SteepestError(
            f"a batch of {stage.batch} has no row for each of {ranks} ranks; give a larger batch, or fewer "
            "ranks."
        )


def _parse(kind: type[BaseModel], given: Mapping[str, object], where: str) -> None:
    try:
        kind.model_validate(given)
    except ValidationError as error:
        raise SteepestError(sentence(error, where, kind)) from None
