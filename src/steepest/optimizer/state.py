"""What is remembered: which codecs, allocation, and the checks that stand before any loading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steepest.codecs import Middle, decode, pack, param_codec, part_shape, slot_codec, stored_name, unpack
from steepest.contract import Codec, Live, Rule, Shard, SteepestError, compute_dtype, expand, unknown
from steepest.placements import Placement

VERSION = 2


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter as its optimizer holds it.

    name: its own, or its place in words.  place: among all parameters.  state: None while it is frozen, or
    where another rank owns it.  local: what is here of p.  shard: which part that is, None for the whole.
    """

    name: str
    place: int
    index: int
    group: Mapping[str, Any]
    p: Tensor
    rule: Rule
    codecs: Mapping[str, Codec]
    state: dict[str, Any] | None
    local: Tensor
    shard: Shard | None = None

    def start(self) -> dict[str, Any]:
        """Its state before the first step."""
        return allocate(self.rule, self.local, self.group, self.codecs, self.p.shape)

    def shapes(self, shape: torch.Size) -> dict[str, tuple[int, ...]]:
        """What would be stored for a part of this shape, by name."""
        return stored_shapes(self.rule, shape, self.group, self.codecs, self.p.shape)

    def part(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept here of tensors that may be saved whole, by name."""
        if self.shard is None:
            return dict(saved)
        here, cut = self.shapes(self.local.shape), self.cut()
        whole = {n: x for n, x in saved.items() if n in cut and tuple(x.shape) == tuple(cut[n].shape)}
        return {**saved, **{n: x[cut[n].first :][: here[n][0]] for n, x in whole.items()}}

    def wrapped(self, placement: Placement) -> dict[str, Any]:
        """Its state, parts as torch.distributed.checkpoint knows them."""
        assert self.state is not None
        cut = {n: placement.wrap(self.state[n], of.shape, self.p) for n, of in self.cut().items()}
        return {**self.state, **cut}

    def unwrapped(self, placement: Placement, saved: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept here of a saved state, whole or in parts."""
        here = self.shapes(self.local.shape)
        return self.part({n: placement.unwrap(x, here[n]) if n in here else x for n, x in saved.items()})

    def slice(self, slot: str, value: Tensor) -> Tensor:
        """What is here of a slot's value for the whole parameter."""
        own = slot_shape(self.rule, slot, self.local.shape, self.group, self.p.shape)
        if self.shard is None or value.shape == own:
            return value
        return value[self.shard.first :][: own[0]]

    def values(self) -> dict[str, Any]:
        """Its state with each slot's value under its own name, of what is here."""
        assert self.state is not None
        means = [slot for slot, codec in self.codecs.items() if codec.name == "factored"]
        if self.shard is not None and means:
            raise SteepestError(
                f"{self.name} is cut over ranks and its {means[0]} is kept as means, which make a value only "
                "where all of them are; do this on one process, from a generation."
            )
        return decode_slots(self.state, self.codecs, self.local)

    def decoded(self, placement: Placement) -> dict[str, Any]:
        """`values`, parts as `wrapped` has them."""
        out = self.values()
        for slot in [*self.codecs][1:] if self.shard is not None else ():
            shape = slot_shape(self.rule, slot, self.p.shape, self.group, self.p.shape)
            if shape[:1] == self.p.shape[:1]:
                out[slot] = placement.wrap(out[slot], shape, self.p)
        return out

    def cut(self) -> dict[str, Shard]:
        """Which stored tensors are parts, and which ones; the others are whole on every rank."""
        if self.shard is None:
            return {}
        empty, whole = self.shapes(torch.Size((0, *self.p.shape[1:]))), self.shapes(self.p.shape)
        per = {name: whole[name][0] // max(self.p.shape[0], 1) for name in whole if empty[name][:1] == (0,)}
        return {name: Shard(torch.Size(whole[name]), self.shard.first * n) for name, n in per.items()}

    def live(self, t: int) -> Live:
        """Its hyperparameters as the rule reads them in step t."""
        return expand({name: self.group[name] for name in self.rule.hyper}, t)


def codecs_for(
    rule: Rule, p: Tensor, group: Mapping[str, Any], slots: Iterable[str], where: str
) -> dict[str, Codec]:
    """How a parameter ("p") and these of its slots are stored; a choice that cannot work is refused."""
    choice = group["state"]
    if not (choice is None or isinstance(choice, (str, Mapping))):
        raise SteepestError(
            f"{where}: state={choice!r} must be the name of a codec, or slots' names to codecs' names."
        )
    for slot in choice if isinstance(choice, Mapping) else ():
        if slot not in rule.slots:
            raise unknown(f"slot of {rule.name} in {where}", slot, rule.slots)
    hyper = vars(expand({name: group[name] for name in rule.hyper}, 1))
    shape, dtype = p.shape, compute_dtype(p)  # a DTensor's shape is the whole's
    return {
        "p": param_codec(group["param"], p.dtype, where),
        **{name: slot_codec(choice, name, rule.slots[name], shape, hyper, dtype, where) for name in slots},
    }


def allocate(
    rule: Rule,
    p: Tensor,
    group: Mapping[str, Any],
    codecs: Mapping[str, Codec],
    whole: torch.Size | None = None,
) -> dict[str, Any]:
    """A parameter's slots at their starting values, what it lacks itself (nothing yet), its step count.

    p: what is here of it.  whole: its shape, where that is a part; it decides which slots there are.
    """
    state: dict[str, Any] = {"step": 0}
    if not p.numel():
        types = {stored_name(s, part): of.dtype for s, c in codecs.items() for part, of in c.parts.items()}
        shapes = stored_shapes(rule, p.shape, group, codecs, whole or p.shape)
        return state | {n: torch.zeros(s, dtype=types[n], device=p.device) for n, s in shapes.items()}
    for name in rule.slots_for(whole or p.shape, group):
        shape = slot_shape(rule, name, p.shape, group, whole or p.shape)
        start = rule.slots[name].init
        value = group[start] if isinstance(start, str) else start
        like: dict[str, Any] = {"dtype": compute_dtype(p), "device": p.device}
        x = (
            torch.full_like(p, value, memory_format=torch.preserve_format, **like)
            if shape == p.shape
            else torch.full(shape, value, **like)
        )
        state |= encode_slot(name, codecs[name], x)
    if len(codecs["p"].parts) > 1:
        extra = encode_slot("p", codecs["p"], p.detach().to(compute_dtype(p)))
        state |= {name: value for name, value in extra.items() if name != "p"}
    return state


def slot_shape(
    rule: Rule, slot: str, shape: torch.Size, group: Mapping[str, Any], whole: torch.Size
) -> torch.Size:
    """A slot's shape for a part of this shape of a parameter: cut as the parameter is, along the first
    dimension, or the whole's where it has another one (means of columns). The whole decides which."""
    make = rule.slots[slot].shape
    own = make(whole, group) if make else whole
    return torch.Size((*shape[:1], *own[1:])) if own[:1] == whole[:1] else own


def stored_shapes(
    rule: Rule,
    shape: torch.Size,
    group: Mapping[str, Any],
    codecs: Mapping[str, Codec],
    whole: torch.Size,
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the state, for a part of this shape of a parameter with these codecs."""
    values = {s: shape if s == "p" else slot_shape(rule, s, shape, group, whole) for s in codecs}
    out = {
        stored_name(slot, part): part_shape(of, values[slot])
        for slot, codec in codecs.items()
        for part, of in codec.parts.items()
    }
    return {name: own for name, own in out.items() if name != "p"}


PIECE = 2**20
"""Elements that are encoded at a time."""


def encode_slot(name: str, codec: Codec, x: Tensor) -> dict[str, Tensor]:
    """The stored tensors of one slot at the value x. No step is taken, so nothing is left to chance."""

    def packed(own: Tensor) -> dict[str, Tensor]:
        encoded = codec.encode(own, Middle()).items()
        return {stored_name(name, part): pack(value, codec.parts[part], own.shape) for part, value in encoded}

    whole = {"row", "column"} & {part.per for part in codec.parts.values()}
    if not codec.lossy or whole or x.dim() < 2 or x.numel() <= PIECE:
        return packed(x)
    # A few rows at a time: encoding takes several times what it encodes.
    rows = max(1, PIECE // (x.numel() // len(x)))
    pieces = [packed(own) for own in x.split(rows)]
    return {part: torch.cat([piece[part] for piece in pieces]) for part in pieces[0]}


def decode_slots(state: Mapping[str, Any], codecs: Mapping[str, Codec], p: Tensor) -> dict[str, Any]:
    """A parameter's state with each slot decoded, under its own name."""
    out: dict[str, Any] = {"step": state["step"]}
    for name, codec in codecs.items():
        if name != "p":
            parts = {stored_name(name, part): of for part, of in codec.parts.items()}
            out[name] = decode(codec, name, {n: unpack(state[n], of, p.shape) for n, of in parts.items()})
    return out


def slots_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a parameter's state, without its step count."""
    return {name: value for name, value in state.items() if name != "step"}


def slot_names(rule: Rule, state: Mapping[str, Any]) -> tuple[str, ...]:
    """The slots that a state holds, in the rule's order."""
    held = {name.partition(".")[0] for name in state}
    return tuple(name for name in rule.slots if name in held)


def describe_codecs(codecs: Mapping[str, Codec]) -> str:
    """In words: "m int8, v fp8, p split24"."""
    return ", ".join(f"{name} {codecs[name].name}" for name in (*list(codecs)[1:], "p"))


def match(
    state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], name_of: Callable[[int, int], str]
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(group, place in it, saved entry) for every own parameter that has one, numbers and order checked.

    name_of: what to call a parameter, from its group and its place there.
    """
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(groups):
        raise SteepestError(
            f"the saved state has {len(saved_groups)} parameter groups, this optimizer {len(groups)}."
        )
    for g, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        if "steepest" in saved and saved.get("rule") != group["rule"]:
            raise SteepestError(
                f"group {g}: the saved state is of {saved.get('rule')!r}, "
                f"this optimizer runs {group['rule']!r}."
            )
        order = order_of(saved, group, f"group {g}")
        for i, (p, at) in enumerate(zip(group["params"], order, strict=True)):
            facts = saved.get("steepest", {"shapes": None, "frozen": [at]})
            if facts["shapes"] is not None and facts["shapes"][at] != list(p.shape):
                raise SteepestError(
                    f"{name_of(g, i)}: saved with shape {facts['shapes'][at]}, here it is {list(p.shape)}."
                )
            theirs = state_dict["state"].get(saved["params"][at])
            if theirs is not None:
                yield g, i, theirs
            elif at not in facts["frozen"]:
                raise SteepestError(
                    f"{name_of(g, i)}: the saved state lacks this parameter's entry; it is damaged."
                )


def order_of(saved: Mapping[str, Any], own: Mapping[str, Any], where: str) -> list[int]:
    """For each own parameter of a group, its position in the saved one: by name if both have names."""
    theirs, ours = saved.get("param_names"), own.get("param_names")
    if len(saved["params"]) != len(own["params"]):
        raise SteepestError(
            f"{where}: the saved state has {len(saved['params'])} parameters, "
            f"this optimizer {len(own['params'])}."
        )
    if theirs is None or ours is None:
        return list(range(len(own["params"])))
    missing = [name for name in ours if name not in theirs]
    if missing:
        extra = [name for name in theirs if name not in ours]
        raise SteepestError(
            f"{where}: the saved state has no parameter {missing[0]!r}; it has {extra[0]!r} instead."
        )
    return [list(theirs).index(name) for name in ours]


def compare_codecs(
    name: str, theirs: Mapping[str, Codec], own: Mapping[str, Codec], saved: Mapping[str, Any]
) -> None:
    """Raise, naming both sides, where a saved group's choice stores a parameter in another way."""
    for slot, codec in own.items():
        if theirs[slot].name != codec.name:
            option = "param" if slot == "p" else "state"
            kept = "the parameter" if slot == "p" else slot
            raise SteepestError(
                f"{name}: saved with {kept} as {theirs[slot].name}, this optimizer keeps {codec.name}; "
                f"build it with {option}={saved[option]!r}."
            )


def compare(name: str, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise, naming both sides, unless a saved parameter state fits: same slots, shapes and types."""
    if set(saved) != set(own):
        raise SteepestError(
            f"{name}: the saved state holds {_list(saved)}, this optimizer keeps {_list(own)}; "
            "build it with the rule and options it was saved with."
        )
    for slot, tensor in slots_of(own).items():
        other = saved[slot]
        if not isinstance(other, Tensor) or other.shape != tensor.shape or other.dtype != tensor.dtype:
            raise SteepestError(
                f"{name}: saved slot {slot} is {_describe(other)}, this optimizer's is {_describe(tensor)}."
            )


def _list(state: Mapping[str, Any]) -> str:
    return ", ".join(sorted(state)) or "nothing"


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{'x'.join(map(str, value.shape)) or 'scalar'} {str(value.dtype).removeprefix('torch.')}"
