"""The record as tables in Markdown, and the page that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from steepest.contract import SteepestError
from steepest.lab.bench.race import medians

START, END = "<!-- table: python bench/step.py -->", "<!-- end of table -->"

Record = Mapping[str, Any]


def page(record: Record, text: str) -> str:
    """The page `text` with the tables of this record between its two marks."""
    if text.count(START) != 1 or END not in text.partition(START)[2]:
        raise SteepestError(f"the page needs the marks {START!r} and {END!r}, in this order, once.")
    before, _, rest = text.partition(START)
    return f"{before}{START}\n\n{tables(record)}\n{END}{rest.partition(END)[2]}"


def tables(record: Record) -> str:
    """Everything: rules in fp32, storages, special cases, first steps and memory, what was refused."""
    named = record["machine"]
    about = (
        f"{record['model']}: {record['tensors']} tensors, {record['parameters'] / 1e6:.1f}M parameters; "
        f"{named['cpu'] if named['device'] == 'cpu' else named['device']}, {named['threads']} threads, "
        f"torch {record['versions']['torch']}, {record['date']}; medians of up to {record['rounds']} rounds."
    )
    sections = (rules(record), storages(record), special(record), alone(record), missing(record))
    return "\n\n".join([about, *filter(None, sections)]) + "\n"


def bandwidth(case: Record) -> float | None:
    """GB/s of `a += b`, timed in the same rounds as the case."""
    (probe,) = [r for r in case["racers"] if r["name"] == "a += b"] or [{}]
    return probe["bytes"] / probe["median_ms"] / 1e6 if "ms" in probe else None


def bound(case: Record) -> float | None:
    """Milliseconds that the case's bytes take at that bandwidth."""
    speed = bandwidth(case)
    return speed and case["bytes"] / speed / 1e6


def own(case: Record, group: str = "update") -> float | None:
    """Our median of a group, in ms."""
    return next((ms for (_, by), ms in medians(case, group).items() if by == "steepest"), None)


def fastest(case: Record, group: str = "update") -> tuple[str, float] | None:
    """The fastest peer of a group and its median in ms."""
    others = {name: ms for (name, by), ms in medians(case, group).items() if by != "steepest"}
    return min(others.items(), key=lambda item: item[1]) if others else None


def rules(record: Record) -> str:
    """A row a rule, in fp32: the update alone against the memory bound and the fastest peer."""
    rows = [
        (
            case["title"],
            _each(case),
            _ms(own(case)),
            _share(bound(case), own(case)),
            _ms(own(case, "step")),
            *_against(own(case), fastest(case)),
        )
        for case in record["cases"]
        if case["storage"] == "fp32" and not case["small"] and case["racers"]
    ]
    return _table(
        "### Rules\n",
        (
            "rule",
            "bytes a parameter",
            "ms",
            "of the bound",
            "whole step ms",
            "fastest peer",
            "ms",
            "times ours",
        ),
        rows,
    )


def storages(record: Record) -> str:
    """A row a rule and storage: against the bound, its own fp32, and the fastest peer with the like."""
    rows = [
        (
            case["title"],
            f"`{case['storage']}`",
            _each(case),
            f"{case['state_bytes'] / case['parameters']:.2f}",
            _ms(own(case)),
            _share(bound(case), own(case)),
            _ratio(own(case), own(case, "baseline")),
            *_against(own(case), fastest(case)),
        )
        for case in record["cases"]
        if case["storage"] != "fp32" and own(case) is not None
    ]
    head = (
        "rule",
        "storage",
        "bytes a parameter",
        "of them state kept",
        "ms",
        "of the bound",
        "by fp32's ms",
    )
    return _table("### Storages\n", (*head, "fastest peer", "ms", "times ours"), rows)


def special(record: Record) -> str:
    """Clipping with its check, many small tensors, telemetry: ours beside what it is compared with."""
    rows = [row for case in record["cases"] for row in _special(case)]
    return _table("### Special cases\n", ("case", "ours ms", "against", "ms", "by ours"), rows)


def _special(case: Record) -> Iterable[tuple[str, ...]]:
    if case["small"]:
        for (name, by), ms in medians(case, "update").items():
            if by != "steepest":
                yield case["name"], _ms(own(case)), name, _ms(ms), _ratio(ms, own(case))
    elif (clipped := fastest(case, "clipped")) and own(case, "clipped"):
        name = f"{clipped[0]} behind clip_grad_norm_"
        ours = own(case, "clipped")
        yield f"{case['name']}, clip and check", _ms(ours), name, _ms(clipped[1]), _ratio(clipped[1], ours)
    if own(case, "telemetry") is not None:
        off, on = own(case), own(case, "telemetry")
        yield f"{case['name']}, telemetry", _ms(on), "without it", _ms(off), _ratio(off, on)


def alone(record: Record) -> str:
    """A row a case that was measured in fresh processes."""
    memory = {row["name"]: row for row in record["memory"]}
    rows = [
        (
            row["name"],
            _seconds(row, "cold_s"),
            _seconds(row, "warm_s"),
            _megabytes(memory.get(row["name"], {})),
        )
        for row in record["first_step"]
        if "error" not in row
    ]
    head = ("case", "first step s, cold", "with a warm cache", "temporary memory MB")
    return _table("### First step and memory\n", head, rows)


def missing(record: Record) -> str:
    """What could not be measured, with the reason; reasons that several share stand once."""
    why: dict[str, list[str]] = {}
    for case in record["cases"]:
        for entry in (case, *case["racers"]):
            if "error" in entry:
                who = case["name"] + (f" by {entry['by']} ({entry['name']})" if "by" in entry else "")
                why.setdefault(entry["error"], []).append(who)
    for row in (*record["first_step"], *record["memory"]):
        if "error" in row:
            why.setdefault(row["error"], []).append(row["name"])
    rows = [(_listed(who), reason.replace("|", "/")) for reason, who in why.items()]
    return _table("### Not measured\n", ("what", "why"), rows)


def _listed(names: Sequence[str]) -> str:
    once = [*dict.fromkeys(names)]
    return ", ".join(once[:3]) + (f" and {len(once) - 3} more" if len(once) > 3 else "")


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    numbers = [all(row[i][:1].isdigit() or not row[i] for row in rows) for i in range(len(head))]
    rule = ["---:" if number else "---" for number in numbers]
    return title + "\n" + "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _each(case: Record) -> str:
    return f"{case['bytes'] / case['parameters']:.1f}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratio(a: float | None, b: float | None, show: Callable[[float], str] = "{:.2f}".format) -> str:
    return show(a / b) if a and b else ""


def _share(a: float | None, b: float | None) -> str:
    return _ratio(a, b, "{:.0%}".format)


def _against(ours: float | None, peer: tuple[str, float] | None) -> tuple[str, str, str]:
    return ("", "", "") if peer is None else (peer[0], _ms(peer[1]), _ratio(peer[1], ours))


def _seconds(row: Record, key: str) -> str:
    return f"{row[key]:.2f}"


def _megabytes(row: Record) -> str:
    return f"{row['temporary_bytes'] / 1e6:.1f}" if "temporary_bytes" in row else ""
