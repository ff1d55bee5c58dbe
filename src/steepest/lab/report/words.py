"""Numbers and verdicts in words. Pure text: nothing here knows of HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steepest.lab.analysis import Result, Summary
from steepest.lab.statistics import Basin, Difference, Estimate

NONE = "–"


def rate(lr: float | None) -> str:
    """A learning rate: 0.5, 0.032, 3e-3, 2.5e-4."""
    if lr is None:
        return NONE
    if lr == 0 or 0.01 <= abs(lr) < 1000:
        return f"{lr:.3g}"
    mantissa, exponent = f"{lr:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def size(count: float | None) -> str:
    """Bytes in decimal units: 512 B, 8.2 KB, 1.06 MB."""
    if count is None:
        return NONE
    power = min(4, int(math.log10(count) // 3)) if count >= 1 else 0
    return f"{count / 1000**power:.3g} {('B', 'KB', 'MB', 'GB', 'TB')[power]}"


def count(number: float | None) -> str:
    """Tokens: 950, 102k, 3.5M, 1.2B."""
    if number is None:
        return NONE
    power = min(3, int(math.log10(number) // 3)) if number >= 1 else 0
    scaled = number / 1000**power
    return (
        f"{scaled:.0f}{('', 'k', 'M', 'B')[power]}"
        if scaled >= 100
        else f"{scaled:.3g}{' kMB'[power].strip()}"
    )


def duration(seconds: float | None) -> str:
    """Seconds below two minutes, then minutes, then hours."""
    if seconds is None:
        return NONE
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def milliseconds(value: float | None) -> str:
    """Milliseconds: 0.72, 14.2, 138."""
    if value is None:
        return NONE
    return f"{value:.{2 if value < 1 else 1 if value < 100 else 0}f}"


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign and a true minus: +0.021, −0.021."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def probability(p: float | None) -> str:
    """A p-value: 0.013, or <0.001."""
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def digits_for(half_width: float | None) -> int:
    """Decimals that show two significant digits of an uncertainty, from 3 to 5."""
    if not half_width:
        return 3
    return max(3, min(5, 1 - math.floor(math.log10(half_width))))


def estimate(value: Estimate | None) -> str:
    """A loss and its interval: 2.312 ± 0.015; the mean alone where one seed allows no interval."""
    if value is None:
        return NONE
    if value.half_width is None:
        return f"{value.mean:.3f}"
    return f"{value.mean:.3f} ± {value.half_width:.{digits_for(value.half_width)}f}"


def interval(value: Difference | None) -> str:
    """An interval: [−0.003, +0.004]."""
    if value is None or value.low is None or value.high is None:
        return NONE
    digits = digits_for(value.half_width)
    return f"[{signed(value.low, digits)}, {signed(value.high, digits)}]"


def factor(value: Basin | None) -> str:
    """The width of a basin: 2.6×, or ≥8× where it runs out of the tried rates."""
    if value is None:
        return NONE
    return f"{'≥' if value.open_low or value.open_high else ''}{value.factor:.2g}×"


def listing(names: Sequence[str]) -> str:
    """A, B and C."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def plain(values: Any) -> str:
    """A small mapping as text: `name cosine, warmup 20`."""
    if not isinstance(values, Mapping):
        return str(values)
    return ", ".join(f"{str(key).replace('_', ' ')} {plain(value)}" for key, value in values.items())


def titles(summary: Summary, names: Iterable[str]) -> str:
    """Optimizers by their titles, as a listing."""
    return listing([summary[name].title for name in names])


def headline(summary: Summary) -> str:
    """The verdict in a few words."""
    if not summary.leaders:
        return "No answer yet"
    if summary.winner:
        return f"{summary[summary.winner].title} trains this model best"
    return f"{titles(summary, summary.leaders)} tie for the best"


def verdict(summary: Summary, study: Mapping[str, Any]) -> list[str]:
    """The answer in two to five plain sentences: who, by how much, how sure, at what cost, and where."""
    return [*filter(None, (_who(summary), _others(summary), _cost(summary), _warning(summary), scope(study)))]


def scope(study: Mapping[str, Any]) -> str:
    """Where the verdict holds, and that it is not claimed elsewhere; the data's floor if it has one."""
    floor = study["data"].get("facts", {}).get("floor_bits_per_byte")
    end = "" if floor is None else f" No model can end below {floor:.3f} bits per byte on this data."
    return (
        f"This holds for this model ({study['model']}, {study['parameters']:,} parameters), this data "
        f"({study['data']['name']}) and runs of {count(study['tokens_per_trial'])} tokens in batches of "
        f"{study['batch']} × {study['context']}; the ranking can change with any of them.{end}"
    )


def gap(result: Result, baseline: str) -> str:
    """A difference to the baseline with its evidence."""
    difference = result.difference
    if difference is None or difference.low is None or difference.high is None:
        return ""
    digits = digits_for(difference.half_width)
    low, high = sorted((abs(difference.low), abs(difference.high)))
    side = "below" if difference.mean < 0 else "above"
    across = not difference.excludes_zero
    ends = (
        f"{signed(difference.low, digits)} to {signed(difference.high, digits)}"
        if across
        else f"{low:.{digits}f} to {high:.{digits}f}"
    )
    p = probability(result.holm_p)
    p = p.replace("<", "< ") if p.startswith("<") else f"= {p}"
    return (
        f"{abs(difference.mean):.{digits}f} nats {side} {baseline} (95% interval {ends}, "
        f"Holm-corrected p {p}, {difference.n} paired seeds)"
    )


def _who(summary: Summary) -> str:
    base = summary[summary.baseline]
    if not summary.leaders:
        reasons = [f"{r.title}: {r.reason}" for r in summary.results if r.reason]
        more = f"; and {len(reasons) - 4} more" if len(reasons) > 4 else ""
        return f"Nothing can be judged yet ({'; '.join(reasons[:4])}{more})."
    first = summary[summary.leaders[0]]
    nearest = next((r for r in summary.results if r.verdict == "worse"), None)
    if summary.winner == base.name:
        text = f"Every contender ends significantly higher than {base.title}"
        return f"{text}; the closest, {nearest.title}, {gap(nearest, base.title)}." if nearest else f"{text}."
    if first.verdict == "better":
        text = f"{first.title} ends {gap(first, base.title)}"
        rest = summary.leaders[1:]
        return f"{text}; {titles(summary, rest)} cannot be told apart from it." if rest else f"{text}."
    others = [name for name in summary.leaders if name != base.name]
    widest = max(abs(d.mean) for name in others if (d := summary[name].difference))
    within = max(1, math.ceil(widest * 1000)) / 1000
    return (
        f"No optimizer beats {base.title}: {titles(summary, others)} "
        f"{'end' if len(others) > 1 else 'ends'} within {within:.3f} nats of it, "
        f"which {base.loss.n if base.loss else 0} paired seeds cannot tell from noise."
    )


def _others(summary: Summary) -> str:
    base = summary[summary.baseline].title
    rest = [r for r in summary.results if r.name not in summary.leaders and r.difference]
    parts = []
    if summary.winner != summary.baseline:
        for verdict in ("better", "tie", "worse"):
            named = [r for r in rest if r.verdict == verdict]
            if not named:
                continue
            names, one = listing([r.title for r in named]), len(named) == 1
            gaps = [abs(r.difference.mean) for r in named if r.difference]
            spread = f"{gaps[0]:.3f}" if one else f"{min(gaps):.3f} to {max(gaps):.3f}"
            if verdict == "tie":
                parts.append(f"{names} {'ties' if one else 'tie'} with {base}")
            else:
                parts.append(f"{names} {'is' if one else 'are'} {verdict} than {base}, by {spread} nats")
    parts += [f"{r.title} failed: it {r.reason}" for r in summary.results if r.verdict == "failed"]
    return "; ".join(parts) + "." if parts and summary.leaders else ""


def _cost(summary: Summary) -> str:
    """What the lightest leader, or the winner, saves or costs beside the baseline."""
    base = summary[summary.baseline]
    names = [name for name in (summary.winner, *_lightest(summary)) if name and name != base.name]
    if not names:
        return ""
    result = summary[names[0]]
    facts = []
    if result.state_bytes is not None and base.state_bytes:
        kept = size(result.state_bytes)
        facts.append(f"keeps {kept} of optimizer state where {base.title} keeps {size(base.state_bytes)}")
    if result.step_ms and base.step_ms:
        facts.append(f"takes {result.step_ms / base.step_ms:.2f}× its time per step")
    if result.verdict == "better" and result.tokens_to_target and base.curve:
        share = result.tokens_to_target / base.curve.tokens[-1]
        facts.append(f"reaches {base.title}'s final loss after {share:.0%} of the tokens")
    return f"{result.title} {listing(facts)}." if facts else ""


def _lightest(summary: Summary) -> list[str]:
    lighter = [name for name in summary.leaders if summary[name].state_bytes is not None]
    return sorted(lighter, key=lambda name: summary[name].state_bytes or 0)


def _warning(summary: Summary) -> str:
    """What weakens the answer: missing trials, or a best rate that nothing brackets."""
    judged = [r for r in summary.results if r.verdict not in ("failed", "incomplete")]
    parts = []
    edges = [r.title for r in judged if r.sweep.edge]
    if edges:
        parts.append(f"the best learning rate of {listing(edges)} lies at the end of its grid")
    late = [f"{r.title} ({r.reason})" for r in summary.results if r.verdict == "incomplete"]
    if late and summary.leaders:
        parts.append(f"not judged yet: {listing(late)}; the same command continues the study")
    return f"Caution: {'; '.join(parts)}." if parts else ""
