"""Cutting a step into passes: every element is read as few times as its reductions allow.

A sum over a tensor, a row or a column ends a pass; what follows from sums alone is computed in a fold, which
sees one tensor at a time and no elements. A pass recomputes what it needs from what is stored, or reads back
a slot that an earlier pass has stored, whichever moves fewer bytes. The largest value of a block cuts only a
block in two stages: what the second needs is kept in a buffer the size of a block.

Work is ordered by phases; a fold of phase 2k stands before pass k. Where only some rows of a tensor are here
(`cut`), sums along its rows are local, and others have to add theirs to all other sums: between a fold of
phase 2k, which needs none of these, and one of phase 2k + 1, which reads them. So they add once a pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from steepest.kernels.graph import INNER, SMALL, Code, Domain
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
    these are no `sum` instructions.  totals: the columns of its table of sums before those: its own sums over
    the tensor, and room for what the fold after it leaves.
    """

    given: Mapping[int, str]
    small: tuple[int, ...]
    stages: tuple[Stage, ...]
    telemetry: tuple[tuple[str, int], ...]
    totals: tuple[int, ...]
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
    left: sums over rows that it leaves in the table of the pass before, for others to add theirs.
    """

    given: Mapping[int, str]
    sums: tuple[int, ...]
    stages: tuple[tuple[tuple[int, ...], Mapping[Domain, Loop]], ...]
    keeps: tuple[int, ...]
    left: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Folds and passes in the order in which they run.

    host: HOST values that the device needs, in the order of the table of constants; scalars: TENSOR values
    kept between passes, in the order of their table; vectors: ROW and COLUMN values kept in scratch memory,
    by name ("part.7" has a vector for every piece of its tensor, to be added up); bytes_moved: a
    parameter's share of what all passes read and write; cut: whether others complete sums over tensors
    before a fold reads them.
    """

    code: Code
    work: tuple[Fold | Pass, ...]
    host: tuple[int, ...]
    scalars: tuple[int, ...]
    vectors: Mapping[str, Domain]
    bytes_moved: float
    cut: bool

    @property
    def passes(self) -> list[Pass]:
        return [w for w in self.work if isinstance(w, Pass)]

    @property
    def opening(self) -> tuple[int, ...]:
        """The sums that are left before the first pass: the table of which no pass makes."""
        first = self.work[0]
        return first.left if isinstance(first, Fold) else ()


def schedule(code: Code, width: Mapping[str, float], reloadable: set[str], cut: bool = False) -> Schedule:
    """The cheapest schedule.

    width: bytes an element of everything stored.  reloadable: outputs that hold their value exactly.
    cut: for tensors of which only some rows are here.
    """
    return _Scheduler(code, width, reloadable, cut).best()


class _Scheduler:
    def __init__(self, code: Code, width: Mapping[str, float], reloadable: set[str], cut: bool) -> None:
        self.code, self.width, self.reloadable, self.cut = code, width, reloadable, cut
        self.values = code.values
        self.phase = self._phases()
        self.level = [phase // 2 for phase in self.phase]
        self.stage = self._levels(lambda i: self.values[i].op == "block_max")
        self.fold_stage = self._levels(self._small_sum)
        ends = [*code.outputs.values(), *code.sums.values()]
        self.needed = set(code.cone(ends, lambda i: False))
        self.large = {k: i for k, i in code.outputs.items() if self.values[i].domain in INNER}
        self.small = {k: i for k, i in code.outputs.items() if k not in self.large}
        self.element_sums = [i for i in sorted(self.needed) if self._from_elements(i)]
        stored = [self.level[i] for i in (*self.large.values(), *code.sums.values())]
        self.last = max([*stored, *(self.level[i] - 1 for i in self.needed)])
        for name, i in self.small.items():
            if self.values[i].domain not in (Domain.ROW, Domain.COLUMN):
                raise Untraceable(f"{name} is one number for the whole tensor; kernels keep none.")

    def _levels(self, ends: Callable[[int], bool]) -> list[int]:
        levels: list[int] = []
        for i, v in enumerate(self.values):
            before = max((levels[a] for a in v.args), default=0)
            levels.append(before + ends(i))
        return levels

    def _phases(self) -> list[int]:
        """The first phase in which each value is known: elements of phases 2k and 2k + 1 in pass k."""
        phases: list[int] = []
        for i, v in enumerate(self.values):
            phase = max((phases[a] for a in v.args), default=0)
            if self._from_elements(i):
                phase = phase // 2 * 2 + (3 if self.cut and v.domain is not Domain.ROW else 2)
            elif self._completed(i):
                phase += 1 + phase % 2
            phases.append(phase)
        return phases

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
        totals = tuple(i for i in sums if self.values[i].domain is Domain.TENSOR) + self._left(2 * k + 2)
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
        ways = [tuple(self._stages(cone, given, stores, sums, telemetry, late)) for late in (True, False)]
        stages = min(ways, key=self._weight)
        read = [
            given.get(i) or self.values[i].attr for i in cone if i in given or self.values[i].op == "input"
        ]
        loads = tuple(dict.fromkeys(n for n in read if n in self.width))
        return Pass(given, small, stages, telemetry, totals, loads, tuple(name for name, _ in stores))

    def _stages(
        self,
        cone: Sequence[int],
        given: Mapping[int, str],
        stores: Sequence[tuple[str, int]],
        sums: Sequence[int],
        telemetry: Sequence[tuple[str, int]],
        late: bool,
    ) -> Iterator[Stage]:
        """late: parameters are stored in the last stage, and what only later stages need is computed there:
        long chains (a root, a quotient) run beside those of the codecs."""
        element = Domain.ELEMENT
        stage = {i: 0 if i in given else self.stage[i] for i in cone}
        count = max(stage.values(), default=0) + 1
        at = {name: count - 1 if late and _of_parameter(name) else stage[i] for name, i in stores}
        maxima = [i for i in cone if self.values[i].op == "block_max"]
        wanted: list[list[int]] = []
        for s in range(count):
            ends = [i for name, i in stores if at[name] == s] + [i for _, i in telemetry if stage[i] == s]
            ends += [a for i in sums if stage[a := self.values[i].args[0]] == s]
            ends += [a for i in maxima if stage[a := self.values[i].args[0]] == s]
            wanted.append([i for i in ends if self.values[i].domain is element])
        sooner = [
            set(self.code.cone([i for own in wanted[:s] for i in own], lambda i: False)) for s in range(count)
        ]
        kept: set[int] = set()
        inside: list[list[int]] = [[] for _ in range(count)]
        for s in reversed(range(count)):
            later = [i for i in kept if stage[i] == s]

            def known(i: int, s: int = s) -> bool:
                v = self.values[i]
                if i in given or v.domain is not element or v.op == "random" or self._still(i, late):
                    return True
                if s == 0:
                    return v.op == "input"
                return stage[i] < s and not self._cheap(i) and (i in sooner[s] or not late)

            inside[s] = [
                i for i in self.code.cone([*wanted[s], *later], known) if self.values[i].domain is element
            ]
            again = {i for i in inside[s] if i in given or self._still(i, late)}
            again |= {i for i in inside[s] if self.values[i].op == "random"}  # made where it is needed
            kept |= {i for i in inside[s] if stage[i] < s and known(i)} - again
        for s in range(count):
            yield Stage(
                tuple(i for i in cone if self.values[i].domain is Domain.BLOCK and stage[i] == s),
                tuple(inside[s]),
                tuple((n, i) for n, i in stores if at[n] == s),
                tuple(i for i in sums if stage[self.values[i].args[0]] == s),
                tuple(i for i in maxima if stage[self.values[i].args[0]] == s),
                tuple(sorted(i for i in kept if stage[i] == s)),
            )

    def _weight(self, stages: Sequence[Stage]) -> int:
        """Of ways to cut a pass in stages: how many values each element keeps, or reads of its column
        after the first stage."""
        kept = sum(len(own.keeps) for own in stages)
        late = [self.values[i].args for own in stages[1:] for i in own.values]
        return kept + sum(self.values[a].domain is Domain.COLUMN for args in late for a in args)

    def _still(self, i: int, late: bool) -> bool:
        """Whether what is stored stays as it was until the last stage, and can be read again."""
        v = self.values[i]
        return v.op == "input" and (v.attr == "g" or (late and _of_parameter(v.attr)))

    def _cheap(self, i: int) -> bool:
        """Whether to compute a value again rather than to keep it: a bit of another, or chance alone."""
        v = self.values[i]
        varying = {a for a in v.args if self.values[a].domain is Domain.ELEMENT}
        return (len(varying) == 1 and v.op in CHEAP) or self._chance(i)

    def _chance(self, i: int) -> bool:
        """Whether an element's value follows from its noise alone."""
        v = self.values[i]
        varying = [a for a in v.args if self.values[a].domain is Domain.ELEMENT]
        return v.op == "random" or (bool(varying) and all(map(self._chance, varying)))

    # ------------------------------------------------------------ folds between passes

    def _whole(self, passes: Sequence[Pass], moved: float) -> Schedule:
        small = {i for p in passes for i in p.small if self.values[i].domain in SMALL}
        small = {i for i in small if self.values[i].op != "input"}
        self.fold_of = {name: self._fold_of(name, i, passes) for name, i in self.small.items()}
        small |= {i for name, i in self.small.items() if self.fold_of[name] > self.phase[i]}
        self._keep_for_later(small)
        names = {i: f"kept.{i}" for i in small if self.values[i].domain is not Domain.TENSOR}
        work: list[Fold | Pass] = []
        host = {i for p in passes for i in p.small if self.values[i].domain is Domain.HOST}
        for phase in range(2 * self.last + 4):
            fold = self._fold(phase, small, names)
            if fold is not None:
                work.append(fold)
                cone = [i for values, loops in fold.stages for i in values]
                cone += [i for _, loops in fold.stages for loop in loops.values() for i in loop.values]
                args = {a for i in cone for a in self.values[i].args} | set(cone)
                host |= {i for i in args if self.values[i].domain is Domain.HOST}
            if phase % 2 and phase // 2 <= self.last:
                work.append(passes[phase // 2])
        self._check_small(work)
        rowsums = {
            ("sum" if self.values[i].domain is Domain.ROW else "part") + f".{i}": self.values[i].domain
            for i in self.element_sums
            if self.values[i].domain is not Domain.TENSOR
        }
        vectors = rowsums | {name: self.values[i].domain for i, name in sorted(names.items())}
        constants = tuple(sorted(i for i in host if self.values[i].op != "literal"))
        scalars = tuple(sorted(i for i in small if self.values[i].domain is Domain.TENSOR))
        return Schedule(self.code, tuple(work), constants, scalars, vectors, moved, self.cut)

    def _keep_for_later(self, small: set[int]) -> None:
        """Add to `small`, what is kept, everything of earlier folds that a later fold needs."""
        for phase in reversed(range(2 * self.last + 4)):
            ends = [i for i in small if self.phase[i] == phase]
            ends += [i for name, i in self.small.items() if self.fold_of[name] == phase]
            ends += [self.values[i].args[0] for i in self._left(phase)]

            def known(i: int, phase: int = phase) -> bool:
                return self.phase[i] < phase or self._ready(i)

            earlier = [i for i in self.code.cone(ends, known) if self.phase[i] < phase]
            earlier = [i for i in earlier if self.values[i].domain in SMALL]
            small |= {i for i in earlier if self.values[i].op != "input"}

    def _from_elements(self, i: int) -> bool:
        v = self.values[i]
        return v.op == "sum" and self.values[v.args[0]].domain in INNER

    def _completed(self, i: int) -> bool:
        """Whether a value is a sum over rows of which only some are here."""
        v = self.values[i]
        return self.cut and v.op == "sum" and self.values[v.args[0]].domain is Domain.ROW

    def _ready(self, i: int) -> bool:
        """Whether a fold is given this sum, by a pass or by what others have added."""
        return self._from_elements(i) or self._completed(i)

    def _left(self, phase: int) -> tuple[int, ...]:
        """The sums over rows that the fold of a phase leaves to be completed."""
        return tuple(i for i in sorted(self.needed) if self._completed(i) and self.phase[i] == phase + 1)

    def _fold_of(self, name: str, i: int, passes: Sequence[Pass]) -> int:
        """The fold that stores a row or column slot: after the last pass that reads its old value."""
        read = [k for k, p in enumerate(passes) if any(self.values[j].attr == name for j in p.small)]
        return max(self.phase[i], *(2 * k + 2 for k in read)) if read else self.phase[i]

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

    def _fold(self, phase: int, kept: set[int], names: Mapping[int, str]) -> Fold | None:
        given = {i: names.get(i, "") for i in kept if self.phase[i] < phase}
        scalars = [i for i in kept if self.phase[i] == phase and self.values[i].domain is Domain.TENSOR]
        stores = [(name, i) for name, i in self.small.items() if self.fold_of[name] == phase]
        stores += [(name, i) for i, name in names.items() if self.phase[i] == phase]
        left = self._left(phase)
        ends = [*scalars, *(i for _, i in stores), *(self.values[i].args[0] for i in left)]
        if not ends:
            return None

        def known(i: int) -> bool:
            return i in given or self.values[i].op == "input" or self._ready(i)

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
                sums += [i for i in left if self._summed_in(i, domain, stage)]
                wanted = [i for _, i in own] + [self.values[i].args[0] for i in sums]
                if wanted:
                    loops[domain] = Loop(self._inner(wanted, domain, known), tuple(own), tuple(sums))
            stages.append((tuple(tensor), loops))
        ready = tuple(i for i in cone if self._ready(i) and i not in given)
        return Fold(given, ready, tuple(stages), tuple(scalars), left)

    def _inner(self, wanted: Sequence[int], domain: Domain, known: Callable[[int], bool]) -> tuple[int, ...]:
        return tuple(self.code.cone(wanted, lambda i: known(i) or self.values[i].domain is not domain))

    def _summed_in(self, i: int, domain: Domain, stage: int) -> bool:
        x = self.values[i].args[0]
        return self.values[x].domain is domain and self.fold_stage[x] == stage

    def _small_sum(self, i: int) -> bool:
        """Whether a fold itself adds up what a value is."""
        return self.values[i].op == "sum" and not self._ready(i)


def _of_parameter(name: str) -> bool:
    return name.split(".")[0] == "p"
