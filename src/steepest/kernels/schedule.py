"""Cutting a step into passes: every element is read as few times as its reductions allow.

A sum over a tensor, a row or a column ends a pass; what follows from sums alone is computed in a fold, which
sees one tensor at a time and no elements. A pass recomputes what it needs from what is stored, or reads back
a slot that an earlier pass has stored, whichever moves fewer bytes. The largest value of a block cuts only a
block in two stages: what the second needs is kept in a buffer the size of a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from steepest.kernels.graph import INNER, SMALL, Code, Domain, Value
from steepest.kernels.trace import Untraceable

CHEAP = {"abs", "iabs", "neg", "bits", "from_bits", "and", "or", "shr", "shl", "lt", "gt", "isub", "to_float"}
"""Operations that cost less than writing their result down and reading it back."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a pass, run over one block before the next part starts.

    block: values computed once a block before its elements; keeps: values left in the buffer for a later
    stage; maxima: the block_max values that follow from this stage.
    """

    block: tuple[int, ...]
    values: tuple[int, ...]
    stores: tuple[tuple[str, int], ...]
    sums: tuple[int, ...]
    maxima: tuple[int, ...]
    keeps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pass:
    """One reading of all elements. given: values that earlier work has left in memory, by name.

    telemetry: sums reported to the user, values to be added up by name, in the first pass that knows them;
    these are no `sum` instructions.
    """

    given: Mapping[int, str]
    small: tuple[int, ...]
    stages: tuple[Stage, ...]
    telemetry: tuple[tuple[str, int], ...]
    loads: tuple[str, ...]
    stores: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Loop:
    """A run over the rows or over the columns of one tensor, inside a fold."""

    values: tuple[int, ...]
    stores: tuple[tuple[str, int], ...]
    sums: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """What is computed from sums, tensor by tensor. scalars, then loops, then the next stage of the same.

    sums: those of the pass before that it adds up.  given: as a pass has it.  keeps: scalars for later.
    """

    given: Mapping[int, str]
    sums: tuple[int, ...]
    stages: tuple[tuple[tuple[int, ...], Mapping[Domain, Loop]], ...]
    keeps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Folds and passes in the order in which they run.

    host: HOST values that the device needs, in the order of the table of constants; scalars: TENSOR values
    kept between passes, in the order of their table; vectors: ROW and COLUMN values kept in scratch memory,
    by name ("part.7" has a vector for every piece of its tensor, to be added up); bytes_moved: a
    parameter's share of what all passes read and write.
    """

    code: Code
    work: tuple[Fold | Pass, ...]
    host: tuple[int, ...]
    scalars: tuple[int, ...]
    vectors: Mapping[str, Domain]
    bytes_moved: float

    @property
    def passes(self) -> list[Pass]:
        return [w for w in self.work if isinstance(w, Pass)]


def schedule(code: Code, width: Mapping[str, float], reloadable: set[str]) -> Schedule:
    """The cheapest schedule.

    width: bytes an element of everything stored.  reloadable: outputs that hold their value exactly.
    """
    return _Scheduler(code, width, reloadable).best()


class _Scheduler:
    def __init__(self, code: Code, width: Mapping[str, float], reloadable: set[str]) -> None:
        self.code, self.width, self.reloadable = code, width, reloadable
        self.values = code.values
        self.level = self._levels(lambda v: v.op == "sum" and self.values[v.args[0]].domain in INNER)
        self.stage = self._levels(lambda v: v.op == "block_max")
        self.fold_stage = self._levels(lambda v: v.op == "sum" and self.values[v.args[0]].domain in SMALL)
        ends = [*code.outputs.values(), *code.sums.values()]
        self.needed = set(code.cone(ends, lambda i: False))
        self.large = {k: i for k, i in code.outputs.items() if self.values[i].domain in INNER}
        self.small = {k: i for k, i in code.outputs.items() if k not in self.large}
        self.element_sums = [i for i in sorted(self.needed) if self._from_elements(i)]
        stored = [self.level[i] for i in (*self.large.values(), *code.sums.values())]
        self.last = max([*stored, *(self.level[i] - 1 for i in self.element_sums)])
        for name, i in self.small.items():
            if self.values[i].domain not in (Domain.ROW, Domain.COLUMN):
                raise Untraceable(f"{name} is one number for the whole tensor; kernels keep none.")

    def _levels(self, ends: Callable[[Value], bool]) -> list[int]:
        levels: list[int] = []
        for v in self.values:
            before = max((levels[i] for i in v.args), default=0)
            levels.append(before + ends(v))
        return levels

    # ------------------------------------------------------------ where each output is stored

    def best(self) -> Schedule:
        early = [k for k, i in self.large.items() if self.level[i] < self.last and not _of_parameter(k)]
        found: list[tuple[float, int, list[Pass]]] = []
        for chosen in itertools.product((False, True), repeat=len(early)):
            at = dict.fromkeys(self.large, self.last)
            at |= {k: self.level[self.large[k]] for k, yes in zip(early, chosen, strict=True) if yes}
            passes = [self._pass(k, at) for k in range(self.last + 1)]
            if self._valid(passes, at):
                moved = sum(self.width[n] for p in passes for n in (*p.loads, *p.stores))
                found.append((moved, len(found), passes))
        moved, _, passes = min(found)
        return self._whole(passes, moved)

    def _valid(self, passes: Sequence[Pass], at: Mapping[str, int]) -> bool:
        """No pass reads the old value of what an earlier one has replaced."""
        for k, p in enumerate(passes):
            old = {self.values[i].attr for s in p.stages for i in (*s.values, *s.block) if self._reads(i, p)}
            if any(at.get(name, self.last) < k for name in old):
                return False
        return True

    def _reads(self, i: int, p: Pass) -> bool:
        return self.values[i].op == "input" and i not in p.given

    # ------------------------------------------------------------ one pass

    def _pass(self, k: int, at: Mapping[str, int]) -> Pass:
        stores = [(name, i) for name, i in self.large.items() if at[name] == k]
        sums = [i for i in self.element_sums if self.level[i] == k + 1]
        telemetry = tuple((name, i) for name, i in self.code.sums.items() if self.level[i] == k)
        given = {
            i: name
            for name, i in self.large.items()
            if at[name] < k and name in self.reloadable and self.values[i].op != "input"
        }
        ends = [i for _, i in (*stores, *telemetry)] + [self.values[i].args[0] for i in sums]

        def known(i: int) -> bool:
            return i in given or self.values[i].domain not in INNER

        cone = self.code.cone(ends, known)
        small = tuple(i for i in cone if self.values[i].domain not in INNER)
        stages = tuple(self._stages(cone, given, stores, sums, telemetry))
        read = [
            given.get(i) or self.values[i].attr for i in cone if i in given or self.values[i].op == "input"
        ]
        loads = tuple(dict.fromkeys(n for n in read if n in self.width))
        return Pass(given, small, stages, telemetry, loads, tuple(name for name, _ in stores))

    def _stages(
        self,
        cone: Sequence[int],
        given: Mapping[int, str],
        stores: Sequence[tuple[str, int]],
        sums: Sequence[int],
        telemetry: Sequence[tuple[str, int]],
    ) -> Iterator[Stage]:
        element = Domain.ELEMENT
        stage = {i: 0 if i in given else self.stage[i] for i in cone}
        count = max(stage.values(), default=0) + 1
        maxima = [i for i in cone if self.values[i].op == "block_max"]
        wanted: list[list[int]] = []
        for s in range(count):
            ends = [i for _, i in (*stores, *telemetry) if stage[i] == s]
            ends += [a for i in sums if stage[a := self.values[i].args[0]] == s]
            ends += [a for i in maxima if stage[a := self.values[i].args[0]] == s]
            wanted.append([i for i in ends if self.values[i].domain is element])
        kept: set[int] = set()
        inside: list[list[int]] = [[] for _ in range(count)]
        for s in reversed(range(count)):
            later = [i for i in kept if stage[i] == s]

            def known(i: int, s: int = s) -> bool:
                v = self.values[i]
                if i in given or v.domain is not element or v.op == "random" or v.attr == "g":
                    return True
                return v.op == "input" if s == 0 else stage[i] < s and not self._cheap(i)

            inside[s] = [
                i for i in self.code.cone([*wanted[s], *later], known) if self.values[i].domain is element
            ]
            again = {i for i in inside[s] if i in given or self.values[i].attr == "g"}
            kept |= {i for i in inside[s] if stage[i] < s and known(i)} - again
        drawn = {i for i in kept if self.values[i].op == "random"}
        kept -= {i for i in drawn if i not in inside[0]}  # noise is drawn again unless it was drawn before
        for s in range(count):
            yield Stage(
                tuple(i for i in cone if self.values[i].domain is Domain.BLOCK and stage[i] == s),
                tuple(inside[s]),
                tuple((n, i) for n, i in stores if stage[i] == s),
                tuple(i for i in sums if stage[self.values[i].args[0]] == s),
                tuple(i for i in maxima if stage[self.values[i].args[0]] == s),
                tuple(sorted(i for i in kept if stage[i] == s)),
            )

    def _cheap(self, i: int) -> bool:
        v = self.values[i]
        varying = [a for a in v.args if self.values[a].domain is Domain.ELEMENT]
        return v.op in CHEAP and len(set(varying)) == 1

    # ------------------------------------------------------------ folds between passes

    def _whole(self, passes: Sequence[Pass], moved: float) -> Schedule:
        small = {i for p in passes for i in p.small if self.values[i].domain in SMALL}
        small = {i for i in small if self.values[i].op != "input"}
        self.fold_of = {name: self._fold_of(name, i, passes) for name, i in self.small.items()}
        small |= {i for name, i in self.small.items() if self.fold_of[name] > self.level[i]}
        self._keep_for_later(small)
        names = {i: f"kept.{i}" for i in small if self.values[i].domain is not Domain.TENSOR}
        work: list[Fold | Pass] = []
        host = {i for p in passes for i in p.small if self.values[i].domain is Domain.HOST}
        for k in range(self.last + 2):
            fold = self._fold(k, small, names)
            if fold is not None:
                work.append(fold)
                cone = [i for values, loops in fold.stages for i in values]
                cone += [i for _, loops in fold.stages for loop in loops.values() for i in loop.values]
                args = {a for i in cone for a in self.values[i].args} | set(cone)
                host |= {i for i in args if self.values[i].domain is Domain.HOST}
            if k <= self.last:
                work.append(passes[k])
        self._check_small(work)
        rowsums = {
            ("sum" if self.values[i].domain is Domain.ROW else "part") + f".{i}": self.values[i].domain
            for i in self.element_sums
            if self.values[i].domain is not Domain.TENSOR
        }
        vectors = rowsums | {name: self.values[i].domain for i, name in sorted(names.items())}
        constants = tuple(sorted(i for i in host if self.values[i].op != "literal"))
        scalars = tuple(sorted(i for i in small if self.values[i].domain is Domain.TENSOR))
        return Schedule(self.code, tuple(work), constants, scalars, vectors, moved)

    def _keep_for_later(self, small: set[int]) -> None:
        """Add to `small`, what is kept, everything of earlier folds that a later fold needs."""
        for k in reversed(range(self.last + 2)):
            ends = [i for i in small if self.level[i] == k]
            ends += [i for name, i in self.small.items() if self.fold_of[name] == k]

            def known(i: int, k: int = k) -> bool:
                return self.level[i] < k or self._from_elements(i)

            earlier = [i for i in self.code.cone(ends, known) if self.level[i] < k]
            earlier = [i for i in earlier if self.values[i].domain in SMALL]
            small |= {i for i in earlier if self.values[i].op != "input"}

    def _from_elements(self, i: int) -> bool:
        v = self.values[i]
        return v.op == "sum" and self.values[v.args[0]].domain in INNER

    def _fold_of(self, name: str, i: int, passes: Sequence[Pass]) -> int:
        """The fold that stores a row or column slot: after the last pass that reads its old value."""
        read = [k for k, p in enumerate(passes) if any(self.values[j].attr == name for j in p.small)]
        return max(self.level[i], *(k + 1 for k in read)) if read else self.level[i]

    def _check_small(self, work: Sequence[Fold | Pass]) -> None:
        """A row or column slot is stored where it is computed; nothing after that may want its old value."""
        done: set[str] = set()
        for w in work:
            loops = [loop for _, loops in w.stages for loop in loops.values()] if isinstance(w, Fold) else []
            read = w.small if isinstance(w, Pass) else [i for loop in loops for i in loop.values]
            late = {self.values[i].attr for i in read if self.values[i].op == "input"} & done
            if late:
                raise Untraceable(f"the old {late.pop()} is read after the new one is stored.")
            done |= {name for loop in loops for name, _ in loop.stores if name in self.small}

    def _fold(self, k: int, kept: set[int], names: Mapping[int, str]) -> Fold | None:
        given = {i: names.get(i, "") for i in kept if self.level[i] < k}
        scalars = [i for i in kept if self.level[i] == k and self.values[i].domain is Domain.TENSOR]
        stores = [(name, i) for name, i in self.small.items() if self.fold_of[name] == k]
        stores += [(name, i) for i, name in names.items() if self.level[i] == k]
        ends = [*scalars, *(i for _, i in stores)]
        if not ends:
            return None

        def known(i: int) -> bool:
            return i in given or self.values[i].op == "input" or self._from_elements(i)

        cone = self.code.cone(ends, known)
        last = max(self.fold_stage[i] for i in cone)
        stages = []
        for stage in range(last + 1):
            scalars_here = [i for i in cone if self.values[i].domain is Domain.TENSOR and not known(i)]
            tensor = [i for i in scalars_here if self.fold_stage[i] == stage and not self._small_sum(i)]
            loops = {}
            for domain in (Domain.ROW, Domain.COLUMN):
                # A slot is replaced in the last stage: until then its old value is read.
                here = [(n, i, last if n in self.small else self.fold_stage[i]) for n, i in stores]
                own = [(n, i) for n, i, s in here if s == stage and self.values[i].domain is domain]
                sums = [i for i in cone if self._small_sum(i) and self._summed_in(i, domain, stage)]
                wanted = [i for _, i in own] + [self.values[i].args[0] for i in sums]
                if wanted:
                    loops[domain] = Loop(self._inner(wanted, domain, known), tuple(own), tuple(sums))
            stages.append((tuple(tensor), loops))
        from_pass = tuple(i for i in cone if self._from_elements(i) and i not in given)
        return Fold(given, from_pass, tuple(stages), tuple(scalars))

    def _inner(self, wanted: Sequence[int], domain: Domain, known: Callable[[int], bool]) -> tuple[int, ...]:
        return tuple(self.code.cone(wanted, lambda i: known(i) or self.values[i].domain is not domain))

    def _summed_in(self, i: int, domain: Domain, stage: int) -> bool:
        x = self.values[i].args[0]
        return self.values[x].domain is domain and self.fold_stage[x] == stage

    def _small_sum(self, i: int) -> bool:
        return self.values[i].op == "sum" and self.values[self.values[i].args[0]].domain in SMALL


def _of_parameter(name: str) -> bool:
    return name.split(".")[0] == "p"
