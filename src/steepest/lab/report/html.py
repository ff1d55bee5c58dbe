"""A template filled in: one self-contained page, with its figures and the library that draws them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steepest.lab.report.canvas import Figure


def fill(template: str, drawn: Mapping[str, Figure], **values: Any) -> str:
    """The page of `template` beside this file. drawn: figures by the id of their place; the template is told
    of them, and of `values`, which it escapes. Pure: the same values give the same bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(
        drawn=drawn,
        figures=Markup(json.dumps(drawn, allow_nan=False).replace("<", "\\u003c")),
        plotly=Markup(get_plotlyjs()),
        **values,
    )
