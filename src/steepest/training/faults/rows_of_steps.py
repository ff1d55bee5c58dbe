"""Faults of steps, ranks, clocks and chance."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from steepest.training.faults import checks, injections, oracles, plays, shards
from steepest.training.faults.oracles import alike, ended, near, same, stands, told, vetoed
from steepest.training.faults.terms import LAST, Here, Inject, Row, Run, Scenario, Staged, Together, Trial

REPLICAS = ("ddp", "zero1", "zero2")
"""Placements in which every rank holds all parameters."""


def _once(*inject: Inject, **more: Any) -> Scenario:
    """One start, with these faults in it, that finishes."""
    return Scenario(runs=(Run(inject=inject),), **more)


def _hit(fault: Any, rank: int | None = LAST, **how: Any) -> Inject:
    return Inject(partial(fault, **how), rank, fatal=fault in injections.DEADLY)


LOST = r"rank [\d, ]*\b{last}\b"
"""Who has not noticed yet that somebody is gone is easily missed, too."""
ONE_NAN = _once(_hit(injections.bad_gradient, step=3))
ONE_RANK_LESS = Scenario(runs=(Run(ranks=1, placement="one"),), still=True)
KILLED = Scenario(
    runs=(
        Run(inject=(_hit(injections.die, step=2),), ends=LOST, alone=True),
        Run(inject=(_hit(injections.freeze, step=3),), ends=LOST, alone=True),
        Run(inject=(_hit(injections.crash, rank=0, step=4),), ends="rank 0", alone=True),
        Run(),
    )
)
STOPPED = Scenario(
    runs=(
        Run(inject=(_hit(injections.send, number=15, step=2),), ends="SIGTERM"),
        Run(inject=(_hit(injections.send, number=15, step=3, times=2),), ends=""),
        Run(),
    )
)
POLICY: dict[str, Any] = {
    "objective": {"name": "grpo", "kl_coef": 0.0},
    "data": "tasks:copy:1:40",
    "context": 24,
    "adapter": None,
    "packing": False,
    "accumulate": 1,
    "rollout": {"group": 2, "new_tokens": 4, "reward": "steepest.training.faults.rewards:letters"},
}


ROWS = (
    Row(
        1,
        "NaN in one element of one gradient of one rank",
        "No rank takes the step; no bit of parameters, state, rate or count moves; tensor and rank are "
        "named.",
        (Trial(ONE_NAN, (vetoed(3, "rank {blamed}"), oracles.names_tensor, alike)),),
    ),
    Row(
        2,
        "The loss of one rank is infinite or NaN, its gradients are not",
        "The same: no rank takes the step, and the rank is named.",
        (
            Trial(
                _once(
                    _hit(injections.bad_loss, step=2), _hit(injections.bad_loss, 0, step=3, value=math.nan)
                ),
                (told("veto", "inf.*rank {last}"), told("veto", "nan.*rank 0"), told("veto", times=2), alike),
            ),
            Trial(_once(_hit(injections.bad_loss, step=3)), (vetoed(3, "loss is inf.*rank {last}"),)),
        ),
    ),
    Row(
        4,
        "NaN reaches the statistics of a guard",
        "What is not finite enters none of them, and later steps are judged as before.",
        (
            Trial(
                _once(
                    _hit(injections.bad_gradient, step=2),
                    _hit(injections.bad_loss, step=3, value=math.nan),
                    change={"guard": {"skip": True, "zclip": True, "minimum": 2, "act": 1e6}},
                ),
                (oracles.guard_untouched,),
            ),
        ),
    ),
    Row(
        5,
        "Step after step is vetoed",
        "After a limit every rank ends in a sentence that says where to look; what was saved stands.",
        (
            Trial(
                Scenario(
                    runs=(
                        Run(
                            inject=(_hit(injections.bad_gradient),),
                            change={"steps": 60, "health": {"every": 0}},
                            ends="in a row",
                        ),
                    ),
                ),
                (stands,),
            ),
        ),
    ),
    Row(
        10,
        "A parameter without a gradient on some ranks, or frozen and trained later",
        "No rank waits for ever: all go on alike, or all end in a sentence and what was saved goes on. What "
        "is unfrozen counts its own steps.",
        (
            Trial(
                Scenario(
                    runs=(
                        Run(
                            inject=(_hit(injections.no_gradient, step=2),), ends="gradient|rank", either=True
                        ),
                        Run(),
                    )
                ),
                (oracles.finished,),
            ),
            Here(checks.unfrozen),
        ),
    ),
    Row(
        11,
        "Tensors without dimensions, without elements, of odd sizes; uneven and empty shards",
        "The numbers of one process.",
        (Together(shards.odd_tensors),),
    ),
    Row(
        30,
        "The clock is set back or forward",
        "Nothing depends on the time of day.",
        (Trial(_once(Inject(injections.wild_clock)), (same,)),),
    ),
    Row(
        31,
        "A rank is killed, stopped, or crashes",
        "The others end by themselves in a sentence that names it; what was saved goes on to the bit.",
        (Trial(KILLED, (oracles.all_said, same, alike)),),
    ),
    Row(
        32,
        "SIGTERM to one rank, and a second one",
        "All save once and leave; the second signal leaves at once. Both times the run goes on to the bit.",
        (
            Trial(
                STOPPED,
                (oracles.all_said, told("checkpoint", "signal", times=1), same),
            ),
        ),
    ),
    Row(
        33,
        "A rank computes something else: its parameters or its state are not those of the others",
        "Noticed at the next look at the run's health; the run stops and names the rank.",
        tuple(
            Trial(
                Scenario(
                    runs=(Run(inject=(_hit(injections.drift, step=2, what=what),), ends="rank {last}"),),
                    ranks=3,
                    placements=places,
                ),
                (ended,),
            )
            for what, places in (("parameters", REPLICAS), ("state", REPLICAS[:1]))
        ),
    ),
    Row(
        34,
        "Two runs in one folder",
        "The second gets a sentence with the first one's process, which is not disturbed.",
        (Staged(plays.two_runs),),
    ),
    Row(
        35,
        "A schedule and the steps disagree: vetoes, restarts, steps past its end",
        "The rate is a function of the committed step; past the end it holds.",
        (Trial(ONE_NAN, (vetoed(3, ""),)), Here(checks.past_the_end)),
    ),
    Row(
        37,
        "Random streams: other draws, another number of ranks",
        "Every stream is a function of seed, name and counter; ranks share the rows of one process.",
        (
            Trial(_once(Inject(injections.other_draws)), (same,)),
            Trial(ONE_RANK_LESS, (oracles.fed_alike,)),
        ),
    ),
    Row(
        38,
        "Data read twice or not at all, after a restart or a rollback",
        "The same rows in the same order; a ledger says what was trained on and what was passed over.",
        (
            Trial(STOPPED, (oracles.fed_alike, oracles.ledger)),
            Trial(
                _once(
                    Inject(partial(injections.broken_batch, rows_of=7)),
                    change={
                        "steps": 14,
                        "schedule": {"name": "constant", "warmup": 0},
                        "guard": {"rollback": {"patience": 4, "margin": 0.5}, "minimum": 4, "window": 8},
                        "health": {"every": 0},
                    },
                ),
                (oracles.passed_over,),
            ),
        ),
    ),
    Row(
        39,
        "A reward that is NaN, groups of equal rewards",
        "Nothing learns from a NaN: the run stops and names it, and goes on once it is mended. Equal rewards "
        "move nothing and are counted.",
        (
            Trial(
                Scenario(
                    runs=(
                        Run(inject=(_hit(injections.bad_reward, after=9),), ends="nan|not finite"),
                        Run(),
                    ),
                    change=POLICY,
                ),
                (same,),
            ),
            Trial(
                _once(
                    Inject(injections.equal_rewards),
                    change={**POLICY, "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0}},
                ),
                (oracles.no_difference,),
            ),
        ),
    ),
    Row(
        42,
        "A tracker that is down, slow or full; figures of many ranks",
        "What does not fit is counted, training does not wait; every figure is of all ranks together.",
        (
            Trial(_once(_hit(injections.broken_trackers, 0)), (same, oracles.lines_lost)),
            Trial(ONE_RANK_LESS, (near,)),
        ),
    ),
)
