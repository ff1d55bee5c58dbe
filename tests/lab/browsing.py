"""A report's page opened in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def opened(browser: Any, page: Path) -> tuple[Any, list[str], list[str]]:
    """The page in a new tab once its figures are drawn, its complaints, and what it asked of the network."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    complaints: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri())
    tab.wait_for_function(
        "document.querySelectorAll('.js-plotly-plot').length === "
        "Object.keys(JSON.parse(document.getElementById('figures').textContent)).length"
    )
    own = (page.as_uri(), "data:")
    return tab, complaints, [url for url in requests if not url.startswith(own)]
