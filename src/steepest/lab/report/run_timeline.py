"""The large figure of a run's page: its stages from left to right on one clock, and what happened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any

import numpy as np

from steepest.lab.report import run_words
from steepest.lab.report.canvas import AXIS, INK, MUTED, PAPER, Figure, figure, shape
from steepest.lab.report.figures import ceiling
from steepest.lab.report.run_figures import FEW, LEVELS, average, colour, line, marks, thin
from steepest.lab.report.run_story import RIGHT, Stage, Story
from steepest.training.doctor.series import Column, Row

COURSE, STRIP, GAP = 300, 24, 22
"""Pixels: the height of the curves, of one row of events, and between them."""
TOP, BOTTOM, LEFT, RIGHT_EDGE = 50, 30, 78, 20
"""Pixels: the margins."""
MOST = 900
"""Points of one line."""
EVENTS: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "health": (("finding",), "diamond", "what health found (red asks for action, yellow for a look)"),
    "not taken": (("veto", "rollback", "diverged"), "x", "steps that were not taken, or taken back"),
    "saved": (("checkpoint",), "line-ns", "generations saved"),
}
"""Rows of events below the curves: the kinds of event in each, its mark, and what it is."""


def width(run: Story) -> int:
    """Pixels that the figure needs at least; a page that is narrower scrolls it."""
    return LEFT + RIGHT_EDGE + 150 * len(run.stages)


def timeline(run: Story) -> Figure:
    """Validation, and training's loss or reward behind it, in a panel for every stage; events below."""
    rows = _rows(run)
    height = COURSE + (GAP + STRIP * len(rows) if rows else 0)
    axes: dict[str, Any] = {}
    data: list[Figure] = []
    notes: list[Figure] = []
    shapes: list[Figure] = []
    places = _places([stage.length for stage in run.stages])
    for stage, (left, right) in zip(run.stages, places, strict=True):
        part = _Part(stage, run, rows, left, right, 1 - COURSE / height)
        axes |= part.axes()
        data += [*part.curves(), *part.events()]
        notes += [*part.heading(), *part.ends()]
        band = {"fillcolor": colour(stage), "line": {"width": 0}}
        shapes.append(shape("rect", left, right, 1.0, 1.0 + 3 / height, xref="paper", yref="paper", **band))
    return figure(
        data,
        height=height + TOP + BOTTOM,
        margin={"l": LEFT, "r": RIGHT_EDGE, "t": TOP, "b": BOTTOM},
        shapes=shapes,
        annotations=notes,
        **axes,
    )


def _places(lengths: Sequence[float]) -> list[tuple[float, float]]:
    """Where every stage is, as shares of the width. A third of it goes by time, the rest is shared equally,
    so that a stage of seconds can be read beside one of hours."""
    total, n = math.fsum(lengths), len(lengths)
    gap = 0.26 / n if n > 1 else 0.0
    shares = [
        (1 - gap * (n - 1)) * ((length / total if total else 1 / n) / 3 + 2 / (3 * n)) for length in lengths
    ]
    ends = [end + gap * i for i, end in enumerate(accumulate(shares))]
    return [(max(0.0, end - share), min(1.0, end)) for end, share in zip(ends, shares, strict=True)]


def _rows(run: Story) -> list[str]:
    return [name for name, (kinds, *_) in EVENTS.items() if any(_of(s, kinds) for s in run.stages)]


def legend(run: Story) -> str:
    """What the rows of events are."""
    return "; ".join(EVENTS[row][2] for row in _rows(run))


def _of(stage: Stage, kinds: Sequence[str]) -> list[Row]:
    return [event for event in stage.events if event.get("kind") in kinds]


class _Part:
    """One stage's panel."""

    def __init__(
        self, stage: Stage, run: Story, rows: Sequence[str], left: float, right: float, low: float
    ) -> None:
        self.stage, self.run, self.rows = stage, run, rows
        self.left, self.right, self.low = left, right, low
        number = "" if stage.index == 0 else str(stage.index + 1)
        self.x, self.y = f"x{number}", f"y{number}"
        self.strip = f"y{len(run.stages) + stage.index + 1}"
        self.share = stage.unit == RIGHT
        self.range = self._range()

    def axes(self) -> dict[str, Any]:
        stage, ends = self.stage, [self.stage.begins]
        if stage is self.run.last:
            ends.append(stage.begins + stage.length)
        out: dict[str, Any] = {
            f"xaxis{self.x[1:]}": {
                "domain": [self.left, self.right],
                "anchor": self.strip if self.rows else self.y,
                "range": [stage.begins, stage.begins + (stage.length or 1.0)],
                "tickvals": ends,
                "ticktext": [run_words.clock(end, self.run.timed) for end in ends],
                "showgrid": False,
            },
            f"yaxis{self.y[1:]}": {
                "domain": [self.low, 1],
                "anchor": self.x,
                "range": self.range,
                "nticks": 6,
                **({"tickformat": ".0%"} if self.share else {}),
            },
        }
        if self.rows:
            first = stage.index == 0
            out[f"yaxis{self.strip[1:]}"] = {
                "domain": [0, self.low * (1 - GAP / (GAP + STRIP * len(self.rows)))],
                "anchor": self.x,
                "range": [len(self.rows) - 0.5, -0.5],
                "tickvals": list(range(len(self.rows))),
                "ticktext": [f"{row}  " for row in self.rows] if first else [""] * len(self.rows),
            }
        return {key: {**AXIS, **axis} for key, axis in out.items()}

    def curves(self) -> list[Figure]:
        """Training faint, validation strong, with its interval where it is known of how many answers."""
        stage, tone = self.stage, colour(self.stage)
        training, checked = self._training(), stage.validation
        data: list[Figure] = []
        if len(training):
            hover = "reward in training" if stage.rising else "training loss"
            x = stage.clock(training.steps)
            data.append(line(*thin(x, training.values, MOST), tone, 1.0, hover, opacity=0.28))
            if len(training) >= FEW:
                smooth = thin(x, average(training.values), MOST // 3)
                data.append(line(*smooth, tone, 1.2, hover, opacity=0.75))
        if len(checked):
            strong = line(*thin(stage.clock(checked.steps), checked.values, MOST), tone, 2.6, "validation")
            strong |= {"mode": "lines+markers", "cliponaxis": False}
            strong["marker"] = {"color": tone, "size": 7, "line": {"color": PAPER, "width": 1}}
            if self.share and stage.answers is not None and len(checked) <= MOST:
                strong["error_y"] = self._error(checked, tone)
            data.append(strong)
        for trace in data:
            trace["hovertemplate"] = trace["hovertemplate"].replace(" at step %{x}", "")
        return [{**trace, "xaxis": self.x, "yaxis": self.y} for trace in data]

    def events(self) -> list[Figure]:
        """What happened, each kind in its row, the grave over the slight."""
        found = []
        for place, row in enumerate(self.rows):
            kinds, symbol, _ = EVENTS[row]
            own = _of(self.stage, kinds)
            for level, tone in reversed(LEVELS.items()):
                some = [e for e in own if _level(e) == level]
                if some:
                    x = thin_marks(self.stage.clock(e["step"] for e in some).tolist())
                    texts = [f"step {some[i]['step']}: {run_words.event(some[i])}" for i, _ in x]
                    shown = marks([v for _, v in x], [place] * len(x), tone, symbol, texts, size=9)
                    found.append({**shown, "xaxis": self.x, "yaxis": self.strip})
        return found

    def heading(self) -> list[Figure]:
        """The stage's name and what its axis is in."""
        what = "right answers" if self.share else self.stage.unit
        limit = int((self.right - self.left) * max(960, width(self.run) - LEFT - RIGHT_EDGE) / 7.2)
        place = {
            "xref": "paper",
            "x": self.left,
            "xanchor": "left",
            "yref": "paper",
            "y": 1,
            "yanchor": "bottom",
            "showarrow": False,
        }
        name, unit = (escape(_cut(text, limit)) for text in (self.stage.name, what))
        return [
            {**place, "text": name, "yshift": 21, "font": {"color": INK, "size": 14, "weight": 600}},
            {**place, "text": unit, "yshift": 4, "font": {"color": MUTED, "size": 12}},
        ]

    def ends(self) -> list[Figure]:
        """The first and the last validation, written at their places, where the curve is not: above where it
        rises, and where it falls above the first and below the last."""
        checked = self.stage.validation
        if not len(checked):
            return []
        x, (low, high) = self.stage.clock(checked.steps), self.range
        found = []
        for i in {0: None, len(checked) - 1: None}:
            value, below = float(checked.values[i]), bool(i) and not self.stage.rising
            interval = self.stage.interval(value) if self.share else None
            top = interval.high if interval and interval.high is not None else value
            found.append(
                {
                    "text": run_words.validated(value, self.stage.unit),
                    "xref": self.x,
                    "yref": self.y,
                    "x": float(x[i]),
                    "y": min(max(top, low), high),
                    "xanchor": "right" if i else "left",
                    "xshift": 0 if i or self.stage.rising else 7,
                    "yshift": -14 if below or top > high else 12,
                    "showarrow": False,
                    "bgcolor": PAPER,
                    "borderpad": 1,
                    "opacity": 0.9,
                    "font": {"color": INK, "size": 13, "weight": 600},
                }
            )
        return found

    def _training(self) -> Column:
        """What is measured in every step on the same scale as the validation; nothing if nothing is."""
        stage = self.stage
        if not stage.rising:
            return stage.series.get("loss")
        rollout = stage.plan.get("rollout")
        same = not self.share or (isinstance(rollout, Mapping) and rollout.get("reward") == "task")
        return stage.series.get("reward" if same else "")

    def _range(self) -> list[float]:
        """The lowest and the highest of what is drawn to scale; a lone spike is not."""
        training = self._training().values
        smooth = average(training) if len(training) >= FEW else training
        known = [*self.stage.validation.values.tolist(), *smooth.tolist()]
        if not known:
            return [0.0, 1.0]
        low, high = min(known), max(known)
        if self.share:
            return [-0.02, max(0.1, min(1.04, 1.25 * high))]
        if not self.stage.rising:
            high = max(min(high, ceiling(known)), *self.stage.validation.values[:1].tolist(), low)
        room = 0.1 * (high - low) or 0.05 * max(1.0, abs(high))
        return [low - room, high + room]

    def _error(self, checked: Column, tone: str) -> Figure:
        ends = [self.stage.interval(float(share)) for share in checked.values]
        return {
            "type": "data",
            "symmetric": False,
            "array": [round((e.high if e.high is not None else e.mean) - e.mean, 5) for e in ends],
            "arrayminus": [round(e.mean - (e.low if e.low is not None else e.mean), 5) for e in ends],
            "color": tone,
            "thickness": 1.2,
            "width": 0,
        }


def thin_marks(x: Sequence[float], most: int = 150) -> list[tuple[int, float]]:
    """(index, place) of so many marks that they can still be told apart, evenly chosen."""
    chosen = sorted({round(i) for i in np.linspace(0, len(x) - 1, min(most, len(x)))})
    return [(i, x[i]) for i in chosen]


def _level(event: Row) -> str:
    if event.get("kind") == "finding":
        level = event.get("level")
        return level if level in LEVELS else "note"
    return "note" if event.get("kind") == "checkpoint" else "act"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
