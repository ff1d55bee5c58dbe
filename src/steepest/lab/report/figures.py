"""The report's figures as plain Plotly JSON: `{"data": [...], "layout": {...}}`.

Pure functions of a `Summary`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from statistics import median
from typing import Literal

from steepest.lab.analysis import Curve, Result, Summary
from steepest.lab.report import words
from steepest.lab.report.canvas import GRID, INK, MUTED, PAPER, Figure, figure, series_colour, shape

HEIGHT, TOP, BOTTOM, LINE = 400, 12, 46, 15
"""Pixels: a loss figure, its margins, and the least distance between two labels."""


def colours(summary: Summary) -> dict[str, str]:
    """One colour per optimizer for the whole page; the baseline is always the ink."""
    others = sorted(result.name for result in summary.results if result.name != summary.baseline)
    return {summary.baseline: INK} | {n: series_colour(i) for i, n in enumerate(others)}


def figures(summary: Summary) -> dict[str, Figure]:
    """Every figure of the page by the id of its place."""
    found = {
        "difference": difference(summary),
        "loss-tokens": loss(summary, "tokens"),
        "loss-seconds": loss(summary, "seconds"),
        "memory": memory(summary),
        "time": time(summary),
    }
    panels = sensitivity(summary)
    return found | {f"sweep-{index}": panel for index, panel in enumerate(panels.values())}


def ceiling(values: Iterable[float]) -> float:
    """The highest loss worth drawing to scale: eight times as far from the best as the median is."""
    known = sorted(values)
    return known[0] + max(0.05, 8 * (median(known) - known[0]))


def shown(summary: Summary) -> list[Result]:
    """The optimizers with a mean curve over every seed, best first."""
    return [result for result in summary.results if result.loss and result.curve]


def hidden(summary: Summary) -> list[Result]:
    """The optimizers whose final loss lies above the loss figures."""
    drawn = shown(summary)
    top = _top(summary, drawn) if drawn else math.inf
    return [result for result in drawn if _curve(result).mean[-1] > top]


def loss(summary: Summary, axis: Literal["tokens", "seconds"]) -> Figure:
    """Mean validation loss over seeds with its 95% band, labelled at the right, clipped at the top."""
    drawn = shown(summary)
    if not drawn:
        return figure([], xaxis={}, yaxis={})
    tone = colours(summary)
    top = _top(summary, drawn)
    low = min(min(_curve(result).low) for result in drawn)
    bottom = low - 0.06 * (top - low)
    end = max(getattr(_curve(result), axis)[-1] for result in drawn)
    data, shapes, notes = [], [], []
    labels = spread([_scale(_curve(r).mean[-1], bottom, top) for r in drawn], HEIGHT - TOP - BOTTOM, LINE)
    for result, label in zip(drawn, labels, strict=True):
        curve, colour = _curve(result), tone[result.name]
        x = getattr(curve, axis)
        strong = result.name in (*summary.leaders, summary.baseline)
        data += [_band(x, curve, colour), _line(result, x, colour, strong, axis)]
        y = bottom + (top - bottom) * (1 - label / (HEIGHT - TOP - BOTTOM))
        last = curve.mean[-1]
        if last <= top:
            line = {"color": colour, "width": 0.8}
            shapes.append(shape("line", x[-1], end * 1.03, last, y, line=line, opacity=0.6))
        arrow = "↑ " if last > top else ""
        text = f"{arrow}{escape(result.title)} {last:.3f}"
        notes.append(
            {
                "text": text,
                "x": end * 1.03,
                "y": y,
                "xanchor": "left",
                "showarrow": False,
                "font": {"color": colour, "size": 12, "weight": 700 if strong else 400},
            }
        )
    if summary.target is not None:
        line = {"color": MUTED, "width": 1, "dash": "dot"}
        shapes.append(shape("line", 0, end, summary.target, summary.target, line=line, layer="below"))
    title = "tokens seen" if axis == "tokens" else "training seconds (evaluation and warm-up left out)"
    return figure(
        data,
        height=HEIGHT,
        margin={"l": 46, "r": 24 + 7 * max(len(note["text"]) for note in notes), "t": TOP, "b": BOTTOM},
        xaxis={"title": {"text": title}, "range": [0, end * 1.03]},
        yaxis={"range": [bottom, top]},
        shapes=shapes,
        annotations=notes,
    )


def difference(summary: Summary) -> Figure:
    """Paired difference to the baseline with its 95% interval, best first; far ones point off the edge."""
    tone = colours(summary)
    rows = [result for result in summary.results if result.difference]
    if not rows:
        return figure([], xaxis={}, yaxis={})
    means = [result.difference.mean for result in rows if result.difference]
    limit = ceiling([0.0, *means])
    near = [r.difference for r in rows if r.difference and r.difference.mean <= limit]
    ends = [0.0, *(end for d in near for end in (d.mean, d.low, d.high) if end is not None)]
    margin = 0.06 * max(0.01, max(ends) - min(ends))
    left, right = min(ends) - margin, max(ends) + margin
    data, notes = [], []
    for result in rows:
        found, colour = result.difference, tone[result.name]
        assert found is not None
        far = found.mean > limit
        half = 0.0 if far or found.half_width is None else found.half_width
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [right if far else found.mean],
                "y": [escape(result.title)],
                "marker": {"color": colour, "size": 9, "symbol": "triangle-right" if far else "circle"},
                "error_x": {"type": "data", "array": [half], "color": colour, "thickness": 2, "width": 0},
                "cliponaxis": False,
                "hovertemplate": f"{escape(result.title)}: {words.signed(found.mean)} "
                f"{words.interval(found)}<extra></extra>",
            }
        )
        notes.append(
            {
                "text": f"{words.signed(found.mean, words.digits_for(found.half_width))}"
                f"<span style='color:{MUTED}'>  {result.verdict}</span>",
                "xref": "paper",
                "x": 1,
                "xanchor": "left",
                "xshift": 14,
                "y": escape(result.title),
                "showarrow": False,
                "font": {"color": INK, "size": 12},
            }
        )
    return figure(
        data,
        height=62 + 24 * len(rows),
        margin={"l": _left(rows), "r": 120, "t": 8, "b": 44},
        xaxis={
            "title": {
                "text": f"final loss minus {escape(summary[summary.baseline].title)}'s, nats per token"
            },
            "range": [left, right],
            "zeroline": True,
            "zerolinecolor": INK,
        },
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False, "ticksuffix": "  "},
        annotations=notes,
    )


def sensitivity(summary: Summary) -> dict[str, Figure]:
    """One panel per optimizer, all to one scale: nats above its own best against learning rate.

    The raced rate is filled, the basin shaded, a diverged rate a cross at the top; points above the
    panel are triangles there.
    """
    tone = colours(summary)
    swept = [result for result in summary.results if result.sweep.points]
    excess = [loss - _best(r) for r in swept for loss in r.sweep.points.values() if loss is not None]
    high = min(0.5, max(0.05, sorted(excess)[int(0.8 * (len(excess) - 1))])) if excess else 0.05
    span = max((max(r.sweep.points) / min(r.sweep.points) for r in swept), default=1) * 1.8
    return {r.name: _panel(r, tone[r.name], high, span) for r in swept}


def memory(summary: Summary) -> Figure:
    """Optimizer state per optimizer."""
    rows = [result for result in summary.results if result.state_bytes is not None]
    tone = colours(summary)
    bar = _bar(rows, [(r.state_bytes or 0) / 1e6 for r in rows], [tone[r.name] for r in rows])
    bar["text"] = [f"{words.size(r.state_bytes)} · {r.bytes_per_parameter:.2g} B/param" for r in rows]
    return _bars([bar], rows, "optimizer state, MB", 130)


def time(summary: Summary) -> Figure:
    """Median time of a training step per optimizer: the model's part, then the optimizer's."""
    rows = [result for result in summary.results if result.step_ms is not None]
    tone = colours(summary)
    model = [(r.step_ms or 0) - (r.optimizer_ms or 0) for r in rows]
    rest = _bar(rows, model, [GRID] * len(rows))
    own = _bar(rows, [r.optimizer_ms or 0 for r in rows], [tone[r.name] for r in rows])
    own["text"] = [f"{words.milliseconds(r.step_ms)} · {words.milliseconds(r.optimizer_ms)}" for r in rows]
    return _bars([rest, own], rows, "ms per step · of which optimizer", 90)


def spread(places: Sequence[float], length: float, least: float) -> list[float]:
    """Move labels so that neighbours are `least` apart within `length`, keeping their order.

    places: 0 at the bottom to 1 at the top. Returns pixels from the top. A field too full for its
    length is spread evenly.
    """
    least = min(least, length / max(1, len(places) - 1))
    order = sorted(range(len(places)), key=lambda i: -places[i])
    pixels = [(1 - min(1.0, max(0.0, places[i]))) * length for i in order]
    for k in range(1, len(pixels)):
        pixels[k] = max(pixels[k], pixels[k - 1] + least)
    limit = length
    for k in reversed(range(len(pixels))):
        pixels[k] = limit = min(pixels[k], limit)
        limit -= least
    moved = dict(zip(order, pixels, strict=True))
    return [moved[i] for i in range(len(places))]


def _panel(result: Result, colour: str, high: float, span: float) -> Figure:
    points, best = result.sweep.points, _best(result)
    finished = {lr: loss - best for lr, loss in points.items() if loss is not None}
    lost = [lr for lr, loss in points.items() if loss is None]
    far = [lr for lr, above in finished.items() if above > high]
    centre = math.sqrt(min(points) * max(points))
    shapes = []
    if result.sweep.basin:
        low, top = result.sweep.basin.low / 1.06, result.sweep.basin.high * 1.06
        fill = {"fillcolor": colour, "line": {"width": 0}, "opacity": 0.13, "layer": "below"}
        shapes.append(shape("rect", low, top, 0, 1, yref="paper", **fill))
    marks = [
        (far, [high] * len(far), {"symbol": "triangle-up", "size": 8, "color": colour}, "far above"),
        (lost, [high] * len(lost), {"symbol": "x", "size": 8, "color": colour}, "diverged"),
    ]
    data: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": list(finished),
            "y": list(finished.values()),
            "line": {"color": colour, "width": 2},
            "marker": {
                "opacity": 1,
                "size": [10 if lr == result.lr else 6 for lr in finished],
                "color": [colour if lr == result.lr else PAPER for lr in finished],
                "line": {"color": colour, "width": 1.5},
            },
            "text": [f"lr {words.rate(lr)}: {above + best:.3f}" for lr, above in finished.items()],
            "hovertemplate": "%{text}<extra></extra>",
        }
    ]
    data += [
        {
            "type": "scatter",
            "mode": "markers",
            "x": x,
            "y": y,
            "marker": marker,
            "cliponaxis": False,
            "text": [f"lr {words.rate(lr)}: {meaning}" for lr in x],
            "hovertemplate": "%{text}<extra></extra>",
        }
        for x, y, marker, meaning in marks
        if x
    ]
    ticks = sorted({min(points), max(points), *([result.lr] if result.lr else [])})
    return figure(
        data,
        height=150,
        margin={"l": 34, "r": 10, "t": 10, "b": 24},
        xaxis={
            "type": "log",
            "range": [math.log10(centre / math.sqrt(span)), math.log10(centre * math.sqrt(span))],
            "tickvals": ticks,
            "ticktext": [words.rate(lr) for lr in ticks],
            "showgrid": False,
        },
        yaxis={"range": [-0.08 * high, high * 1.02], "nticks": 4},
        shapes=shapes,
    )


def _best(result: Result) -> float:
    return min((loss for loss in result.sweep.points.values() if loss is not None), default=0.0)


def _curve(result: Result) -> Curve:
    assert result.curve is not None
    return result.curve


def _top(summary: Summary, drawn: Sequence[Result]) -> float:
    """The upper end of the loss axis: all good finals, and the first curve from a quarter of its way."""
    guide = next((r for r in drawn if r.name == summary.baseline), drawn[0])
    curve = _curve(guide)
    early = curve.mean[min(len(curve.mean) - 1, math.ceil(len(curve.mean) / 4))]
    return max(early, ceiling(_curve(result).mean[-1] for result in drawn)) * 1.002


def _left(rows: Sequence[Result]) -> int:
    """Pixels that the longest title takes beside an axis."""
    return 36 + 7 * max((len(result.title) for result in rows), default=0)


def _scale(value: float, bottom: float, top: float) -> float:
    return (value - bottom) / (top - bottom)


def _line(result: Result, x: Sequence[float], colour: str, strong: bool, axis: str) -> Figure:
    unit = "tokens" if axis == "tokens" else "s"
    return {
        "type": "scatter",
        "mode": "lines",
        "name": escape(result.title),
        "x": list(x),
        "y": list(_curve(result).mean),
        "line": {"color": colour, "width": 2.6 if strong else 1.5},
        "hovertemplate": f"{escape(result.title)}: %{{y:.3f}} at %{{x:.3s}} {unit}<extra></extra>",
    }


def _band(x: Sequence[float], curve: Curve, colour: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*x, *reversed(x)],
        "y": [*curve.high, *reversed(curve.low)],
        "fill": "toself",
        "fillcolor": colour,
        "line": {"width": 0},
        "opacity": 0.1,
        "hoverinfo": "skip",
    }


def _bar(rows: Sequence[Result], values: Sequence[float], tones: Sequence[str]) -> Figure:
    return {
        "type": "bar",
        "orientation": "h",
        "y": [escape(result.title) for result in rows],
        "x": list(values),
        "marker": {"color": list(tones)},
        "textposition": "outside",
        "cliponaxis": False,
        "textfont": {"color": INK, "size": 12},
        "hoverinfo": "skip",
    }


def _bars(data: list[Figure], rows: Sequence[Result], title: str, right: int) -> Figure:
    return figure(
        data,
        height=62 + 24 * len(rows),
        barmode="stack",
        bargap=0.35,
        margin={"l": _left(rows), "r": right, "t": 8, "b": 44},
        xaxis={"title": {"text": title}, "rangemode": "tozero", "nticks": 5},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False, "ticksuffix": "  "},
    )
