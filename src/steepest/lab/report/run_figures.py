"""The small figures of a run's page, one for each number of a stage, as plain Plotly JSON.

A long run is thinned for drawing: every stretch keeps its lowest and its highest value, so no spike is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap

import numpy as np

from steepest.lab.report import run_words
from steepest.lab.report.canvas import FONT, MUTED, Figure, figure, series_colour
from steepest.lab.report.run_story import Floats, Stage, Story
from steepest.training.doctor.series import Column

POINTS, LEAST, MOST = 40_000, 40, 600
"""Points that all small figures of a page share, and what one line has at least and at most."""
FEW = 24
"""Values below which a line is drawn as it is, without an average."""
CALM = 0.01
"""Noise, as a share of the range, below which it is not needed either."""
LEVELS = {"act": "var(--bad)", "warn": "var(--s5)", "note": MUTED}
FIRST = ("reward", "accuracy", "loss", "lr", "grad_norm", "update_norm")
LOGARITHMIC = frozenset(("grad_norm", "update_norm", "step_ms"))
MARKED = {
    "loss_spike": "loss",
    "grad_norm_spike": "grad_norm",
    "update_norm_spike": "update_norm",
}
"""Indicators of the whole run that have not the name of the number they are marked at."""


@dataclass(frozen=True)
class Panel:
    """A small figure: the id of its place, what it shows, and the latest value, in words."""

    id: str
    title: str
    last: str
    figure: Figure


def colour(stage: Stage) -> str:
    """A stage's colour everywhere on the page."""
    return series_colour(stage.index)


def panels(run: Story) -> list[list[Panel]]:
    """For every stage, a figure of each number that changes."""
    found = [(stage, key) for stage in run.stages for key in _shown(stage)]
    most = max(LEAST, min(MOST, POINTS // max(1, len(found))))
    return [
        [_panel(stage, key, most, f"stage{stage.index}-{i}") for i, key in enumerate(_shown(stage))]
        for stage in run.stages
    ]


def constants(stage: Stage) -> dict[str, float]:
    """The objective's numbers that never change, which need no figure."""
    columns = {key: stage.series.get(key) for key in stage.facts}
    return {key: float(c.values[0]) for key, c in columns.items() if not _changes(c)}


def thin(x: Floats, y: Floats, most: int) -> tuple[list[float], list[float]]:
    """Lowest and highest value of every stretch, in their order; all of them where they are few."""
    if len(y) > most:
        keep: set[int] = {0, len(y) - 1}
        for part in np.array_split(np.arange(len(y)), max(1, most // 2 - 1)):
            keep |= {int(part[np.argmin(y[part])]), int(part[np.argmax(y[part])])}
        chosen = sorted(keep)
        x, y = x[chosen], y[chosen]
    return [float(f"{v:.7g}") for v in x], [float(f"{v:.5g}") for v in y]


def average(y: Floats) -> Floats:
    """The mean of the neighbours of every value, a twentieth of the whole wide; narrower at the ends."""
    half = max(1, len(y) // 40)
    wide = np.ones(2 * half + 1)
    return np.asarray(np.convolve(y, wide, "same") / np.convolve(np.ones(len(y)), wide, "same"))


def lines(x: Floats, column: Column, tone: str, most: int, hover: str) -> list[Figure]:
    """A column over `x`: faint as it is and strong as it goes on average; strong alone if it is short."""
    rough = len(column) >= FEW and column.noise > CALM * float(np.ptp(column.values))
    xs, ys = thin(x, column.values, most)
    data = [line(xs, ys, tone, 1.0 if rough else 1.8, hover, opacity=0.3 if rough else 1.0)]
    if rough:
        data.append(line(*thin(x, average(column.values), most // 3), tone, 1.8, hover))
    return data


def line(
    x: Sequence[float], y: Sequence[float], tone: str, width: float, hover: str, opacity: float = 1.0
) -> Figure:
    """A line, or a dot where there is only one value."""
    return {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 else "markers",
        "x": list(x),
        "y": list(y),
        "opacity": opacity,
        "line": {"color": tone, "width": width},
        "marker": {"color": tone, "size": 6},
        "hovertemplate": f"{escape(hover)}: %{{y:.4g}} at step %{{x}}<extra></extra>",
    }


def _shown(stage: Stage) -> list[str]:
    """The numbers of a stage that change, the telling ones first."""
    keys = dict.fromkeys((*FIRST, *stage.facts, "step_ms"))
    if stage.rising:  # a policy gradient's loss says little
        keys = dict.fromkeys((*(key for key in keys if key != "loss"), "loss"))
    return [key for key in keys if _changes(stage.series.get(key))]


def _changes(column: Column) -> bool:
    return len(column) > 0 and bool(np.any(column.values != column.values[0]))


def _panel(stage: Stage, key: str, most: int, place: str) -> Panel:
    title, column = run_words.title(key, stage.rising), stage.series.get(key)
    log = key in LOGARITHMIC and bool(np.all(column.values > 0))
    drawn = lines((column.steps - stage.series.start).astype(np.float64), column, colour(stage), most, title)
    return Panel(
        place,
        title,
        run_words.number(float(column.values[-1])),
        figure(
            [*drawn, *_marks(stage, key, column)],
            height=138,
            margin={"l": 46, "r": 8, "t": 8, "b": 22},
            font={**FONT, "size": 11},
            xaxis={"range": [0, max(1, stage.taken)], "nticks": 4, "showgrid": False},
            yaxis={"type": "log" if log else "linear", "nticks": 4, **_ticks(column, log)},
        ),
    )


def _ticks(column: Column, log: bool) -> dict[str, object]:
    """Labels short enough for the margin, and few on a logarithmic axis."""
    low, high = (abs(float(v)) for v in (column.values.min(), column.values.max()))
    size = max(low, high)
    form = "~e" if size < 2e-3 or (log and low < 1e-2) else "~s" if size >= 1e4 else "~g"
    if not log:
        return {"tickformat": form}
    decades = math.log10(high) - math.log10(low)
    return {"tickformat": form, "dtick": math.ceil(decades / 3) if decades > 0.7 else "D2"}


def _marks(stage: Stage, key: str, column: Column) -> list[Figure]:
    """What health found about a number, and for the loss the steps that were not taken."""
    found = [
        e for e in stage.of_kind("finding") if MARKED.get(str(e.get("indicator")), e.get("indicator")) == key
    ]
    data = [
        marks(
            [e["step"] - stage.series.start for e in own],
            np.interp([e["step"] for e in own], column.steps, column.values).tolist(),
            tone,
            "circle-open",
            [run_words.finding(e) for e in own],
        )
        for level, tone in LEVELS.items()
        if (own := [e for e in found if e.get("level") == level])
    ]
    vetoes = stage.of_kind("veto") if key == "loss" else []
    if vetoes:
        at = [float(e["step"] - stage.series.start) for e in vetoes]
        top = [float(column.values.max())] * len(at)
        data.append(marks(at, top, LEVELS["act"], "x", [run_words.event(e) for e in vetoes]))
    return data


def marks(
    x: Sequence[float], y: Sequence[float], tone: str, symbol: str, texts: Sequence[str], size: int = 8
) -> Figure:
    """Marks that say what they are when they are pointed at."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "marker": {"color": tone, "size": size, "symbol": symbol, "line": {"color": tone, "width": 1.6}},
        "cliponaxis": False,
        "text": [broken(text) for text in texts],
        "hovertemplate": "%{text}<extra></extra>",
    }


def broken(text: str, width: int = 60) -> str:
    """Text for a hover label: escaped, and in lines."""
    return "<br>".join(escape(part) for part in wrap(text[:400], width)) or " "
