"""The page: its words, its recommendation, hostile input, and what a real browser makes of it."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from browsing import opened
from hypothesis import given
from hypothesis import strategies as st
from studies import FIELD, SEEDS, finished, plan, races, trial, tuning, write

from steepest.contract import SteepestError
from steepest.lab.analysis import Summary, analyse
from steepest.lab.records import read_records
from steepest.lab.report import (
    choose,
    headline,
    recommendation,
    recommended_yaml,
    render,
    snippet,
    verdict,
    words,
    write_report,
)
from steepest.lab.report.figures import figures, spread
from steepest.lab.report.rules import RULES
from steepest.rules import CARDS

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def shift(records: list[dict[str, Any]], name: str, by: float) -> list[dict[str, Any]]:
    """Move an optimizer's evaluation losses."""
    for record in records:
        if record["optimizer"] == name and record["phase"] == "race":
            record["final"]["loss"] += by
            record["validation"] = {
                **record["validation"],
                "loss": [loss + by for loss in record["validation"]["loss"]],
            }
    return records


def summary_of(study: dict[str, Any], records: list[dict[str, Any]]) -> Summary:
    return analyse(study, records)


@pytest.fixture
def field() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Eleven optimizers on five seeds; plain SGD diverges when evaluated, and LAMB lacks two trials."""
    study = plan()
    records = [
        record
        for record in finished(study)
        if record["phase"] == "tune"
        or (
            record["optimizer"] != "sgd"
            and (record["optimizer"], record["seed"]) not in {("lamb", 104), ("lamb", 105)}
        )
    ]
    return study, records + races(study, "sgd", diverged=True)


def test_the_report_is_one_file_with_its_recommendation_beside_it(tmp_path: Path, field: Any) -> None:
    folder = write(tmp_path / "study", *field)
    page = write_report(folder)
    assert page == folder / "report.html"
    text = page.read_text()
    assert text.count("<html") == 1
    shell = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"""(src|href)=["'](https?:|//)|@import|url\(""", shell)
    assert "The same command continues" not in shell
    assert "LAMB (2 of 5 evaluation trials are missing)" in shell
    assert sorted(p.name for p in folder.iterdir()) == [
        "recommended.yaml",
        "report.html",
        "study.json",
        "trials",
    ]
    for record in read_records(folder / "trials")[0]:
        assert f'href="trials/{record["id"]}.json"' in shell.replace("%2B", "+")


def test_the_same_records_give_the_same_bytes(tmp_path: Path, field: Any) -> None:
    folder = write(tmp_path / "study", *field)
    first = write_report(folder).read_bytes()
    assert write_report(folder, tmp_path / "elsewhere" / "page.html").read_bytes() == first
    assert (tmp_path / "elsewhere" / "recommended.yaml").exists()


def test_a_damaged_record_is_named_on_the_page(tmp_path: Path, field: Any) -> None:
    folder = write(tmp_path / "study", *field)
    (folder / "trials" / "race-lion-0.0005-101.json").write_text("{")
    text = write_report(folder).read_text()
    assert "race-lion-0.0005-101.json (it does not parse" in text
    assert "Lion (1 of 5 evaluation trials are missing)" in text


def test_no_study_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SteepestError, match="holds no study"):
        write_report(tmp_path)


@pytest.mark.parametrize("known", [0, 1, 6, 11])
def test_a_study_at_any_stage_has_a_page(tmp_path: Path, known: int) -> None:
    study = plan()
    records = finished(study)[:known]
    page = write_report(write(tmp_path, study, records)).read_text()
    assert "<h1" in page
    answered = bool(summary_of(study, records).leaders)
    assert (tmp_path / "recommended.yaml").exists() == answered
    assert ("No answer yet" in page) != answered


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    study = plan(["adamw", "lion"], model=HOSTILE, command=HOSTILE)
    records = finished(study)
    for record in records:
        record["title"] = HOSTILE
        record["hyper"] = {**record["hyper"], HOSTILE: HOSTILE}
        record["reason"] = HOSTILE
    page = write_report(write(tmp_path, study, records)).read_text()
    plain = write_report(
        write(tmp_path / "plain", plan(["adamw", "lion"]), finished(plan(["adamw", "lion"])))
    )
    for tag in ("<script", "</script", "<img"):
        assert page.count(tag) == plain.read_text().count(tag), tag
    assert yaml.safe_load((tmp_path / "recommended.yaml").read_text())["model"] == HOSTILE


def test_figures_are_plain_json_without_raw_markup() -> None:
    study = plan(["adamw", "lion"])
    records = finished(study)
    for record in records:
        record["title"] = HOSTILE
    text = json.dumps(figures(summary_of(study, records)), allow_nan=False)
    assert "<script" not in text and "<img" not in text


# The verdict in words -----------------------------------------------------------------------------


def test_words_of_a_win() -> None:
    study = plan(["adamw", "lion", "sgd"])
    summary = summary_of(study, shift(finished(study), "lion", -0.03))
    assert headline(summary) == "Lion trains this model best"
    first, others, cost, scope = verdict(summary, study)
    assert re.fullmatch(
        r"Lion ends 0\.0\d+ nats below AdamW \(95% interval 0\.0\d+ to 0\.0\d+, "
        r"Holm-corrected p < 0\.001, 5 paired seeds\)\.",
        first,
    )
    assert others.startswith("SGD is worse than AdamW, by 1.0")
    assert cost.startswith("Lion keeps 528 KB of optimizer state where AdamW keeps 1.06 MB")
    assert "131,904 parameters" in scope and "102k tokens" in scope


def test_words_of_a_tie_name_everyone() -> None:
    study = plan(["adamw", "lion", "adam", "sgd"])
    summary = summary_of(study, finished(study))
    assert headline(summary) == "AdamW, Lion and Adam tie for the best"
    assert verdict(summary, study)[0].startswith("No optimizer beats AdamW: Lion and Adam end within 0.0")


def test_words_of_a_tie_above_the_baseline() -> None:
    study = plan(["adamw", "lion", "adam", "sgd"])
    records = shift(shift(finished(study), "lion", -0.05), "adam", -0.0505)
    summary = summary_of(study, records)
    assert headline(summary) == "Lion and Adam tie for the best"
    assert "Adam cannot be told apart from it." in verdict(summary, study)[0]


def test_words_when_the_baseline_wins() -> None:
    study = plan(["adamw", "rmsprop", "sgd"])
    summary = summary_of(study, finished(study))
    assert headline(summary) == "AdamW trains this model best"
    first = verdict(summary, study)[0]
    assert first.startswith("Every contender ends significantly higher than AdamW; the closest, RMSprop, 0.0")


def test_words_when_nothing_can_be_judged() -> None:
    study = plan()
    summary = summary_of(study, [])
    assert headline(summary) == "No answer yet"
    first = verdict(summary, study)[0]
    assert first.startswith("Nothing can be judged yet (adamw: 5 of 5 evaluation trials are missing;")
    assert first.endswith("and 7 more).")


def test_words_with_one_seed_say_so() -> None:
    study = plan(["adamw", "lion"], seeds=[101])
    text = " ".join(verdict(summary_of(study, finished(study)), study))
    assert "one evaluation seed gives no interval, so there is no verdict" in text


def test_an_edge_is_a_caution() -> None:
    study = plan(["adamw", "lion"])
    records = [
        *tuning(study, "adamw", 2, 0),
        *races(study, "adamw"),
        *tuning(study, "lion"),
        *races(study, "lion"),
    ]
    text = " ".join(verdict(summary_of(study, records), study))
    assert "Caution: the best learning rate of AdamW lies at the end of its grid." in text


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (words.rate(3e-3), "3e-3"),
        (words.rate(2.5e-4), "2.5e-4"),
        (words.rate(0.032), "0.032"),
        (words.rate(0.5), "0.5"),
        (words.rate(None), "–"),
        (words.size(0), "0 B"),
        (words.size(15_800), "15.8 KB"),
        (words.size(1_055_232), "1.06 MB"),
        (words.count(950), "950"),
        (words.count(102_400), "102k"),
        (words.count(3_500_000), "3.5M"),
        (words.duration(3.14), "3.1 s"),
        (words.duration(600), "10.0 min"),
        (words.duration(9000), "2.5 h"),
        (words.signed(-0.0213), "−0.021"),
        (words.signed(0.0213), "+0.021"),
        (words.signed(-0.0001), "0.000"),
        (words.probability(0.0004), "<0.001"),
        (words.probability(0.0134), "0.013"),
        (words.listing(["A"]), "A"),
        (words.listing(["A", "B", "C"]), "A, B and C"),
        (words.milliseconds(0.7), "0.70"),
        (words.milliseconds(15.0), "15.0"),
        (words.milliseconds(137.6), "138"),
    ],
)
def test_numbers(found: str, expected: str) -> None:
    assert found == expected


@given(st.floats(1e-9, 1e6))
def test_a_rate_reads_back_as_itself(lr: float) -> None:
    assert float(words.rate(lr)) == pytest.approx(lr, rel=0.06)


# The recommendation -------------------------------------------------------------------------------


def test_a_tie_recommends_the_clearly_smaller() -> None:
    study = plan(["adamw", "lion", "adam"])
    choice = choose(summary_of(study, finished(study)))
    assert choice is not None
    assert choice.name == "lion"
    assert (
        choice.reason == "Lion ties with AdamW in loss and keeps 528 KB of state where AdamW keeps 1.06 MB."
    )


def test_a_tie_without_a_smaller_one_recommends_the_baseline() -> None:
    study = plan(["adamw", "adam"])
    choice = choose(summary_of(study, finished(study)))
    assert choice is not None
    assert choice.name == "adamw"
    assert (
        choice.reason == "Adam and AdamW tie, and none that ties keeps clearly less state at as low a loss."
    )


def test_a_tie_by_noise_alone_does_not_recommend_the_smaller() -> None:
    study = plan(["adamw", "lion"])
    base = [*tuning(study, "adamw"), *races(study, "adamw")]
    far = [trial(study, "lion", "race", 5e-4, s, loss=2.5 + 0.3 * (-1) ** s) for s in SEEDS]
    summary = summary_of(study, [*base, *tuning(study, "lion"), *far])
    assert (summary["lion"].verdict, summary.leaders) == ("tie", ("adamw", "lion"))
    assert choose(summary) == (
        "adamw",
        "Lion and AdamW tie, and none that ties keeps clearly less state at as low a loss.",
    )


def test_a_winner_is_recommended_with_everything_needed_to_run_it() -> None:
    study = plan(["adamw", "lion", "sgd"])
    summary = summary_of(study, shift(finished(study), "lion", -0.03))
    assert recommendation(summary, study) == {
        "model": "tiny",
        "data": "stdlib",
        "tokenizer": "bytes",
        "optimizer": {"name": "lion", "lr": 5e-4, "betas": [0.9, 0.99], "weight_decay": 0.6},
        "schedule": {"name": "cosine", "warmup": 20, "final": 0.1},
        "clip": 1.0,
        "batch": 8,
        "context": 64,
        "steps": 200,
        "seed": 101,
    }
    text = recommended_yaml(summary, study)
    assert text is not None
    assert yaml.safe_load(text) == recommendation(summary, study)
    header = [line for line in text.splitlines() if line.startswith("# ")]
    assert [line.split(":")[0] for line in header] == ["# Run it with", "# Why", "# Evidence", "# Made by"]


def test_nothing_judged_recommends_nothing() -> None:
    study = plan()
    summary = summary_of(study, [])
    assert (choose(summary), recommendation(summary, study), snippet(summary)) == (None, {}, "")
    assert recommended_yaml(summary, study) is None


def test_every_optimizer_has_its_class() -> None:
    import steepest

    assert set(CARDS) == set(FIELD)
    assert all(hasattr(steepest, card.constructor) for card in CARDS.values())


@pytest.mark.parametrize("winner", ["lion", "momentum", "adam"])
def test_the_snippet_runs(winner: str) -> None:
    import torch

    study = plan(["adamw", winner])
    summary = summary_of(study, shift(finished(study), winner, -2.0))
    space: dict[str, Any] = {"model": torch.nn.Linear(3, 2)}
    exec(snippet(summary, study["clip"]), space)
    group, *undecayed = space["optimizer"].param_groups
    assert all(rest["weight_decay"] == 0 for rest in undecayed)
    assert type(space["optimizer"]).__name__ == CARDS[winner].constructor
    assert group["lr"] == FIELD[winner].lr
    assert group.items() >= {"lr": FIELD[winner].lr}.items()
    for key, value in FIELD[winner].hyper.items():
        assert group[key] == (tuple(value) if isinstance(value, list) else value), key


# Figures and rules --------------------------------------------------------------------------------


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=15))
def test_labels_never_overlap_and_keep_their_order(places: list[float]) -> None:
    length, least = 342, 15
    pixels = spread(places, length, least)
    gap = min(least, length / max(1, len(places) - 1))
    ordered = [pixels[i] for i in sorted(range(len(places)), key=lambda i: -places[i])]
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(ordered))
    assert all(-1e-6 <= pixel <= length + 1e-6 for pixel in pixels)


def test_a_poor_optimizer_does_not_squash_the_rest(field: Any) -> None:
    study = plan()
    summary = summary_of(study, finished(study))
    low, high = figures(summary)["loss-tokens"]["layout"]["yaxis"]["range"]
    assert low < 2.3 < 2.5 < high < FIELD["sgd"].loss
    page = render(study, summary, [])
    assert "SGD ends at 3.4" in page


def test_one_colour_per_optimizer_in_every_figure(field: Any) -> None:
    found = figures(summary_of(*field))
    lines = {t["name"]: t["line"]["color"] for t in found["loss-tokens"]["data"] if "name" in t}
    bars = dict(
        zip(found["memory"]["data"][0]["y"], found["memory"]["data"][0]["marker"]["color"], strict=True)
    )
    assert len(lines) == 9 and len(set(lines.values())) == 9
    assert len(bars) == 11 and len(set(bars.values())) == 11
    assert {title: bars[title] for title in lines} == lines


def test_the_page_and_the_documentation_state_the_same_rules() -> None:
    assert len(RULES) == 21
    page = (Path(__file__).parents[2] / "docs" / "compare.md").read_text()
    stated = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", page, flags=re.M)
    assert [(int(number), text, kind, how) for number, text, kind, how in stated] == [
        (number, *rule) for number, rule in enumerate(RULES, 1)
    ]


# In a browser -------------------------------------------------------------------------------------


@pytest.mark.browser
def test_the_report_in_a_browser(browser: Any, tmp_path: Path, field: Any) -> None:
    tab, complaints, requests = opened(browser, write_report(write(tmp_path, *field)))

    assert tab.locator("#headline").inner_text() == "AdamW, Lion and Adam tie for the best"
    assert tab.locator("#headline").bounding_box()["y"] < 200
    assert tab.locator("#verdict").is_visible()
    drawn = figures(summary_of(*field))
    assert len(drawn) == 5 + 11
    for name, figure in drawn.items():
        place = tab.locator(f"#{name}")
        assert place.locator("svg.main-svg").count() > 0, name
        assert place.locator("g.trace").count() == len(figure["data"]), name
    light = tab.locator("#loss-tokens").inner_html()
    assert "var(--" not in light
    assert tab.evaluate("document.documentElement.scrollWidth") == 1280

    first = tab.locator("#numbers tbody tr:first-child td:first-child")
    assert first.inner_text() == "AdamW"
    state = tab.locator("#numbers th button", has_text="state")
    state.click()
    assert first.inner_text() == "SGD"
    state.click()
    assert first.inner_text() in {"AdamW", "Adam", "LAMB"}
    tab.locator("#numbers th button", has_text="nats/token").click()
    titles = tab.locator("#numbers tbody td:first-child").all_inner_texts()
    assert titles[0] == "AdamW" and set(titles[-2:]) == {"SGD", "LAMB"}

    tab.set_viewport_size({"width": 700, "height": 900})
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function("document.getElementById('loss-tokens').getBoundingClientRect().width < 700")
    assert tab.evaluate("document.documentElement.scrollWidth") == 700
    assert tab.locator("#loss-tokens").inner_html() != light

    assert complaints == []
    assert requests == []
    tab.close()


@pytest.mark.browser
def test_hostile_names_do_nothing_in_a_browser(browser: Any, tmp_path: Path) -> None:
    study = plan(["adamw", "lion"], model=HOSTILE, command=HOSTILE)
    records = finished(study)
    for record in records:
        record["title"] = (
            HOSTILE if record["optimizer"] == "lion" else "<a href='javascript:alert(1)'>AdamW</a>"
        )
    tab, complaints, requests = opened(browser, write_report(write(tmp_path, study, records)))
    assert tab.evaluate("document.title") != "owned"
    assert tab.locator("a[href^=javascript]").count() == 0
    assert tab.locator("img").count() == 0
    assert (complaints, requests) == ([], [])
    tab.close()


def test_a_known_floor_is_part_of_the_scope() -> None:
    study = plan(["adamw", "lion"])
    assert "No model can end below" not in verdict(summary_of(study, finished(study)), study)[-1]
    study["data"]["facts"] = {"floor_bits_per_byte": 1.4312}
    last = verdict(summary_of(study, finished(study)), study)[-1]
    assert last.endswith("No model can end below 1.431 bits per byte on this data.")
