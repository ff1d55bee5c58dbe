"""The live view: what is on the screen in a terminal, and the plain lines elsewhere."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from steepest.cli.live import BARS, LiveView, sparkline


@dataclass
class Told:
    step: int = 40
    where: str = "wte[0]"
    level: str = "warn"
    means: str = "the update norm is far above its history"
    do: str = "lower the rate"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def progress(step: int, **more: object) -> dict[str, object]:
    known = {"stage": "sft", "of": 200, "loss": 3.0 - 0.01 * step, "validation": 2.5, "lr": 1e-3}
    rest = {"tokens_per_second": 12_345.6, "memory_mb": 512.0, "eta_seconds": 100.0, "kl_old": 0.01}
    return {"step": step, **known, **rest, **more}


@pytest.fixture
def plain() -> Iterator[tuple[LiveView, io.StringIO, Clock]]:
    out, now = io.StringIO(), Clock()
    with LiveView(Console(file=out, width=200, highlight=False), now) as view:
        yield view, out, now


def on_screen(view: LiveView) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, record=True)
    console.print(view.render())
    return console.export_text()


def test_the_screen_shows_a_stage_as_it_is_now() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, width=120, force_terminal=True)) as view:
        for step in range(1, 51):
            view.update(progress(step))
        view.finding(Told())
        text = on_screen(view)
        for words in (
            "sft",
            "step 50 of 200",
            "2 min left",
            "loss 2.5000",
            "validation 2.5000",
            "lr 1.00e-03",
        ):
            assert words in text
        for words in (
            "tokens/s 12,346",
            "memory 512 MB",
            "kl old 0.01",
            "warn at step 40, wte[0]: the update",
        ):
            assert words in text
        assert BARS[-1] in text and BARS[0] in text
    assert "warn at step 40, wte[0]" in out.getvalue(), "a finding stays after the view is gone"


def test_nothing_known_is_nothing_shown() -> None:
    with LiveView(Console(file=io.StringIO(), width=120, force_terminal=True)) as view:
        assert "loading" in on_screen(view)
        view.update({"step": 3})
        assert "step 3" in on_screen(view)
        view.update({"step": 4, "loss": float("nan"), "lr": None, "grad_norm": float("inf")})
        assert "nan" not in on_screen(view) and "inf" not in on_screen(view)


def test_a_new_stage_starts_anew() -> None:
    with LiveView(Console(file=io.StringIO(), width=120, force_terminal=True)) as view:
        view.update(progress(200))
        view.update({"stage": "[b]rl", "step": 1, "of": 50, "reward": 0.25})
        text = on_screen(view)
        assert "[b]rl" in text and "reward 0.25" in text and "validation" not in text and "loss" not in text


def test_plain_lines_come_with_time_or_share(plain: tuple[LiveView, io.StringIO, Clock]) -> None:
    view, out, now = plain
    for step in range(1, 201):
        now.now += 0.1
        view.update(progress(step))
    lines = out.getvalue().splitlines()
    assert [int(re.search(r"step (\d+) of 200", line)[1]) for line in lines] == [*range(1, 200, 10), 200]
    assert lines[0].startswith("sft: step 1 of 200: loss 2.9900, validation 2.5000, lr 1.00e-03")
    now.now += 10.0
    view.update(progress(201, of=100_000))
    assert len(out.getvalue().splitlines()) == len(lines) + 1


def test_words_and_findings_are_lines(plain: tuple[LiveView, io.StringIO, Clock]) -> None:
    view, out, _ = plain
    view.say("continued from generation [120]")
    view.finding(Told())
    assert out.getvalue() == (
        "continued from generation [120]\n"
        "warn at step 40, wte[0]: the update norm is far above its history; lower the rate\n"
    )


@given(st.lists(st.floats(-1e30, 1e30), max_size=200), st.integers(1, 60))
def test_a_sparkline_fits_and_its_ends_are_the_extremes(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values)) and set(line) <= set(BARS)
    if len(values) > 1 and len(line) == len(values) and max(values) > min(values):
        assert line[values.index(max(values))] == BARS[-1]
        assert line[values.index(min(values))] == BARS[0]
