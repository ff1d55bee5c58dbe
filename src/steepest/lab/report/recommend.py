"""What to train with: the choice, why, the configuration that repeats it, and lines to paste."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from steepest.lab.analysis import Result, Summary
from steepest.lab.report import words
from steepest.lab.statistics import TOLERANCE
from steepest.rules import find_card

MUCH_LESS = 2 / 3
"""State below this share of the baseline's is clearly less."""


class Choice(NamedTuple):
    """The optimizer to train with, and why, in one sentence."""

    name: str
    reason: str


def choose(summary: Summary) -> Choice | None:
    """The best optimizer; in a tie with the baseline the baseline, unless another is clearly smaller.

    Smaller counts only where the mean loss is within the basin's tolerance (0.01 nats) of the
    baseline's: a tie by noise alone is no reason to change. None if nothing could be judged.
    """
    if not summary.leaders:
        return None
    base, first = summary[summary.baseline], summary[summary.leaders[0]]
    if summary.winner:
        return Choice(first.name, f"{first.title} has the lowest loss, and no other optimizer ties with it.")
    if base.name not in summary.leaders:
        tied = words.titles(summary, summary.leaders[1:])
        return Choice(
            first.name,
            f"{first.title} beats {base.title} and has the lowest mean loss; {tied} cannot be told apart.",
        )
    small = [r for r in map(summary.__getitem__, summary.leaders) if _clearly_smaller(r, base)]
    if small:
        pick = min(small, key=lambda r: r.state_bytes or 0)
        return Choice(
            pick.name,
            f"{pick.title} ties with {base.title} in loss and keeps {words.size(pick.state_bytes)} of state "
            f"where {base.title} keeps {words.size(base.state_bytes)}.",
        )
    others = words.titles(summary, [name for name in summary.leaders if name != base.name])
    return Choice(
        base.name,
        f"{others} and {base.title} tie, and none that ties keeps clearly less state at as low a loss.",
    )


def recommendation(summary: Summary, study: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration `steepest train` runs: the choice at its chosen rate, and the study's own setting.

    Empty if nothing could be judged.
    """
    choice = choose(summary)
    if choice is None:
        return {}
    return {
        **{key: value for key, value in study["config"].items() if key != "threads"},
        "optimizer": {"name": choice.name, **_hyper(summary[choice.name])},
        "seed": study["seeds"][0],
    }


def recommended_yaml(summary: Summary, study: Mapping[str, Any]) -> str | None:
    """`recommended.yaml`: the recommendation under a header of why, evidence and scope; None without one."""
    choice = choose(summary)
    if choice is None:
        return None
    import yaml

    lines = [
        "Run it with: steepest train recommended.yaml",
        f"Why: {choice.reason}",
        f"Evidence: {' '.join(words.verdict(summary, study))}",
        f"Made by: {study['command']}",
    ]
    header = "".join(f"# {' '.join(line.split())}\n" for line in lines)
    return header + yaml.safe_dump(recommendation(summary, study), sort_keys=False, allow_unicode=True)


def snippet(summary: Summary, clip: float | None = None) -> str:
    """Lines to paste into a training script, with the study's clipping; empty if nothing could be judged."""
    choice = choose(summary)
    if choice is None:
        return ""
    given = _hyper(summary[choice.name]) | ({"max_grad_norm": clip} if clip else {})
    # Trials decay matrices only, and so must who repeats them.
    params = "steepest.decay_groups(model)" if given.get("weight_decay") else "model.parameters()"
    arguments = ", ".join([params, *(f"{key}={_argument(value)}" for key, value in given.items())])
    return f"import steepest\n\noptimizer = steepest.{find_card(choice.name).constructor}({arguments})"


def _clearly_smaller(result: Result, base: Result) -> bool:
    if result.state_bytes is None or base.state_bytes is None or not result.loss or not base.loss:
        return False
    near = result.loss.mean - base.loss.mean <= TOLERANCE
    return near and result.state_bytes < MUCH_LESS * base.state_bytes


def _hyper(result: Result) -> dict[str, Any]:
    """The hyperparameters that were run, the rate first; those that were not set are left out."""
    rest = {key: value for key, value in result.hyper.items() if key != "lr" and value is not None}
    return {"lr": result.lr, **rest}


def _argument(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, list) else repr(value)
