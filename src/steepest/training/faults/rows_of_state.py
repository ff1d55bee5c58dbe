"""Faults of configs, and of what a run or an optimizer is continued from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from steepest.training.checkpoint import Store
from steepest.training.config import load_config
from steepest.training.faults import checks, injections, oracles, tampering
from steepest.training.faults.oracles import near, refused, same, same_tensors, told
from steepest.training.faults.terms import Here, Inject, Row, Run, Scenario, Trial


def _refused(ends: str, *tamper: Any, inject: tuple[Inject, ...] = (), run: Any = None, **more: Any) -> Trial:
    """A run is cut, changed, and then not continued, for this reason."""
    start = Run(inject=inject, ends=ends, change=run or {})
    return Trial(Scenario(runs=(start,), cut=2, tamper=tamper, **more), (refused,))


def _edit(edit: Any) -> Any:
    return partial(tampering.rewrite, edit=edit)


def _other_rule(folder: Path) -> dict[str, Any]:
    optimizer = load_config(folder / "config.yaml").optimizer
    return {"optimizer": {"name": "lion" if optimizer["name"] != "lion" else "adamw", "lr": optimizer["lr"]}}


def _other_rate(folder: Path) -> dict[str, Any]:
    optimizer = load_config(folder / "config.yaml").optimizer
    return {"optimizer": {**optimizer, "lr": 2 * optimizer["lr"]}}


def _names_within(folder: Path) -> dict[str, Any]:
    """What the model's modules are called inside of `injections.Wrapped`."""
    found = Store(folder / "checkpoints").load().tensors["model"]
    return {"rename": {name: f"wrapped.{name}" for name in sorted({key.split(".")[0] for key in found})}}


WRAPPED = (Inject(injections.wrapped_model),)
OTHER_RANKS = (
    Scenario(runs=(Run(ranks=1, placement="one"),), cut=2, still=True),
    Scenario(runs=(Run(ranks=3),), cut=2, still=True),
)
HOSTILE = "</script><script>alert(0)</script><img src=x onerror='alert(1)'>"

ROWS = (
    Row(
        3,
        "NaN in saved moments or weights, under checksums that are right",
        "The run is not continued from there; the sentence names the tensors, and no file changes.",
        (
            _refused("not finite in optimizer/", _edit(tampering.bad_moment)),
            _refused("not finite in model/", _edit(tampering.bad_weight)),
        ),
    ),
    Row(
        6,
        "A clipping threshold of 0, below 0, infinite or NaN",
        "Refused when the config is read, or the optimizer made.",
        (Here(checks.bad_clips),),
    ),
    Row(
        7,
        "A hyperparameter out of range in one group",
        "Refused with the group's name, at construction and at the step.",
        (Here(checks.bad_hyperparameters),),
    ),
    Row(
        8,
        "An unknown key in a config or a group",
        "Refused with its place and the nearest key.",
        (Here(checks.unknown_keys),),
    ),
    Row(
        9,
        "A parameter that no route claims, a route that claims nothing, tied weights",
        "A tied weight counts once; the rest is refused with the names.",
        (Here(checks.routes),),
    ),
    Row(
        12,
        "Parameters in another order",
        "State is matched by name.",
        (Here(checks.another_order),),
    ),
    Row(
        13,
        "Renamed modules, wrapped models",
        "A run that is continued refuses other names, unless `rename` maps them.",
        (
            _refused("differ in|wrapped", inject=WRAPPED),
            Trial(Scenario(runs=(Run(inject=WRAPPED, change=_names_within),), cut=2), (same_tensors,)),
        ),
    ),
    Row(
        14,
        "Another shape, such as a larger vocabulary",
        "Refused when it is loaded, with both shapes.",
        (_refused(r"is \(\d+, \d+\).*is \(\d+, \d+\)", inject=(Inject(injections.larger_vocabulary),)),),
    ),
    Row(
        15,
        "State of another optimizer",
        "Refused at load; at a border converted as stated, with a report.",
        (_refused("holds a run of another config", run=_other_rule), Here(checks.other_rule)),
    ),
    Row(
        16,
        "State of another number format",
        "Refused with both named.",
        (Here(checks.other_codec),),
    ),
    Row(
        17,
        "State missing for some parameters, or of parameters that are not there",
        "Refused with the name.",
        (
            _refused("the saved state holds", _edit(tampering.lost_slot)),
            _refused("elsewhere.weight", _edit(tampering.foreign_slot)),
        ),
    ),
    Row(
        18,
        "A run goes on with another number of processes",
        "Put together and cut anew, norms compared with the saved ones; the numbers of the run, to rounding.",
        tuple(Trial(scenario, (told("resume", "gen-000002"), near)) for scenario in OTHER_RANKS),
    ),
    Row(
        29,
        "Names of runs and tensors that are markup",
        "Text on every page. Pages are files: there is no server.",
        (
            Trial(
                Scenario(
                    runs=(
                        Run(
                            inject=(Inject(partial(injections.wrapped_model, name=HOSTILE)),),
                            change={"name": HOSTILE},
                        ),
                    )
                ),
                (oracles.page_inert,),
            ),
        ),
    ),
    Row(
        36,
        "A save without its loss scale",
        "Refused: a new one would be another run's.",
        (_refused("holds no loss scale", _edit(tampering.lost_scale), change={"precision": "fp16"}),),
    ),
    Row(
        40,
        "A config edited before a run is continued",
        "Refused with old and new values, but for keys that change no number; those are noted.",
        (
            _refused(r"optimizer\.lr: \S+ -> ", run=_other_rate),
            Trial(
                Scenario(runs=(Run(change={"health": {"every": 2}}),), cut=2),
                (told("config", "health.every: 1 -> 2"), same_tensors),
            ),
        ),
    ),
    Row(
        41,
        "A save of an older or newer version",
        "Older ones go on; newer ones are refused, with what is newer.",
        (
            _refused("newer steepest.*version 99", _edit(tampering.newer_facts)),
            _refused("has format 99", tampering.newer_format),
            Trial(Scenario(cut=2, tamper=(_edit(tampering.older_config),)), (same,)),
        ),
    ),
)
