"""What every figure of a report is drawn on: its colours, its axes, its fonts.

Colours are CSS variables (`var(--s1)`), which the page resolves when it draws, so that one stylesheet decides
them for text, swatches and figures, in light and in dark.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Figure = dict[str, Any]
INK, MUTED, GRID, PAPER = "var(--ink)", "var(--muted)", "var(--grid)", "var(--paper)"
SERIES = 10
FONT = {"color": MUTED, "size": 12, "family": "system-ui, sans-serif"}
AXIS = {"gridcolor": GRID, "zeroline": False, "tickcolor": GRID, "automargin": False}


def series_colour(index: int) -> str:
    """The colour of the line with this number; after ten they come again."""
    return f"var(--s{index % SERIES + 1})"


def shape(kind: str, x0: float, x1: float, y0: float, y1: float, **rest: Any) -> Figure:
    """A Plotly shape between two corners."""
    return {"type": kind, "x0": x0, "x1": x1, "y0": y0, "y1": y1, **rest}


def figure(
    data: list[Figure], *, xaxis: Mapping[str, Any], yaxis: Mapping[str, Any], **layout: Any
) -> Figure:
    """A figure with the page's fonts and without Plotly's own furniture."""
    plain = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "showlegend": False}
    return {
        "data": data,
        "layout": {
            "font": FONT,
            "hovermode": "closest",
            "dragmode": False,
            **plain,
            "xaxis": AXIS | dict(xaxis),
            "yaxis": AXIS | dict(yaxis),
            **layout,
        },
    }
