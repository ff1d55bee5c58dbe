"""What a run came to, in words. Pure text: nothing here knows of HTML."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steepest.contract import SteepestError
from steepest.lab.report import words
from steepest.lab.report.run_story import RIGHT, Stage, Story
from steepest.rules import find_card
from steepest.training.doctor.series import Row, is_finite

OBJECTIVES = {
    "next_token": "next-token prediction",
    "sft": "supervised fine-tuning",
    "seq2seq": "sequence to sequence",
    "reward": "a reward model",
    "dpo": "DPO",
    "ipo": "IPO",
    "orpo": "ORPO",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "ppo": "PPO",
}
TITLES = {
    "loss": "training loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "step_ms": "ms a step",
    "kl": "KL to reference",
    "kl_old": "KL(old ‖ new)",
    "kl_reference": "KL, as sampled",
    "reward_std": "reward spread",
    "zero_variance_groups": "uniform groups",
    "length": "tokens an answer",
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def number(value: float) -> str:
    """Any number, short: 1.83, 0.0005, 3.1e-7, 12,345."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e7 or size < 1e-4:
        mantissa, exponent = f"{value:.1e}".replace("-", "−", int(value < 0)).split("e")
        return f"{mantissa}e{int(exponent)}"
    text = f"{value:,.0f}" if size >= 1000 else f"{value:.4g}" if size >= 1 else f"{value:.3g}"
    return text.replace("-", "−")


def validated(value: float, unit: str) -> str:
    """A validation on its own scale: 1.834, or 34%."""
    if unit != RIGHT:
        return f"{value:.3f}".replace("-", "−") if abs(value) < 1000 else number(value)
    return f"{value:.0%}" if value in (0.0, 1.0) or 0.1 <= value <= 0.9 else f"{value:.1%}"


def clock(seconds: float, timed: bool = True) -> str:
    """A moment of the run: 0:00, 2:59, 1:02:03; or a step, where nothing knows the time."""
    if not timed or seconds >= 1e9:
        return number(seconds)
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def sentence(text: str) -> str:
    """With a capital and a full stop; nothing stays nothing."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def count(n: int, noun: str) -> str:
    """One stage, 3 stages, no steps."""
    return f"{NUMBERS[n] if n < 2 else f'{n:,}'} {noun}{'' if n == 1 else 's'}"


def times(n: int) -> str:
    """Once, 3 times."""
    return "once" if n == 1 else f"{n:,} times"


def title(key: str, rising: bool = False) -> str:
    """What a column of the metrics is called."""
    if key == "loss" and rising:
        return "policy's loss"
    return TITLES.get(key, key.replace("_", " "))


def objective(stage: Stage) -> str:
    return OBJECTIVES.get(stage.objective, stage.objective) or "training"


def optimizer(stage: Stage) -> tuple[str, float | None]:
    """Its optimizer's title and peak rate, as far as its config or its numbers say."""
    given = stage.plan.get("optimizer")
    given = given if isinstance(given, Mapping) else {}
    name, rate = str(given.get("name", "")), given.get("lr")
    with contextlib.suppress(SteepestError):
        name = find_card(name).title if name else name
    return name, float(rate) if is_finite(rate) else stage.series.peak or None


# ---------------------------------------------------------------------- the run


def headline(run: Story) -> str:
    """How the run stands, or what it came to, in a line."""
    last, all_of = run.last, len(run.stages) + len(run.ahead)
    where = f" in stage {last.index + 1} of {all_of}, {last.name}" if all_of > 1 else ""
    if run.state != "finished":
        of = f" of {last.planned:,}" if last.planned else ""
        how = "Running:" if run.state == "running" else f"{run.state.capitalize()} at"
        return f"{how} step {last.taken:,}{of}{where}"
    if policy := _measured(run):
        before, after = (validated(float(v), RIGHT) for v in _around(policy))
        both = f"{before} of answers right, before and after reinforcement learning"
        return both if before == after else f"From {before} to {after} of answers right"
    many = f"{count(all_of, 'stage').capitalize()}: " if all_of > 1 else ""
    if last.after is None:
        return f"{many}{last.taken:,} steps of {objective(last)}"
    end = validated(last.after, last.unit)
    if last.rising:
        return f"{many}a validation reward of {end} at the end"
    text = f"{many}{last.name + ' ends at ' if many else ''}{end} {last.unit}"
    return text if many else f"{text} after {last.taken:,} steps"


def verdict(run: Story) -> list[str]:
    """The run in two to five sentences: what was trained, what came of it, what to look at."""
    return [*filter(None, (_what(run), _losses(run), _answers(run), _care(run), _state(run)))]


def _what(run: Story) -> str:
    model, n = run.config.get("model"), len(run.stages)
    name = model if isinstance(model, str) and len(model) < 80 else "A model"
    path = [objective(stage) for stage in run.stages]
    number_of = NUMBERS[n] if n < len(NUMBERS) else n
    how = f"in {number_of} stages ({', '.join(path)})" if n > 1 else f"by {path[0]}"
    spent = f" on {words.count(run.tokens)} tokens" if run.tokens else ""
    spent += f" in {words.duration(run.seconds)}" if run.seconds is not None else ""
    return f"{name} was trained {how}{spent}."


def _losses(run: Story) -> str:
    """From where to where every loss came; where it began is known once the run is over."""
    found = [(s, s.after) for s in run.stages if not s.rising and s.after is not None]
    if not found:
        return ""
    parts = []
    for i, (stage, after) in enumerate(found):
        begin = "" if stage.before is None else f"from {validated(stage.before, stage.unit)} "
        end = validated(after, stage.unit)
        unit = f" {stage.unit}" if i == 0 or stage.unit != found[i - 1][0].unit else ""
        parts.append(f"{begin}to {end}{unit}{f' in {stage.name}' if len(run.stages) > 1 else ''}")
    return f"The validation loss went {words.listing(parts)}."


def _answers(run: Story) -> str:
    """Right answers before and after, with what chance alone can do to such a count."""
    policy = _measured(run)
    if not policy:
        return ""
    before, after = (
        share(stage, value) for stage, value in zip((policy[0], policy[-1]), _around(policy), strict=True)
    )
    n = policy[-1].answers
    prompts = f" of {n:,} held-out prompts" if n and n == policy[0].answers else ""
    sure = "; 95% intervals, for the choice of prompts alone: this is one run from one seed" if n else ""
    then = "so far" if policy[-1] is run.last and run.state != "finished" else "after"
    return f"Right answers{prompts}: {before} before reinforcement learning, {after} {then}{sure}."


def share(stage: Stage, value: float) -> str:
    """A share of right answers: 34% (28 to 40%)."""
    around = between(stage, value)
    return f"{validated(value, RIGHT)} ({around})" if around else validated(value, RIGHT)


def between(stage: Stage, value: float) -> str:
    """The interval of a share of right answers: 28 to 40%; nothing where none is known."""
    found = stage.interval(value)
    if found.low is None or found.high is None:
        return ""
    return f"{100 * found.low:.0f} to {100 * found.high:.0f}%"


def _measured(run: Story) -> list[Stage]:
    """The stages of right answers that were counted before and after."""
    return [s for s in run.stages if s.unit == RIGHT and None not in (s.before, s.after)]


def _around(policy: Sequence[Stage]) -> tuple[float, float]:
    return float(policy[0].validation.values[0]), float(policy[-1].validation.values[-1])


def _care(run: Story) -> str:
    """What asks for a look."""
    kinds = Counter(str(e.get("kind")) for e in run.journal)
    grave = sum(e.get("kind") == "finding" and e.get("level") == "act" for e in run.journal)
    parts = []
    if grave:
        parts.append(f"{count(grave, 'finding')} of health asked for action")
    if kinds["veto"]:
        parts.append(f"{count(kinds['veto'], 'step')} {'was' if kinds['veto'] == 1 else 'were'} not taken")
    if kinds["rollback"]:
        parts.append(f"it was rolled back {times(kinds['rollback'])}")
    if kinds["resume"]:
        parts.append(f"it was continued {times(kinds['resume'])}")
    return sentence(words.listing(parts))


def _state(run: Story) -> str:
    if run.state == "running":
        left = f"; still to come: {words.listing(run.ahead)}" if run.ahead else ""
        return f"This run is still going{left}. The page shows it as it was when it was written."
    if run.state == "stopped":
        return "It was stopped before its end; the same `steepest train` goes on from its last generation."
    if run.state == "diverged":
        why = [str(e.get("reason", "")) for e in run.journal if e.get("kind") == "diverged"]
        return sentence(f"it diverged: {why[-1][:300]}") if why and why[-1] else ""
    return ""


# ---------------------------------------------------------------------- a stage


def recipe(stage: Stage) -> str:
    """What a stage did, in a sentence or two."""
    plan, (name, rate) = stage.plan, optimizer(stage)
    text = objective(stage)
    if plan.get("data"):
        text += f" on {plan['data']}"
    if name:
        text += f" with {name}"
    if rate:
        text += f", learning rate {words.rate(rate)}"
    schedule = plan.get("schedule")
    if isinstance(schedule, Mapping) and schedule.get("name"):
        text += f" ({schedule['name']})"
    adapter = plan.get("adapter")
    if isinstance(adapter, Mapping):
        text += f", adapter {words.plain(adapter)}"
    elif adapter == "keep":
        text += ", the adapter kept"
    ended = str(stage.record.get("ended") or "")
    return " ".join(filter(None, (sentence(text), sentence(f"it ended early: {ended}" if ended else ""))))


def crossing(stage: Stage) -> list[str]:
    """What became of the optimizer's state at the border before a stage."""
    found = []
    for event in stage.of_kind("stage")[-1:]:
        carried = event.get("carried")
        if not isinstance(carried, Mapping):
            found += ["The optimizer starts fresh."] if stage.index else []
            continue
        listed = carried.get("rows")
        rows = [row for row in listed if isinstance(row, Mapping)] if isinstance(listed, list) else []
        kinds = Counter(_fate(row) for row in rows)
        found += [f"{count(n, 'tensor')}: {fate}." for fate, n in kinds.most_common(6)]
        dropped = carried.get("dropped")
        if isinstance(dropped, list) and dropped:
            found.append(f"The state of {count(len(dropped), 'tensor')} was left behind.")
    for event in stage.of_kind("first_step")[-1:]:
        sizes = [_size(event.get(key)) for key in ("foreseen", "moved")]
        if sizes[0] is not None:
            moved = f"; it moved {number(sizes[1])}" if sizes[1] is not None else ""
            found.append(f"The first step was foreseen to move the weights by {number(sizes[0])}{moved}.")
    return found


def _fate(row: Mapping[str, Any]) -> str:
    old, new = row.get("old_rule"), row.get("new_rule")
    if old is None:
        return f"new in this stage, so the state starts fresh ({new})"
    slots = row.get("slots")
    fates: dict[str, list[str]] = {}
    for slot, fate in slots.items() if isinstance(slots, Mapping) else ():
        fates.setdefault(str(fate), []).append(str(slot))
    said = [f"{words.listing(own)} {fate}" for fate, own in fates.items()]
    return f"{f'{old} to {new}' if old != new else new}, {', '.join(said) or row.get('policy')}"


def _size(norms: Any) -> float | None:
    """Of a whole update, from those of its tensors."""
    values = [v for v in norms.values() if is_finite(v)] if isinstance(norms, Mapping) else []
    return math.hypot(*values) if values else None


# ---------------------------------------------------------------------- events


def finding(event: Row) -> str:
    """A finding of health in a line."""
    name = str(event.get("indicator", "")).replace("_", " ")
    value, limit = (number(v) if is_finite(v := event.get(key)) else "?" for key in ("value", "limit"))
    return f"{name} {value} (limit {limit}) in {event.get('where')}: {event.get('means')}"


def event(event: Row) -> str:
    """A line of the journal in words."""
    kind = str(event.get("kind"))
    if kind == "finding":
        return finding(event)
    if kind == "stage":
        return f"{event.get('name') or 'training'} begins: {event.get('objective')}"
    if kind == "baseline":
        value = event.get("validation")
        return f"validation before the first step: {number(value) if is_finite(value) else words.NONE}"
    if kind == "checkpoint":
        return f"a generation was saved ({event.get('why')})"
    if kind == "first_step":
        foreseen, moved = (_size(event.get(key)) for key in ("foreseen", "moved"))
        return f"first step: foreseen {_or(foreseen)}, moved {_or(moved)}"
    rest = {key: value for key, value in event.items() if key not in ("kind", "step", "time", "process")}
    return f"{kind.replace('_', ' ')} {words.plain(rest)}".strip()[:300]


def _or(value: float | None) -> str:
    return words.NONE if value is None else number(value)


def ranges(given: Any) -> str:
    """Positions of a source as ranges: 0 to 299, 305."""
    pairs: Iterable[Any] = given if isinstance(given, list) else ()
    known = [p for p in pairs if isinstance(p, (list, tuple)) and len(p) == 2 and all(map(is_finite, p))]
    text = ", ".join(f"{a:,}" if a == b else f"{a:,} to {b:,}" for a, b in known[:40])
    return (text + (", …" if len(known) > 40 else "")) or words.NONE
