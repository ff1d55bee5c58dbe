"""One parameter's slots in another rule, codec or scale, by what the slots remember."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from steepest.codecs import decode, stored_name, unpack
from steepest.contract import SteepestError, compute_dtype
from steepest.ops import mean_to
from steepest.optimizer.state import Held, encode_slot, slot_shape
from steepest.rules.adafactor import roots

Notes: TypeAlias = dict[str, str]
"""By slot, what happened to it, in words."""

TINY = 1e-30
"""Below any mean of squares that counts."""


def same_form(here: Held, there: Held, slot: str) -> bool:
    """Whether a slot that both keep is stored in the same way, so that its bits can go on."""
    return here.codecs[slot] is there.codecs[slot] and _shape(here, slot) == _shape(there, slot)


def transfer(here: Held, there: Held, notes: Notes, *, zero_m: bool, factor: float) -> dict[str, Any]:
    """The stored tensors that go on under the same rule. zero_m: averages of gradients and of updates do not.
    factor: of second moments. Slots that are missing start fresh."""
    out: dict[str, Any] = {}
    for slot in [*here.codecs][1:]:
        of = here.rule.slots[slot].of
        if slot not in there.codecs:
            notes[slot] = "started fresh: the old stage did not keep it"
        elif zero_m and of in ("gradient", "update"):
            notes[slot] = "zeroed"
        elif _shape(here, slot) != _shape(there, slot):
            notes[slot] = "started fresh: it has another shape"
        elif of == "square" and factor != 1.0:
            out |= encode_slot(slot, here.codecs[slot], _fit(_values(there)[slot] * factor, here))
            notes[slot] = f"times {factor:.3g}"
        else:
            out |= _same(here, there, slot, notes)
    return out


def convert(here: Held, there: Held, notes: Notes) -> dict[str, Any]:
    """The stored tensors and the step count that go on under another rule.

    A slot is filled from one that remembers the same: with the old value times what the new slot holds of a
    constant gradient after so many steps, relative to the old one. So an average that has not seen enough to
    forget its zero stays as biased as its new rule takes it to be, and a sum becomes an average. An
    "update" has meaning in its own rule alone. Where a second moment has nothing to be filled from, all slots
    and the step count start fresh: zero under an old step count would be taken for tiny gradients.
    """
    assert there.state is not None
    taken, values = there.state["step"], _values(there)
    found = {slot: _source(here, there, slot, values) for slot in [*here.codecs][1:]}
    lost = [slot for slot, source in found.items() if source is None and here.rule.slots[slot].of == "square"]
    if not taken or lost:
        why = f"{there.rule.name} has nothing for {lost[0]}" if taken else "the old stage took no step"
        notes |= dict.fromkeys(found, f"started fresh: {why}")
        return {"step": 0}
    out: dict[str, Any] = {"step": taken}
    for slot, source in found.items():
        if source is None:
            notes[slot] = f"started fresh: {there.rule.name} has nothing for it"
            continue
        name, value = source
        scale = _held(here, slot, taken) / _held(there, name, taken)
        if scale == 1.0 and slot == name and slot in there.codecs and same_form(here, there, slot):
            out |= _same(here, there, slot, notes)
            continue
        out |= encode_slot(slot, here.codecs[slot], _fit(value * scale, here))
        was = f"{name} {there.codecs[name].name}"
        times = f", times {scale:.3g}" if scale != 1.0 else ""
        notes[slot] = f"from {there.rule.name}'s {was}, as {here.codecs[slot].name}{times}"
    return out


def param_bits(here: Held, there: Held, notes: Notes) -> dict[str, Tensor]:
    """What a low-precision parameter keeps beside itself, if it is the same parameter as before."""
    old, new = there.codecs["p"], here.codecs["p"]
    assert there.state is not None
    if len(old.parts) == 1 or here.local.dtype != there.local.dtype:
        return {}
    if len(new.parts) == 1 or not torch.equal(here.local, there.local):
        notes["p"] = "lower bits dropped"
        return {}
    held = {"p": there.local.detach(), **there.state}
    parts = {stored_name("p", part): of for part, of in old.parts.items()}
    if old is new:
        notes["p"] = "lower bits kept"
        return {name: held[name].detach().to(here.local.device, copy=True) for name in parts if name != "p"}
    notes["p"] = f"lower bits from {old.name}, as {new.name}"
    master = decode(old, "p", {name: unpack(held[name], of, here.local.shape) for name, of in parts.items()})
    upper = encode_slot("p", new, master)["p"]
    # The parameter itself must stay: where the other codec rounds a tie the other way, nothing is below it.
    master = torch.where(upper == here.local, master, here.local.to(master.dtype))
    return {name: x for name, x in encode_slot("p", new, master).items() if name != "p"}


def _source(here: Held, there: Held, slot: str, values: dict[str, Tensor]) -> tuple[str, Tensor] | None:
    """(slot of the old rule, its value in the new slot's shape)."""
    of, shape = here.rule.slots[slot].of, _shape(here, slot)
    if here.rule.name == there.rule.name and slot in values and values[slot].shape == shape:
        return slot, values[slot]
    like = [name for name in values if of not in (None, "update") and there.rule.slots[name].of == of]
    if not like:
        return None
    value = values[like[0]]
    if value.shape == shape:
        return like[0], value
    if here.shard is not None:
        raise SteepestError(
            f"{here.name} is cut over ranks, and {slot} is to come from means over all of it; use 'fresh' "
            "here, or convert on one process."
        )
    if value.shape != there.local.shape:
        row, column = roots(value, values[like[1]], TINY)
        value = (row * column) ** 2
    if value.shape != shape:
        value = mean_to(value, torch.empty(shape, device="meta"))
    return like[0], value


def _values(held: Held) -> dict[str, Tensor]:
    decoded = held.values()
    del decoded["step"]
    return decoded


def _shape(held: Held, slot: str) -> torch.Size:
    there = slot in held.rule.slots_for(held.p.shape, held.group)
    own, whole = held.local.shape, held.p.shape
    return slot_shape(held.rule, slot, own, held.group, whole) if there else own


def _held(held: Held, slot: str, taken: int) -> float:
    """What a slot holds of a constant 1 after so many steps."""
    declared = held.rule.slots[slot]
    return declared.held(held.live(taken)) if declared.of in ("gradient", "square") else 1.0


def _same(here: Held, there: Held, slot: str, notes: Notes) -> dict[str, Any]:
    """A slot as it is: its bits where both store it alike, else its value."""
    old, new = there.codecs[slot], here.codecs[slot]
    if same_form(here, there, slot):
        assert there.state is not None
        notes[slot] = "kept"
        names = [stored_name(slot, part) for part in old.parts]
        return {name: there.state[name].detach().to(here.local.device, copy=True) for name in names}
    notes[slot] = f"kept, {old.name} -> {new.name}"
    return encode_slot(slot, new, _fit(_values(there)[slot], here))


def _fit(value: Tensor, here: Held) -> Tensor:
    return value.to(device=here.local.device, dtype=compute_dtype(here.local), copy=True)
