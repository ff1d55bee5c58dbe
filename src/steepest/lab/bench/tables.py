"""The record as tables in Markdown, and the page that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from steepest.contract import SteepestError
from steepest.lab.bench.cores import FAR
from steepest.lab.bench.race import ratio, ratios

START, END = "<!-- table: python bench/step.py -->", "<!-- end of table -->"

ENOUGH = 3
"""Rounds of a kind that make a figure."""

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
        f"torch {record['versions']['torch']}, {record['date']}; "
        f"median (least) of up to {record['rounds']} rounds."
    )
    later = sorted({name for update in record.get("updates", []) for name in update["cases"]})
    if later:
        count = f"{len(later)} of {len(record['cases'])}"
        about += f" {count} cases are of later runs, each whole; some had more rounds."
    parts = (rules, storages, special, apart, alone, missing)
    return "\n\n".join([about, *filter(None, (part(record) for part in parts))]) + "\n"


def timed(case: Record, group: str) -> list[Record]:
    """Those of a group who ran."""
    return [r for r in case["racers"] if r["group"] == group and "ms" in r]


def share(case: Record, ours: Record | None) -> float | None:
    """Of the memory bound: the time that the case's bytes take at the bandwidth of `a += b` in the same
    rounds, by the time that this racer took."""
    probe = next((r for r in timed(case, "probe") if r["name"] == "a += b"), None)
    if probe is None or ours is None:
        return None
    return ratio(probe, ours) * case["bytes"] / float(probe["bytes"])


def own(case: Record, group: str = "update") -> Record | None:
    """Ours of a group."""
    return next((r for r in timed(case, group) if r["by"] == "steepest"), None)


def fastest(case: Record, group: str = "update") -> Record | None:
    """The peer of a group that is the least behind ours, round by round; without ours, the least median."""
    peers, ours = [r for r in timed(case, group) if r["by"] != "steepest"], own(case, group)
    return min(peers, key=lambda r: ratio(r, ours) if ours else r["median_ms"], default=None)


def rules(record: Record) -> str:
    """A row a rule, in fp32: the update alone against the memory bound and the fastest peer."""
    rows = [
        (
            case["title"],
            _each(case),
            _ms(own(case)),
            _share(case),
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
            _share(case),
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
    rows = [
        (what, _ms(ours), against, _ms(other), _ratio(other, ours))
        for case in record["cases"]
        for what, ours, against, other in _special(case)
        if ours and other
    ]
    return _table("### Special cases\n", ("case", "ours ms", "against", "ms", "times ours"), rows)


def _special(case: Record) -> Iterable[tuple[str, Record | None, str, Record | None]]:
    if case["small"]:
        for peer in timed(case, "update")[1:]:
            yield case["name"], own(case), peer["name"], peer
    elif clipped := fastest(case, "clipped"):
        against = f"{clipped['name']} behind clip_grad_norm_"
        yield f"{case['name']}, clip and check", own(case, "clipped"), against, clipped
    yield f"{case['name']}, telemetry", own(case, "telemetry"), "without it", own(case)


def apart(record: Record) -> str:
    """Ratios by where the cores lay, for cases that had `ENOUGH` rounds of both kinds."""
    rows = []
    for case in record["cases"]:
        if (ours := own(case)) is None:
            continue
        for against, other in _opponents(case):
            told = [(case["hand_over_ns"][turn], times) for turn, times in ratios(other, ours).items()]
            near = [times for ns, times in told if ns and ns < FAR]
            far = [times for ns, times in told if ns and ns >= FAR]
            if min(len(near), len(far)) >= ENOUGH:
                found = (f"{median(x):.2f} ({len(x)})" for x in (near, far))
                rows.append((case["name"], against, *found))
    head = ("case", "against", "times ours, cores side by side (rounds)", "far apart")
    return _table("### By where the cores lie\n", head, rows)


def _opponents(case: Record) -> Iterable[tuple[str, Record]]:
    """Whom our update of a case is compared with, where it was recorded how far apart the cores were."""
    if "hand_over_ns" not in case:
        return
    for named, group in (("its own fp32", "baseline"), ("itself with telemetry", "telemetry")):
        if mine := own(case, group):
            yield named, mine
    peers = timed(case, "update")[1:] if case["small"] else [fastest(case)]
    yield from ((peer["name"], peer) for peer in peers if peer)


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


def _ms(racer: Record | None) -> str:
    """The median, and in brackets the least."""
    return "" if racer is None else f"{_digits(racer['median_ms'])} ({_digits(racer['min_ms'])})"


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratio(a: Record | None, b: Record | None) -> str:
    return f"{ratio(a, b):.2f}" if a and b else ""


def _share(case: Record) -> str:
    of_bound = share(case, own(case))
    return "" if of_bound is None else f"{of_bound:.0%}"


def _against(ours: Record | None, peer: Record | None) -> tuple[str, str, str]:
    return ("", "", "") if peer is None else (peer["name"], _ms(peer), _ratio(peer, ours))


def _seconds(row: Record, key: str) -> str:
    return f"{row[key]:.2f}"


def _megabytes(row: Record) -> str:
    return f"{row['temporary_bytes'] / 1e6:.1f}" if "temporary_bytes" in row else ""
