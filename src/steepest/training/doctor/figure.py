"""The doctor's picture: loss, learning rate and norms over the steps, with the causes marked."""

from __future__ import annotations

import importlib
from typing import Any

from steepest.training.doctor.diagnosis import Diagnosis
from steepest.training.doctor.series import Series

PANELS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("loss", ("loss", "validation"), False),
    ("reward", ("reward",), False),
    ("learning rate", ("lr",), False),
    ("norms", ("grad_norm", "update_norm", "param_norm"), True),
    ("KL, clip fraction", ("kl", "kl_old", "clip_fraction"), False),
    ("ms a step", ("step_ms",), True),
)
"""Panels from top to bottom: title, columns, logarithmic axis or not; one without data is left out."""

MARKS = {"act": "#c0392b", "warn": "#d68910", "note": "#7f8c8d"}
COLOURS = ("#1f4e79", "#c55a11", "#548235")
MOST = 5000
"""Points that one line is drawn with."""


def draw(diagnosis: Diagnosis) -> str:
    """The picture as one self-contained HTML page, stages one after another over the run's steps."""
    graph = importlib.import_module("plotly.graph_objects")
    layout = importlib.import_module("plotly.subplots")
    panels = [
        panel for panel in PANELS if any(len(s.get(k)) for s in diagnosis.found.stages for k in panel[1])
    ]
    figure = layout.make_subplots(
        rows=max(1, len(panels)),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.06,
        subplot_titles=[panel[0] for panel in panels],
    )
    for row, (_, keys, logarithmic) in enumerate(panels, 1):
        for colour, key in zip(COLOURS, keys, strict=False):
            for place, series in enumerate(diagnosis.found.stages):
                line = _line(graph, series, key, colour, shown=place == 0)
                figure.add_trace(line, row=row, col=1)
        if logarithmic:
            figure.update_yaxes(type="log", row=row, col=1)
    for cause in diagnosis.causes:
        for step in cause.steps[:20]:
            figure.add_vline(x=step, line={"color": MARKS[cause.level], "width": 1, "dash": "dot"})
    said = "<br>".join(
        f"<b>{cause.level}</b> {_plain(cause.stage)} {_plain(cause.title)}" for cause in diagnosis.causes[:8]
    )
    figure.update_layout(
        title={"text": f"{_plain(diagnosis.answer)}<br><sub>{said}</sub>", "x": 0.02, "yref": "container"},
        template="plotly_white",
        height=180 + 230 * max(1, len(panels)),
        margin={"t": 100 + 16 * min(8, len(diagnosis.causes))},
        hovermode="x unified",
    )
    figure.update_xaxes(title_text="step", row=max(1, len(panels)), col=1)
    return str(figure.to_html(include_plotlyjs=True, full_html=True))


def _line(graph: Any, series: Series, key: str, colour: str, shown: bool) -> Any:
    column = series.get(key)
    every = max(1, len(column) // MOST)
    return graph.Scattergl(
        x=column.steps[::every].tolist(),
        y=column.values[::every].tolist(),
        name=key.replace("_", " "),
        legendgroup=key,
        showlegend=shown,
        mode="lines+markers" if len(column) < 40 else "lines",
        line={"color": colour, "width": 1.3},
    )


def _plain(text: str) -> str:
    """Names come from files that others wrote: no tag in them is one here."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
