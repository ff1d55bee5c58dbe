"""The tables of the step benchmark: what they say of a record, and the page that holds them."""

from __future__ import annotations

from typing import Any

import pytest

from steepest.contract import SteepestError
from steepest.lab.bench import END, START, page, tables, updated
from steepest.lab.bench.race import ratio
from steepest.lab.bench.tables import apart, missing


def timed(name: str, by: str, group: str, ms: float, **facts: Any) -> dict[str, Any]:
    least = round(0.8 * ms, 6)
    return {
        "name": name,
        "by": by,
        "group": group,
        "ms": [ms, least],
        "turns": [0, 1],
        "median_ms": ms,
        "min_ms": least,
        **facts,
    }


def fixture() -> dict[str, Any]:
    common = {"parameters": 1_000_000, "small": False, "state_bytes": 8_000_000, "card": "adamw"}
    probe = timed("a += b", "torch", "probe", 0.2, bytes=12_000_000)  # 60 GB/s
    mine = [timed("update", "steepest", "update", 0.5), timed("step", "steepest", "step", 0.6)]
    plain = {
        **common, "name": "AdamW", "title": "AdamW", "storage": "fp32", "bytes": 28_000_000,
        "racers": [
            *mine, probe,
            timed("clipped", "steepest", "clipped", 0.6), timed("telemetry", "steepest", "telemetry", 0.525),
            timed("torch fused", "torch", "update", 0.4), timed("torch fused", "torch", "clipped", 0.9),
            timed("schedulefree", "schedulefree", "other", 0.1),
            {"name": "optimi", "by": "optimi", "group": "update", "error": "failed: ImportError: a | b"},
        ],
    }  # fmt: skip
    packed = {
        **common, "name": "AdamW int8", "title": "AdamW", "storage": "int8", "bytes": 16_000_000,
        "state_bytes": 2_000_000,
        "racers": [*mine, probe, timed("fp32 update", "steepest", "baseline", 0.4),
                   timed("torchao", "torchao", "update", 15.0)],
    }  # fmt: skip
    small = {**plain, "name": "AdamW, 400 tensors of 10,000", "small": True}
    refused = {**common, "name": "AdamW bf16_rn", "title": "AdamW", "storage": "bf16_rn", "racers": [],
               "error": "refused: slot v."}  # fmt: skip
    return {
        "format": 1, "model": "tiny", "tensors": 2, "parameters": 1_000_000, "date": "2026-01-02",
        "rounds": 5,
        "machine": {"cpu": "A CPU", "threads": 2, "device": "cpu"}, "versions": {"torch": "2.13"},
        "cases": [plain, packed, small, refused],
        "first_step": [{"name": "AdamW", "cold_s": 1.5, "warm_s": 0.25}],
        "memory": [{"name": "AdamW", "temporary_bytes": 3_000_000}],
    }  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        "| AdamW | 28.0 | 0.5 (0.4) | 93% | 0.6 (0.48) | torch fused | 0.4 (0.32) | 0.80 |",
        "| AdamW | `int8` | 16.0 | 2.00 | 0.5 (0.4) | 53% | 1.25 | torchao | 15 (12) | 30.00 |",
        "| AdamW, clip and check | 0.6 (0.48) | torch fused behind clip_grad_norm_ | 0.9 (0.72) | 1.50 |",
        "| AdamW, telemetry | 0.525 (0.42) | without it | 0.5 (0.4) | 0.95 |",
        "| AdamW, 400 tensors of 10,000 | 0.5 (0.4) | torch fused | 0.4 (0.32) | 0.80 |",
        "| AdamW | 1.50 | 0.25 | 3.0 |",
        "| AdamW bf16_rn | refused: slot v. |",
    ],
)
def test_the_tables_say(row: str) -> None:
    assert row in tables(fixture()).splitlines()


def test_a_ratio_is_of_rounds_that_both_took_part_in() -> None:
    """Memory is twice as fast in the rounds 0 to 2: the medians alone would say 6/3."""
    ours = {"ms": [3.0, 3.0, 3.0, 6.0, 6.0], "turns": [0, 1, 2, 3, 4]}
    peer = {"ms": [3.3, 6.6, 6.6], "turns": [0, 3, 4]}
    assert ratio(peer, ours) == pytest.approx(1.1) and ratio(ours, peer) == pytest.approx(1 / 1.1)


def test_ratios_are_told_by_where_the_cores_lay() -> None:
    """Rounds 0 to 2 side by side, 3 to 5 far apart; the last was not looked at."""
    case = {
        **fixture()["cases"][1],
        "hand_over_ns": [50, 60, 99, 180, 400, 390, None],
        "racers": [
            {
                "name": name,
                "by": by,
                "group": group,
                "turns": [*range(7)],
                "ms": ms,
                "median_ms": 1,
                "min_ms": 1,
            }
            for name, by, group, ms in (
                ("update", "steepest", "update", [2.0] * 7),
                ("fp32 update", "steepest", "baseline", [2.2] * 3 + [1.6] * 3 + [9.0]),
                ("telemetry", "steepest", "telemetry", [2.0] * 3 + [2.1] * 4),
                ("torchao", "torchao", "update", [40.0, 50.0, 60.0, 80.0, 80.0, 90.0, 999.0]),
            )
        ],
    }
    told = apart({"cases": [case]}).splitlines()
    assert "| AdamW int8 | its own fp32 | 1.10 (3) | 0.80 (3) |" in told
    assert "| AdamW int8 | itself with telemetry | 1.00 (3) | 1.05 (3) |" in told
    assert "| AdamW int8 | torchao | 25.00 (3) | 40.00 (3) |" in told
    few = {**case, "hand_over_ns": [50, 60, 99, 180, 400, None, None]}
    assert apart({"cases": [few, *fixture()["cases"]]}) == ""


def test_cases_measured_anew_stand_in_the_place_of_the_old() -> None:
    old, new = fixture(), fixture()
    again = {**new["cases"][1], "racers": [timed("update", "steepest", "update", 0.25)]}
    more = {**again, "name": "AdamW int4"}
    new |= {"cases": [again, more, new["cases"][3]], "command": "steepest bench step -c int8", "took_s": 9}
    new["first_step"] = [
        {"name": "AdamW", "error": "left out: the time given was spent; give more with --budget."}
    ]
    both = updated(old, new)
    assert [c["name"] for c in both["cases"]] == [*(c["name"] for c in old["cases"]), "AdamW int4"]
    assert both["cases"][1] is again and both["cases"][0] == old["cases"][0]
    assert both["first_step"] == old["first_step"]
    assert both["updates"][0]["cases"] == ["AdamW int8", "AdamW int4"] and both["updates"][0]["took_s"] == 9
    assert "2 of 5 cases are of later runs" in tables(both)
    with pytest.raises(SteepestError, match="to update have model 'tiny', the new ones 'small'"):
        updated(old, {**new, "model": "small"})


def test_a_reason_that_several_share_stands_once_and_does_not_break_the_table() -> None:
    (row,) = [line for line in missing(fixture()).splitlines() if "ImportError" in line]
    assert row.startswith("| AdamW by optimi (optimi), AdamW, 400 tensors") and row.count("|") == 3


def test_an_empty_record_makes_no_empty_table() -> None:
    text = tables({**fixture(), "cases": [], "first_step": [], "memory": []})
    assert "|" not in text and "1.0M parameters; A CPU" in text


def test_the_page_keeps_what_is_written_by_hand() -> None:
    text = f"# Performance\n{START}\nstale figures\n{END}\nafter\n"
    new = page(fixture(), text)
    assert new.startswith("# Performance\n") and new.endswith("\nafter\n") and "stale" not in new
    assert page(fixture(), new) == new
    for wrong in ("nothing", f"{END} {START}", text + text):
        with pytest.raises(SteepestError, match="marks"):
            page(fixture(), wrong)
