"""The page of a run: its words, what a thinned line keeps, hostile input, and what a browser makes of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from browsing import opened
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from steepest.cli.app import app
from steepest.contract import SteepestError
from steepest.lab.report import is_run, read_story, render_run, write_run_page
from steepest.lab.report.run_figures import average, panels, thin
from steepest.lab.report.run_page import LINES, findings
from steepest.lab.report.run_timeline import timeline
from steepest.lab.report.run_words import clock, crossing, headline, number, ranges, validated, verdict
from steepest.lab.statistics import proportion_interval
from steepest.training import lock, parse_config
from steepest.training.config import save_config
from steepest.training.journal import Journal

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
ADAMW = {"name": "adamw", "lr": 3e-3}
STAGES: tuple[dict[str, Any], ...] = (
    {"name": "pretrain", "objective": "next_token", "data": "stdlib", "optimizer": ADAMW},
    {"name": "finetune", "objective": "sft", "data": "tasks", "optimizer": ADAMW, "moments": "keep"},
    {"name": "judge", "objective": "reward", "data": "tasks", "optimizer": ADAMW},
    {"name": "verified", "objective": "grpo", "data": "tasks", "optimizer": {"name": "lion", "lr": 1e-4}},
)
UNITS = {
    "next_token": "nats a token",
    "sft": "nats a token",
    "reward": "nats a pair",
    "grpo": "of answers right",
}
STEPS = 60


def line(stage: Mapping[str, Any], start: int, step: int, steps: int = STEPS) -> dict[str, Any]:
    """One line of metrics, as training writes it."""
    wave = math.sin(1.7 * step)
    values = {
        "step": start + step,
        "attempt": start + step,
        "committed": True,
        "stage": stage["name"],
        "stage_step": step,
        "of": steps,
        "loss": 1 + 3 / (1 + step / 6) + 0.1 * wave,
        "lr": 3e-3 * min(1, step / 6) * (1 - step / (steps + 1)),
        "grad_norm": 2 + wave,
        "update_norm": 0.1 / step,
        "clipped": step % 3 == 0,
        "tokens": 512 * step,
        "seconds": 0.25 * step,
        "step_ms": 250 + 20 * wave,
    }
    if stage["objective"] == "grpo":
        values |= {"loss": 0.01 * wave, "reward": 0.3 + 0.004 * step, "kl": 1e-3 * step, "clip_fraction": 0.0}
        values |= {"entropy": 2.0 - step / 60}
    if step % 20 == 0:
        values["validation"] = values.get("reward", values["loss"])
        values["layers"] = {"wte": {"dead": 0.0}}
    return values


def made(
    folder: Path,
    stages: Sequence[Mapping[str, Any]] = STAGES,
    *,
    finished: bool = True,
    last: int = STEPS,
    steps: int = STEPS,
    events: Sequence[tuple[str, int, dict[str, Any]]] = (),
) -> Path:
    """The folder of a run; of an unfinished one the last stage has `last` steps."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = len(stages) == 1 and not stages[0]["name"]
    own = {"stages": [dict(stage) for stage in stages]} if not flat else dict(stages[0])
    config = parse_config({"model": "tiny", **own, "steps": steps}, "a test")
    save_config(config, folder)
    journal, records = Journal(folder), []
    journal.event("start", 0, process=1)
    for index, stage in enumerate(stages):
        start, end = index * steps, last if index == len(stages) - 1 else steps
        rows = [
            {"name": f"h.{i}.weight", "old_rule": "adamw" if i else None, "new_rule": "adamw"}
            for i in range(3)
        ]
        carried = {"rows": [{**row, "slots": {"m": "kept", "v": "kept"}} for row in rows], "dropped": ["wte"]}
        journal.event(
            "stage",
            start,
            name=stage["name"],
            objective=stage["objective"],
            carried=carried if index else None,
        )
        journal.event("checkpoint", start, why="border")
        lines = [line(stage, start, step, steps) for step in range(1, end + 1)]
        for each in lines:
            journal.metrics(each["step"], each)
        checked = [each for each in lines if "validation" in each]
        curve = {
            "step": [0, *(each["stage_step"] for each in checked)],
            "loss": [0.3 if stage["objective"] == "grpo" else 4.5, *(each["validation"] for each in checked)],
        }
        unit = UNITS[stage["objective"]]
        own = {"name": stage["name"], "objective": stage["objective"], "unit": unit, "validation": curve}
        records.append({**own, "steps": end, "seconds": 15.0, "ended": "", "reason": None})
    for kind, step, facts in events:
        journal.event(kind, step, **facts)
    journal.close()
    if finished:
        record = {"config": config.model_dump(mode="json"), "stages": records}
        (folder / "run.json").write_text(json.dumps(record))
    return folder


def found_at(
    step: int, indicator: str = "grad_norm_spike", level: str = "act", **facts: Any
) -> tuple[str, int, dict[str, Any]]:
    told = {"indicator": indicator, "where": "the run", "value": 8.0, "limit": 6.0, "level": level}
    return "finding", step, {**told, "means": "the gradients jumped", "do": "clip lower", **facts}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    veto = ("veto", 70, {"why": "the loss is nan", "culprits": ["wte"]})
    return made(tmp_path / "life", events=[found_at(80), veto, found_at(85, level="warn", value=4.0)])


# What it says -------------------------------------------------------------------------------------


def test_the_story_of_a_finished_run(run: Path) -> None:
    story = read_story(run)
    assert story.state == "finished"
    assert headline(story) == "From 30% to 54% of answers right"
    text = " ".join(verdict(story))
    path = "next-token prediction, supervised fine-tuning, a reward model, GRPO"
    assert f"tiny was trained in four stages ({path}) on 123k tokens" in text
    assert "in 60.0 s" in text
    assert "from 4.500 to 1.372 nats a token in pretrain" in text
    assert "Right answers of 64 held-out prompts: 30% (20 to 42%) before reinforcement learning" in text
    assert "learning, 54% (42 to 66%) after; 95% intervals" in text
    assert "One finding of health asked for action and one step was not taken." in text
    assert [stage.begins for stage in story.stages] == [0.0, 15.0, 30.0, 45.0]


def test_a_flat_run_has_one_stage(tmp_path: Path) -> None:
    story = read_story(made(tmp_path / "flat", [{**STAGES[0], "name": ""}]))
    assert headline(story) == "1.372 nats a token after 60 steps"
    assert verdict(story)[0].startswith(
        "tiny was trained by next-token prediction on 30.7k tokens in 15.0 s."
    )


@pytest.mark.parametrize(
    ("events", "expected", "sentence"),
    [
        ([], "Stopped at step 31 of 60 in stage 2 of 4, finetune", "goes on from its last generation"),
        (
            [("diverged", 91, {"reason": "step 31: the loss is inf"})],
            "Diverged at step 31 of 60 in stage 2 of 4, finetune",
            "It diverged: step 31: the loss is inf.",
        ),
        (
            [("diverged", 91, {"reason": "x"}), ("resume", 60, {})],
            "Stopped at step 31 of 60 in stage 2 of 4, finetune",
            "It was continued once.",
        ),
    ],
)
def test_an_unfinished_run_says_so(tmp_path: Path, events: Any, expected: str, sentence: str) -> None:
    folder = made(tmp_path / "half", STAGES[:2], finished=False, last=31, events=events)
    given = {"model": "tiny", "steps": STEPS, "stages": [dict(stage) for stage in STAGES]}
    save_config(parse_config(given, "a test"), folder)
    story = read_story(folder)
    assert headline(story) == expected
    assert story.ahead == ("judge", "verified")
    assert verdict(story)[1] == (
        "The validation loss went to 1.372 nats a token in pretrain and to 1.745 in finetune."
    )
    assert any(sentence in said for said in verdict(story))


def test_a_running_run_says_so(tmp_path: Path) -> None:
    folder = made(tmp_path / "live", [STAGES[0]], finished=False, last=12)
    with lock(folder):
        story = read_story(folder)
        assert (story.state, headline(story)) == ("running", "Running: step 12 of 60")
        assert "This run is still going." in verdict(story)[-1]
        assert "<title>Running: step 12 of 60" in render_run(story)
    assert read_story(folder).state == "stopped"


def test_without_any_validation(tmp_path: Path) -> None:
    folder = made(tmp_path / "bare", [STAGES[0]], finished=False, last=15)
    story = read_story(folder)
    assert not len(story.last.validation)
    assert len(timeline(story)["data"]) == 1 + 1  # training, and the row of generations
    assert "–" in render_run(story)


def test_a_border_is_told_in_words(run: Path) -> None:
    first, second, *_ = read_story(run).stages
    assert crossing(first) == []
    assert crossing(second) == [
        "2 tensors: adamw, m and v kept.",
        "one tensor: new in this stage, so the state starts fresh (adamw).",
        "The state of one tensor was left behind.",
    ]


def test_findings_are_grouped_and_the_grave_come_first(run: Path) -> None:
    with Journal(run).folder.joinpath("journal.jsonl").open("a") as file:
        kind, step, facts = found_at(20, "update_ratio", "warn")
        file.write(json.dumps({"kind": kind, "step": step, **facts}) + "\n")
    told = findings(read_story(run))
    assert [(each["indicator"], each["level"]) for each in told] == [
        ("grad norm spike", "act"),
        ("update ratio", "warn"),
    ]
    assert told[0]["worst"] == "8 (limit 6)"
    assert [stage["when"] for stage in told[0]["stages"]] == ["2 times, steps 80 to 85"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (number(1.83456), "1.835"),
        (number(-0.00051), "−0.00051"),
        (number(3.1e-7), "3.1e-7"),
        (number(12345.0), "12,345"),
        (number(-2e9), "−2.0e9"),
        (number(0.0), "0"),
        (validated(0.3412, "of answers right"), "34%"),
        (validated(0.0312, "of answers right"), "3.1%"),
        (validated(1.0, "of answers right"), "100%"),
        (validated(1.8338, "nats a token"), "1.834"),
        (clock(0), "0:00"),
        (clock(179.4), "2:59"),
        (clock(3723), "1:02:03"),
        (clock(40, timed=False), "40"),
        (ranges([[0, 299], [305, 305]]), "0 to 299, 305"),
        (ranges("nonsense"), "–"),
    ],
)
def test_numbers(found: str, expected: str) -> None:
    assert found == expected


def test_wilson_agrees_with_the_textbook() -> None:
    found = proportion_interval(0.3, 20)
    assert (found.low, found.high) == (pytest.approx(0.1455, abs=1e-4), pytest.approx(0.5190, abs=1e-4))
    assert proportion_interval(0.0, 10).low == 0.0
    assert proportion_interval(0.0, 10).high == pytest.approx(0.2775, abs=1e-4)
    with pytest.raises(ValueError, match="no share"):
        proportion_interval(1.2, 10)


# Thinning -----------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=3000).map(np.array), st.integers(40, 600))
def test_a_thinned_line_keeps_its_ends_and_its_extremes(y: Any, most: int) -> None:
    x, kept = thin(np.arange(len(y), dtype=np.float64), y, most)
    assert len(kept) <= max(most, 2) and x == sorted(x)
    assert (x[0], x[-1]) == (0, len(y) - 1)
    assert min(kept) == pytest.approx(y.min(), rel=1e-4)
    assert max(kept) == pytest.approx(y.max(), rel=1e-4)


def test_an_average_of_a_constant_is_that_constant() -> None:
    assert average(np.full(500, 3.0)) == pytest.approx(np.full(500, 3.0))


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    from plotly.offline import get_plotlyjs

    many = [found_at(i, level="warn") for i in range(1, 10_000, 7)]
    folder = made(tmp_path / "long", [STAGES[0]], last=10_000, steps=10_000, events=many)
    page = render_run(read_story(folder))
    assert len(page.encode()) - len(get_plotlyjs().encode()) < 500_000
    assert page.count("<tr><td>") <= LINES + 20


# Hostile ------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.just({"a": 1}),
    st.lists(st.integers(), max_size=2),
)
KEYS = ["step", "attempt", "stage", "loss", "lr", "grad_norm", "seconds", "tokens", "validation", "reward"]
KEYS += ["of", "kl", "layers", "nonfinite", "my_own", "step_ms"]
ROWS = st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES), min_size=1, max_size=12)
TOLD = st.sampled_from(
    ["kind", "step", "time", "indicator", "level", "value", "limit", "carried", "name", "means"]
)
KINDS = st.sampled_from(["finding", "veto", "stage", "checkpoint", "first_step", "diverged", "resume"])
EVENTS = st.lists(
    st.builds(lambda kind, facts: {"kind": kind, "step": 3, **facts}, KINDS, st.dictionaries(TOLD, VALUES)),
    max_size=6,
)


@settings(max_examples=60)
@given(ROWS, EVENTS, st.one_of(VALUES, st.dictionaries(st.sampled_from(["config", "stages"]), VALUES)))
@example([{"step": 1, "loss": 1e149, "seconds": -1}, {"step": 2**52, "loss": -1e149}], [], None)
def test_no_metrics_break_the_page(rows: Any, events: Any, record: Any) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for file, lines in (("metrics", rows), ("journal", events)):
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        (folder / "run.json").write_text(json.dumps(record))
        try:
            story = read_story(folder)
        except SteepestError:
            return  # no line has a step
        page = render_run(story)
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(SteepestError, match="holds no run"):
        write_run_page(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(SteepestError, match="no whole line yet"):
        write_run_page(tmp_path)


def test_null_values_are_left_out(tmp_path: Path) -> None:
    folder = made(tmp_path / "nan", [STAGES[0]])
    with (folder / "metrics.jsonl").open("a") as file:
        lost = {**line(STAGES[0], 0, 61), "loss": None, "nonfinite": ["loss"]}
        file.write(json.dumps(lost) + '\n{"step": 62, "lo')
    story = read_story(folder)
    assert story.last.taken == 61
    loss = next(panel for panel in panels(story)[0] if panel.title == "training loss")
    assert loss.figure["data"][0]["x"][-1] == 60


def test_report_knows_a_run_from_a_study(run: Path, tmp_path: Path) -> None:
    assert is_run(run) and not is_run(tmp_path)
    found = CliRunner().invoke(app, ["report", str(run)])
    assert found.exit_code == 0, found.output
    assert "run.html" in found.output
    assert (run / "run.html").read_text().startswith("<!doctype html>")
    assert render_run(read_story(run)) == (run / "run.html").read_text()


# In a browser -------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_in_a_browser(browser: Any, run: Path, width: int, scheme: str) -> None:
    tab, complaints, requests = opened(browser, write_run_page(run))
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    story = read_story(run)
    assert tab.locator("#headline").inner_text() == headline(story)
    drawn = {"timeline": timeline(story)} | {p.id: p.figure for each in panels(story) for p in each}
    assert len(drawn) == 1 + 3 * 5 + 8
    for name, figure in drawn.items():
        assert tab.locator(f"#{name} g.trace").count() == len(figure["data"]), name
    assert "var(--" not in tab.locator("#timeline").inner_html()
    assert tab.locator("#stages tbody tr").count() == 4
    tab.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
    tab.wait_for_function(f"document.getElementById('stage0-0').getBoundingClientRect().width < {width}")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert (complaints, requests) == ([], [])
    tab.close()


@pytest.mark.browser
def test_hostile_names_do_nothing_in_a_browser(browser: Any, tmp_path: Path) -> None:
    told = {"where": HOSTILE, "means": HOSTILE, "do": HOSTILE}
    events = [found_at(3, HOSTILE, **told), ("veto", 5, {"why": HOSTILE}), (HOSTILE, 6, {})]
    folder = made(tmp_path / "hostile", [{**STAGES[0], "name": HOSTILE}], events=events)
    with (folder / "metrics.jsonl").open("a") as file:
        for step in (61, 62):
            file.write(
                json.dumps({**line(STAGES[0], 0, step), "stage": HOSTILE, HOSTILE: float(step)}) + "\n"
            )
    tab, complaints, requests = opened(browser, write_run_page(folder))
    assert tab.evaluate("document.title") != "owned"
    assert tab.locator("img").count() == 0
    assert (complaints, requests) == ([], [])
    tab.close()
