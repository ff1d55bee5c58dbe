"""The border between two training stages: what goes on of one optimizer's state in another."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch

from steepest.contract import SteepestError, unknown
from steepest.optimizer.convert import Notes, convert, param_bits, same_form, transfer
from steepest.optimizer.optimizer import Optimizer
from steepest.optimizer.state import Held
from steepest.rules import CARDS

WORDS: Mapping[str, str] = {
    "keep": "slots and step count go on, bit for bit (same rule, same codecs)",
    "convert": "slots go on in another rule's state, or in another codec, by what they remember",
    "zero_m": "averages of gradients start again, second moments go on",
    "rescale_v": "second moments are multiplied, by a stated factor or until the first step has the old size",
    "age_reset": "slots go on, the step count starts again (Adam-Rel, arXiv:2412.17113)",
    "zero": "every slot and the step count start again",
    "fresh": "every slot and the step count start again, whatever the rule was",
}
"""The moment policies."""

CHANGES = ("zero_m", "rescale_v", "age_reset")
"""Those that may be combined, as a list."""

Policy: TypeAlias = str | Sequence[Any] | Mapping[str, Any]

ROUNDS, CLOSE = 12, 0.01
"""How often, and to which relative distance, "rescale_v" without a factor looks for one."""

RATES: Mapping[tuple[str, str], str] = {
    ("adamw", "lion"): "learning rate x 1/10 to 1/3, weight decay x 3 to 10 (arXiv:2302.06675)",
    ("adamw", "signum"): "learning rate x 1/10 to 1/3, weight decay x 3 to 10 (as Lion's)",
    ("adamw", "sgd"): "learning rate x the median of 1/sqrt(v), since nothing divides by it any more",
    ("lion", "adamw"): "learning rate x 3 to 10, weight decay x 1/10 to 1/3 (arXiv:2302.06675)",
}
"""What a change of rule asks of the learning rate, where something better than the cards is known."""


@dataclass(frozen=True)
class Row:
    """What happened to one parameter's state.

    old_rule: None where there was no state to take over.  step: its step count now.
    slots: by slot, in words; "p" for what is stored beside a low-precision parameter.
    """

    name: str
    old_rule: str | None
    new_rule: str
    policy: str
    step: int
    slots: Mapping[str, str]


@dataclass(frozen=True)
class Carried:
    """What happened at a border; `str` gives it in a few lines.

    dropped: parameters of the old stage that the new one does not train.
    rates:   by change of rule, what it asks of the learning rate.
    """

    rows: Sequence[Row]
    dropped: Sequence[str] = ()
    rates: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "dropped": list(self.dropped),
            "rates": dict(self.rates),
        }

    def __str__(self) -> str:
        alike: dict[tuple[Any, ...], list[str]] = {}
        for row in self.rows:
            key = row.old_rule, row.new_rule, row.policy, row.step, tuple(row.slots.items())
            alike.setdefault(key, []).append(row.name)
        lines = []
        for (old, new, policy, step, slots), names in alike.items():
            rule = new if old in (new, None) else f"{old} -> {new}"
            told = "; ".join(f"{slot} {what}" for slot, what in slots) or "no slots"
            lines.append(f"{_some(names)}: {rule}, {policy}, step {step}: {told}")
        if self.dropped:
            lines.append(f"left behind: {_some(self.dropped)}")
        return "\n".join([*lines, *(f"{change}: {words}" for change, words in self.rates.items())])


@dataclass(slots=True)
class _Move:
    """One parameter's way over the border. factor: of second moments, None to be found."""

    here: Held
    there: Held | None
    words: tuple[str, ...]
    factor: float | None
    slots: Notes = field(default_factory=dict)


@torch.no_grad()
def carry(old: Optimizer, new: Optimizer, policy: Policy = "keep") -> Carried:
    """Move the state of `old` into `new`, by tensor where both train the same one, else by name.

    policy: a word of `WORDS` for all; {"rescale_v": 0.25}; a list of words of `CHANGES`; or a mapping from
        patterns to these, in which the first that matches a parameter wins. A pattern is the name of the old
        or the new rule, or a shell pattern on the parameter's name.

    Names are compared without what wrappers add ("module.", "_orig_mod.", "base_model.model.",
    ".base_layer"). A parameter without a counterpart of its shape starts fresh, whatever the policy. What a
    low-precision parameter keeps beside itself ("p.low") is part of its value and goes on as long as the
    parameter is the same, bit for bit. Hyperparameters, schedules, counters and seed of `new` are its own.
    Nothing is moved before all is checked; `old` is not changed.

    Raises: SteepestError for an unknown word, a pattern that matches nothing, a parameter that no pattern
        matches, and a policy that cannot work for a parameter, with the reason.
    """
    moves, dropped = _pair(old.holdings(), new.holdings(), policy)
    for move in moves:
        _check(move)
    wanted = _old_sizes(old, new, [move for move in moves if move.there and move.factor is None])
    for move in moves:
        new.adopt({move.here.p: _state(move)})
    if wanted:
        _rescale(new, wanted)
    rates = {
        f"{a} -> {b}": suggested_rate(a, b)
        for a, b in dict.fromkeys((m.there.rule.name, m.here.rule.name) for m in moves if m.there)
        if a != b
    }
    return Carried([_row(move, new) for move in moves], dropped, rates)


def suggested_rate(old_rule: str, new_rule: str) -> str:
    """What changing the rule asks of the learning rate, in words."""
    if old_rule == new_rule:
        return "the learning rate stays"
    if (old_rule, new_rule) in RATES:
        return RATES[old_rule, new_rule]
    typical = {card.rule_name: card.relative_lr for card in CARDS.values()}
    if not {old_rule, new_rule} <= set(typical):
        return "the learning rate has to be found anew"
    factor = typical[new_rule] / typical[old_rule]
    return f"learning rate x {factor:.2g}, to a factor of four or so (the optimizers' cards)"


# ---------------------------------------------------------------------- who goes with whom, and how


def canonical(name: str) -> str:
    """A parameter's name without what wrappers add to it."""
    name = re.sub(r"^((module|_orig_mod|base_model\.model)\.)+", "", name)
    return name.replace("._orig_mod.", ".").replace(".base_layer.", ".")


def _by_name(holdings: Iterable[Held]) -> dict[str, Held]:
    """By canonical name; by its full name where two would share that."""
    holdings = list(holdings)
    times = Counter(canonical(held.name) for held in holdings)
    return {held.name if times[n := canonical(held.name)] > 1 else n: held for held in holdings}


def _pair(old: list[Held], new: list[Held], policy: Policy) -> tuple[list[_Move], list[str]]:
    same, named = {held.p: held for held in old if held.state}, _by_name(held for held in old if held.state)
    patterns = {"*": policy} if _is_word(policy) else dict(policy)  # type: ignore[arg-type]
    told = {pattern: _read(word) for pattern, word in patterns.items()}
    moves, used = [], set()
    for name, here in _by_name(held for held in new if held.state).items():
        there = same.get(here.p) or named.get(name)
        known = {name, here.name, here.rule.name, *([there.rule.name] if there else [])}
        first = next((p for p in told if any(fnmatchcase(x, p) for x in known)), None)
        if first is None:
            raise SteepestError(f"no moment policy matches {name}; add a last one that does, '*': 'keep'.")
        used.add(first)
        moves.append(_Move(here, there, *told[first]))
    if idle := [p for p in told if p not in used]:
        raise SteepestError(f"moment policy {idle[0]!r} matches no parameter and no rule; mend or remove it.")
    taken = {move.there.place for move in moves if move.there}
    return moves, [held.name for held in named.values() if held.place not in taken]


def _is_word(policy: Policy) -> bool:
    return not isinstance(policy, Mapping) or _is_factor(policy)


def _is_factor(word: Any) -> bool:
    """Whether it is {"rescale_v": number}; a mapping to words may have a pattern of that name."""
    return isinstance(word, Mapping) and [*word] == ["rescale_v"] and not isinstance(word["rescale_v"], str)


def _read(word: Any) -> tuple[tuple[str, ...], float | None]:
    """The words of a policy, and the factor of second moments; None for one that has to be found."""
    parts = list(word) if isinstance(word, (list, tuple)) else [word]
    words, factor = [], None if "rescale_v" in parts else 1.0
    for part in parts:
        if _is_factor(part):
            factor = part["rescale_v"]
            if not (isinstance(factor, (int, float)) and 0 < factor < math.inf):
                raise SteepestError(f"rescale_v={factor!r} must be a finite number above 0.")
            part = "rescale_v"
        if not isinstance(part, str) or part not in WORDS:
            raise unknown("moment policy", part, WORDS)
        words.append(part)
    if not words or (len(words) > 1 and (not set(words) <= set(CHANGES) or len(set(words)) < len(words))):
        raise SteepestError(f"{word!r} is no moment policy; a list may hold {', '.join(CHANGES)}, each once.")
    return tuple(words), factor


def _check(move: _Move) -> None:
    """Raise where a policy cannot work for a parameter; what has no counterpart starts fresh."""
    here, there = move.here, move.there
    if there is None or there.p.shape != here.p.shape:
        was = "new in this stage" if there is None else f"its shape was {list(there.p.shape)}"
        move.there, move.words, move.factor = None, ("fresh",), 1.0
        move.slots = dict.fromkeys([*here.codecs][1:], f"started fresh: {was}")
        return
    word = move.words[0]
    if word in ("keep", *CHANGES) and here.rule.name != there.rule.name:
        raise SteepestError(
            f"{here.name} goes from {there.rule.name} to {here.rule.name}, and {word} is for the same rule; "
            "use 'convert' or 'fresh'."
        )
    if word == "keep":
        for slot in [*here.codecs][1:]:
            if slot in there.codecs and not same_form(here, there, slot):
                was, now = there.codecs[slot].name, here.codecs[slot].name
                now = "of another shape" if was == now else now
                raise SteepestError(
                    f"{here.name}: {slot} was {was} and is {now} now, so 'keep' cannot keep its bits; use "
                    "'convert'."
                )
    if "age_reset" in move.words and "zero_m" not in move.words and (large := _first_step(here)) > 1:
        raise SteepestError(
            f"{here.name}: with age_reset and these betas the first step would be {large:.2g} times too "
            "large, sqrt(1 - beta2) / (1 - beta1); use ['zero_m', 'age_reset'], or a larger beta2."
        )


def _first_step(here: Held) -> float:
    """How much larger the first step is after the step count started again: both averages are taken for one
    gradient's. 1 for a rule that keeps not both."""
    decays = {slot.of: slot.average for slot in reversed([*here.rule.slots.values()]) if slot.average}
    if not {"gradient", "square"} <= set(decays):
        return 1.0
    h = vars(here.live(1))
    return math.sqrt(1 - h[decays["square"]]) / (1 - h[decays["gradient"]])


# ---------------------------------------------------------------------- moving


def _state(move: _Move) -> dict[str, Any]:
    """The state that a parameter starts the new stage with; says in `move.slots` what became of each slot."""
    here, there, notes = move.here, move.there, dict[str, str]()
    state = here.start()
    if there is None:
        return state
    assert there.state is not None
    if move.words[0] in ("zero", "fresh"):
        notes = dict.fromkeys([*here.codecs][1:], "started fresh")
    elif move.words[0] == "convert":
        state |= convert(here, there, notes)
    else:
        state |= transfer(here, there, notes, zero_m="zero_m" in move.words, factor=move.factor or 1.0)
        state["step"] = 0 if "age_reset" in move.words else there.state["step"]
    move.slots = notes
    return state | param_bits(here, there, notes)


def _old_sizes(old: Optimizer, new: Optimizer, moves: Sequence[_Move]) -> list[tuple[_Move, float]]:
    """For parameters whose factor has to be found: the size of the last update at a learning rate of 1."""
    if not moves:
        return []
    seen, out = old.telemetry() if old.observes else {}, []
    for move in moves:
        here, there = move.here, move.there
        assert there is not None
        if there.name not in seen or here.p.grad is None:
            raise SteepestError(
                f"{here.name}: rescale_v without a factor needs the old stage's telemetry (telemetry=True) "
                "and the new stage's first gradients; give it both, or state a factor: {'rescale_v': 0.25}."
            )
        out.append((move, seen[there.name]["update_norm"] / _rate(there)))
    return out


def _rate(held: Held) -> float:
    rate = float(held.live(1).lr)
    if rate <= 0:
        raise SteepestError(
            f"{held.name}: rescale_v compares steps relative to their learning rates, and one is {rate:g}; "
            "state a factor: {'rescale_v': 0.25}."
        )
    return rate


def _rescale(new: Optimizer, wanted: Sequence[tuple[_Move, float]]) -> None:
    """Multiply second moments until the foreseen first step, at a learning rate of 1, has the wanted size."""
    for _ in range(ROUNDS):
        foreseen = new.foresee({move.here.place for move, _ in wanted})
        far = False
        for move, size in wanted:
            moved = foreseen[move.here.place]["update_norm"] / _rate(move.here)
            if min(moved, size) > 0 and abs(moved / size - 1) > CLOSE:
                far = True
                move.factor = min(max((move.factor or 1.0) * (moved / size) ** 2, 1e-8), 1e8)
                new.adopt({move.here.p: _state(move)})
        if not far:
            return


def _row(move: _Move, new: Optimizer) -> Row:
    words = " + ".join(move.words)
    rule = move.there.rule.name if move.there else None
    step = new.state[move.here.p]["step"]
    return Row(move.here.name, rule, move.here.rule.name, words, step, move.slots)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
