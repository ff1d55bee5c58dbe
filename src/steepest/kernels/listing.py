"""A schedule as people read it: what each pass reads, computes and writes, in the notation of the rules."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from steepest.kernels.graph import INNER, Domain, Value
from steepest.kernels.schedule import Fold, Pass, Schedule, Stage

INFIX = {
    **{"add": "+", "sub": "-", "mul": "*", "div": "/", "iadd": "+", "isub": "-", "imul": "*"},
    **{"and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>", "band": "and", "bor": "or"},
    **{"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="},
}
HOST = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.pow: "**",
    operator.lt: "<",
    operator.gt: ">",
    operator.ne: "!=",
}


class Listing:
    """Expressions for values; one that is used once stands where it is used."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.values = schedule, schedule.code.values
        self.names = {i: name for name, i in schedule.code.inputs.items()}
        self.names |= {i: f"{name}'" for name, i in schedule.code.outputs.items() if i not in self.names}

    def text(self) -> str:
        lines = [*self._host()]
        for number, work in enumerate(self.schedule.work):
            lines += self._pass(number, work) if isinstance(work, Pass) else self._fold(number, work)
        return "\n".join(lines) + "\n"

    # ------------------------------------------------------------ expressions

    def name(self, i: int) -> str:
        v = self.values[i]
        if v.op == "literal":
            return f"{v.attr:g}" if isinstance(v.attr, float) else str(v.attr)
        return self.names.get(i, f"{'h' if v.domain is Domain.HOST else 'x'}{i}").removeprefix("h.")

    def expression(self, i: int, inline: set[int]) -> str:
        """What computes a value; operands in `inline` are written out."""
        v = self.values[i]
        args = [self.expression(a, inline) if a in inline else self.name(a) for a in v.args]
        sign = INFIX.get(v.op) or (HOST.get(v.attr[0]) if v.op == "host" else None)
        if sign:
            return f" {sign} ".join(f"({a})" if " " in _outside(a) else a for a in args)
        if v.op == "host":
            op, names = v.attr
            plain = len(args) - len(names)
            given = [*args[:plain], *(f"{n}={a}" for n, a in zip(names, args[plain:], strict=True))]
            return f"{op.__name__.strip('_')}({', '.join(given)})"
        if v.op == "sum":
            return f"sum({args[0]}) over {self._over(v)}"
        if v.op == "random":
            return f"random bits({v.attr})"
        return f"{v.op}({', '.join(args)})"

    def _over(self, v: Value) -> str:
        given = self.values[v.args[0]].domain
        inner = {Domain.ROW: "the row", Domain.COLUMN: "the column", Domain.TENSOR: "the tensor"}
        small = {Domain.ROW: "all rows", Domain.COLUMN: "all columns"}
        return inner[v.domain] if given in INNER else small[given]

    def statements(self, values: Sequence[int], kept: Iterable[int], indent: int) -> Iterator[str]:
        """One line for each value that is kept or used more than once here."""
        computed = [i for i in values if self.values[i].op not in ("input", "literal")]
        uses = Counter(a for i in computed for a in self.values[i].args)
        stay = set(kept) | {i for i in computed if uses[i] != 1}
        inline = set(computed) - stay
        for i in computed:
            if i not in inline:
                yield f"{' ' * indent}{self.name(i)} = {self.expression(i, inline)}"

    # ------------------------------------------------------------ the parts

    def _host(self) -> Iterator[str]:
        cone = self.schedule.code.cone(self.schedule.host, lambda i: False)
        if any(self.values[i].op == "host" for i in cone):
            yield "once a step, on the host:"
            yield from self.statements(cone, self.schedule.host, 4)
            yield ""

    def _pass(self, number: int, work: Pass) -> Iterator[str]:
        yield f"pass {number}: reads {', '.join(work.loads)}; writes {', '.join(work.stores) or 'nothing'}"
        for i, name in work.given.items():
            self.names[i] = name
        for stage in work.stages:
            yield from self._stage(stage, work)
        yield ""

    def _stage(self, stage: Stage, work: Pass) -> Iterator[str]:
        reported = {i: name for name, i in work.telemetry}
        block = [i for i in stage.block if self.values[i].op != "input"]
        if block:
            yield "    once a block:"
            yield from self.statements(block, block, 8)
        later = [i for s in work.stages for i in s.values if s is not stage]
        shown = [i for i in stage.values if i not in work.given and not self._seen(i, stage, work)]
        summed = [self.values[i].args[0] for i in (*stage.sums, *stage.maxima)]
        kept = {*(i for _, i in stage.stores), *stage.keeps, *summed, *(set(later) & set(shown)), *reported}
        yield "    for every element:"
        yield from self.statements(shown, kept, 8)
        for i in stage.sums:
            v = self.values[i]
            yield f"        {self.name(i)} += {self.name(v.args[0])}  over {self._over(v)}"
        for i in (x for x in reported if x in stage.values):
            yield f"        report {reported[i]} += {self.name(i)}"

    def _seen(self, i: int, stage: Stage, work: Pass) -> bool:
        before = work.stages[: work.stages.index(stage)]
        return any(i in s.keeps for s in before)

    def _fold(self, number: int, work: Fold) -> Iterator[str]:
        yield f"fold {number}: once a tensor"
        for scalars, loops in work.stages:
            yield from self.statements(scalars, {*scalars} & {*work.keeps} or scalars[-1:], 4)
            yield from self._loops(loops, work)
        yield ""

    def _loops(self, loops: Mapping, work: Fold) -> Iterator[str]:
        for domain, loop in loops.items():
            yield f"    for every {domain.name.lower()}:"
            own = [i for i in loop.values if self.values[i].domain is domain and i not in work.sums]
            kept = {i for _, i in loop.stores} | {self.values[i].args[0] for i in loop.sums}
            yield from self.statements([i for i in own if i not in work.given], kept, 8)
            for i in loop.sums:
                yield f"        {self.name(i)} += {self.name(self.values[i].args[0])}"


def _outside(text: str) -> str:
    """What stands outside all brackets."""
    depth, out = 0, []
    for character in text:
        depth -= character == ")"
        out.append(character if not depth else "")
        depth += character == "("
    return "".join(out)


def listing(schedule: Schedule) -> str:
    """The readable form of a schedule."""
    return Listing(schedule).text()
