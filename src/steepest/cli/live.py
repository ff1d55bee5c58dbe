"""What `steepest train` shows while it trains: one panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from steepest.cli.words import clock, minutes, size, thousands

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Characters of the sparkline, and of the bar."""
SECONDS, SHARE = 10.0, 0.05
"""Plain lines: one after so many seconds, or after such a share of the steps, whichever comes first."""
SHOWN = 3
"""Findings that stay on the screen."""
OWN = {
    *(
        "step",
        "attempt",
        "of",
        "stage",
        "stage_step",
        "loss",
        "validation",
        "lr",
        "tokens",
        "tokens_per_second",
        "seconds",
    ),
    *("step_ms", "memory_mb", "eta_seconds", "clipped", "committed", "layers", "nonfinite", "optimizer_ms"),
    *("grad_norm", "update_norm", "param_norm"),
}
"""What has a place of its own on the screen, or none; every other number is a fact of the objective."""


class Told(Protocol):
    """What is shown of a finding (`training.health.Finding`)."""

    @property
    def step(self) -> int: ...
    @property
    def where(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def means(self) -> str: ...
    @property
    def do(self) -> str: ...


class LiveView:
    """Call `update` after every step, `finding` for what warns, `say` for what happens, `close` at the end.

    `update` takes the numbers of a step as the metrics have them, with `of` (the stage's steps), `stage` and
    `eta_seconds`; whatever is missing is not shown. It costs microseconds: the screen is drawn by the clock.
    """

    def __init__(self, console: Console | None = None, now: Callable[[], float] = clock) -> None:
        self.console = console or Console(highlight=False)
        self._now = now
        self._values: dict[str, Any] = {}
        self._losses: deque[float] = deque(maxlen=4096)
        self._findings: deque[Told] = deque(maxlen=SHOWN)
        self._printed: tuple[str, float, float] = ("", -math.inf, -math.inf)
        self._live: Live | None = None
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self.render, console=self.console, refresh_per_second=4, transient=True
            )
            self._live.start()

    def __enter__(self) -> LiveView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, progress: Mapping[str, Any]) -> None:
        """Show a step."""
        if progress.get("stage") != self._values.get("stage"):
            self._losses.clear()
            self._values = {}
        self._values |= progress
        loss = _number(progress.get("loss"))
        if loss is not None:
            self._losses.append(loss)
        if self._live is None:
            self._print_sometimes()

    def finding(self, finding: Told) -> None:
        """Show what warns, in its own words."""
        self._findings.append(finding)
        if self._live is None:
            self.say(_words(finding))

    def say(self, words: str) -> None:
        """A line that stays on the screen."""
        self.console.print(escape(words), soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was; findings stay as lines. May be called twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            for finding in self._findings:
                self.say(_words(finding))

    def render(self) -> RenderableType:
        """The panel as it is now."""
        values = self._values
        if not values:
            return Text("loading", style="dim")
        step, of = _steps(values)
        head = Table.grid(padding=(0, 2))
        stage = f"[bold]{escape(str(values['stage']))}[/bold]" if values.get("stage") else ""
        share = ProgressBar(total=of or 1.0, completed=min(step, of or 0.0), width=WIDTH)
        head.add_row(stage, share, f"step {step:,.0f}" + (f" of {of:,.0f}" if of else ""), _left(values))
        body = Table.grid(padding=(0, 3))
        numbers = [f"[dim]{escape(name)}[/dim] {text}" for name, text in self._numbers()]
        for start in range(0, len(numbers), 4):
            body.add_row(*numbers[start : start + 4])
        rows: list[RenderableType] = [head]
        if len(self._losses) > 1:
            rows.append(Text.assemble(("loss ", "dim"), sparkline(self._losses, WIDTH)))
        rows.append(body)
        rows += [Text(_words(finding), style=_style(finding)) for finding in self._findings]
        return Group(*rows)

    def _numbers(self) -> list[tuple[str, str]]:
        """(name, text) of every number on the screen."""
        shapes: tuple[tuple[str, str, Callable[[float], str]], ...] = (
            ("loss", "loss", "{:.4f}".format),
            ("validation", "validation", "{:.4f}".format),
            ("lr", "lr", "{:.2e}".format),
            ("grad_norm", "gradient norm", "{:.3g}".format),
            ("tokens_per_second", "tokens/s", thousands),
            ("memory_mb", "memory", lambda megabytes: size(megabytes * 1e6)),
        )
        facts = tuple(
            (name, name.replace("_", " "), "{:.4g}".format) for name in self._values if name not in OWN
        )
        found = ((name, _number(self._values.get(key)), show) for key, name, show in (*shapes, *facts))
        return [(name, show(value)) for name, value, show in found if value is not None]

    def _print_sometimes(self) -> None:
        values, (stage, at, when) = self._values, self._printed
        step, of = _steps(values)
        name, now = str(values.get("stage") or ""), self._now()
        due = name != stage or now - when >= SECONDS or (of and step - at >= SHARE * of) or step == of
        if due:
            self._printed = (name, step, now)
            numbers = ", ".join(f"{name} {text}" for name, text in self._numbers())
            place = f"step {step:,.0f}" + (f" of {of:,.0f}" if of else "")
            left = f", {_left(values)}" if _left(values) else ""
            self.say(f"{name + ': ' if name else ''}{place}: {numbers}{left}")


def sparkline(values: Sequence[float] | deque[float], width: int) -> str:
    """At most `width` bars, each the mean of its share of the values; the highest bar is the largest."""
    known = list(values)
    count = min(width, len(known))
    cuts = [round(i * len(known) / count) for i in range(count + 1)] if count else []
    means = [math.fsum(known[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    if not means:
        return ""
    low, span = min(means), max(means) - min(means)
    return "".join(BARS[round((mean - low) / span * (len(BARS) - 1)) if span else 0] for mean in means)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _steps(values: Mapping[str, Any]) -> tuple[float, float | None]:
    """Steps done of the stage, and how many it has."""
    return _number(values.get("stage_step", values.get("step"))) or 0.0, _number(values.get("of"))


def _left(values: Mapping[str, Any]) -> str:
    left = _number(values.get("eta_seconds"))
    return f"{minutes(left)} left" if left is not None else ""


def _words(finding: Told) -> str:
    return f"{finding.level} at step {finding.step:,}, {finding.where}: {finding.means}; {finding.do}"


def _style(finding: Told) -> str:
    return {"act": "bold red", "warn": "yellow"}.get(finding.level, "cyan")
