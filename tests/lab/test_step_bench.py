"""The step benchmark: what it measures, how it counts, and that nothing which fails goes missing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from steepest.contract import Scope, SteepestError
from steepest.kernels import team
from steepest.lab.bench import (
    PEERS,
    STORAGES,
    Bench,
    Case,
    Plan,
    parse_storage,
    plan_cases,
    tables,
    traffic,
)
from steepest.lab.bench import field as room
from steepest.lab.bench.cores import hand_over_ns
from steepest.lab.bench.fresh import Job, attempt, first_steps, peak_memory
from steepest.lab.bench.peers import Peer, peers_of
from steepest.lab.bench.race import FEWEST, QUICK_FEWEST, Racer, race
from steepest.lab.bench.shapes import shapes_of
from steepest.lab.bench.tables import share
from steepest.lab.bench.traffic import AGAIN, state_bytes
from steepest.models import presets
from steepest.rules import CARDS, RULES

BIG = (torch.Size([1024, 1024]), torch.Size([512, 2048]))
N = sum(shape.numel() for shape in BIG)


def case(card: str, storage: str = "fp32", shapes: tuple[torch.Size, ...] = BIG) -> Case:
    return Case(CARDS[card], parse_storage(storage), shapes)


# ---------------------------------------------------------------------- what is measured


@pytest.mark.parametrize("name", ["tiny", "gpt2-124m"])
def test_shapes_are_the_preset_s_and_nothing_is_allocated(name: str) -> None:
    shapes = shapes_of(name)
    assert sum(shape.numel() for shape in shapes) == presets()[name].parameters()


def test_a_config_alone_gives_the_shapes(tmp_path: Any) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    shapes = shapes_of(str(tmp_path))
    assert torch.Size([48, 32]) in shapes and shapes_of(str(tmp_path / "config.json")) == shapes
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SteepestError, match="cannot read a model's shapes"):
        shapes_of(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "state", "param"),
    [
        ("fp32", None, None),
        ("bf16", "bf16", None),
        ("kahan", None, "kahan"),
        ("split24/int8", "int8", "split24"),
        ("m=int4+v=fp8", {"m": "int4", "v": "fp8"}, None),
        (" split24/m=int4+v=factored", {"m": "int4", "v": "factored"}, "split24"),
    ],
)
def test_a_storage_is_read(text: str, state: Any, param: str | None) -> None:
    storage = parse_storage(text)
    assert (storage.state, storage.param) == (state, param)
    assert storage.dtype == (torch.bfloat16 if param else torch.float32)
    assert set(storage.options()) == {k for k, v in (("state", state), ("param", param)) if v}


@pytest.mark.parametrize("text", ["int9", "m=int9", "splat/int8", "/int9"])
def test_a_misspelt_storage_is_a_sentence(text: str) -> None:
    with pytest.raises(SteepestError, match="unknown codec of"):
        parse_storage(text)


def test_every_rule_is_crossed_with_every_storage_that_says_something() -> None:
    cases = plan_cases([*CARDS], STORAGES, BIG)
    named = {c.name for c in cases}
    assert len(named) == len(cases) > 100
    assert {"AdamW", "AdamW int8", "Lion split24/int8", "SGD split32", "LAMB, 400 tensors of 10,000"} <= named
    assert "SGD int8" not in named, "a rule without slots has nothing to store in eight bits"
    assert "Lion m=int8+v=factored" not in named, "Lion has no v"
    ranks = ["AdamW", "AdamW, 400 tensors of 10,000", "AdamW int8", "Lion bf16"]
    order = [[c.name for c in cases].index(name) for name in ranks]
    assert order == sorted(order), "what people ask for first comes first"


def test_every_peer_is_of_a_card_and_every_card_has_a_peer() -> None:
    assert {card for card, _ in PEERS} == {*CARDS}
    assert all((card, "fp32") in PEERS and peers_of(card, "fp32") for card in CARDS)
    for _, storage in PEERS:
        parse_storage(storage)
    assert {p.name for p in peers_of("adamw", "fp32", small=True)} == {"torch fused", "torch foreach", "timm"}


# ---------------------------------------------------------------------- bytes

EACH = {
    "sgd": 12,
    "momentum": 20,
    "rmsprop": 20,
    "adagrad": 20,
    "adam": 28,
    "adamw": 28,
    "lion": 20,
    "signum": 20,
    "lamb": 40,
    "lars": 28,
    "adafactor": 24,
}
"""Bytes an element in float32, counted by hand."""


def test_bytes_by_hand_cover_every_card() -> None:
    assert set(EACH) == set(CARDS)
    assert {r.name for r in RULES.values() if r.scope != Scope.ELEMENT} == set(AGAIN)


@pytest.mark.parametrize("card", EACH)
def test_bytes_that_must_move(card: str) -> None:
    assert traffic(case(card)) / N == pytest.approx(EACH[card], rel=2e-3)  # row and column means are few


@pytest.mark.parametrize(
    ("card", "storage", "each"),
    [
        ("adamw", "bf16", 20),
        ("adamw", "int8", 16 + 4 * 4 / 128),  # a scale of four bytes a block, two slots, read and written
        ("adamw", "int4", 14 + 4 * 4 / 128),
        ("adamw", "split32", 26),
        ("adamw", "split24/int8", 12 + 4 * 4 / 128),
        ("adamw", "bf16/bf16", 14),
        ("lion", "int8", 14 + 2 * 4 / 128),
        ("lamb", "bf16", 20 + 12),  # p, g and both old slots are read again: none of the new is exact
    ],
)
def test_bytes_of_codecs(card: str, storage: str, each: float) -> None:
    assert traffic(case(card, storage)) / N == pytest.approx(each)


def test_unscaled_adafactor_does_not_read_the_parameter_twice() -> None:
    scaled = case("adafactor")
    plain = replace(scaled, card=replace(scaled.card, settings={"scale_parameter": False}))
    assert traffic(scaled) - traffic(plain) == 4 * N


def test_state_bytes_are_those_allocated() -> None:
    for card in CARDS:
        found = case(card, shapes=(torch.Size([256, 130]), torch.Size([64])))
        work = room.Workspace(found.shapes, "cpu")
        assert room.ours(found, work.params(torch.float32), "foreach").state_bytes() == state_bytes(found)


# ---------------------------------------------------------------------- timing


def racer(name: str, step: Any, group: str = "update", by: str = "other") -> Racer:
    return Racer(name, by, group, lambda: step)


def test_a_race_interleaves_in_rotated_order() -> None:
    order: list[str] = []

    def step(name: str) -> Any:
        return lambda: (order.append(name), time.sleep(0.003))

    runners = [racer(name, step(name)) for name in "abc"]
    race(runners, rounds=4, seconds=60, device="cpu", patience=10)
    assert all(len(r.ms) == 4 and min(r.ms) >= 3 for r in runners)
    assert order[:6] == [*"abcabc"], "two rounds that are dropped"
    timed = order[6:]
    assert timed[::2] == timed[1::2], "the quick take a step that is not timed"
    rounds = ["".join(timed[i : i + 6 : 2]) for i in range(0, len(timed), 6)]
    assert len(rounds) == 4 and all(sorted(r) == [*"abc"] for r in rounds)
    assert len(set(rounds)) > 2


def test_the_slow_take_part_in_fewer_rounds_and_the_quick_are_repeated(monkeypatch: Any) -> None:
    monkeypatch.setattr("steepest.lab.bench.race.QUICK", 0.01)
    slow, quick = racer("slow", lambda: time.sleep(0.02)), racer("quick", lambda: None)
    race([slow, quick], rounds=12, seconds=0.001, device="cpu", patience=10)
    assert len(slow.ms) == FEWEST and len(quick.ms) == QUICK_FEWEST
    assert quick.repeats > 10 and slow.repeats == 1


def test_who_fails_is_left_with_a_reason_and_the_others_go_on() -> None:
    def broken() -> Any:
        raise ImportError("no module\nnamed foo")

    calls = iter(range(100))

    def later() -> None:
        if next(calls) == 3:
            raise RuntimeError("out of memory")

    refused = Racer("x", "steepest", "update", lambda: (_ for _ in ()).throw(SteepestError("not this one.")))
    late = racer("late", lambda: (later(), time.sleep(0.003)))
    fine = racer("fine", lambda: time.sleep(0.003))
    runners = [Racer("y", "foo", "update", broken), refused, late, fine]
    race(runners, rounds=5, seconds=60, device="cpu", patience=10)
    found = [r.record() for r in runners]
    assert found[0]["error"] == "failed: ImportError: no module named foo"
    assert found[1]["error"] == "refused: not this one."
    assert found[2]["error"] == "failed: RuntimeError: out of memory"
    assert len(found[3]["ms"]) == 5 and found[3]["min_ms"] <= found[3]["median_ms"]


def test_patience_ends_a_first_step_that_does_not() -> None:
    endless = racer("endless", lambda: time.sleep(30))
    race([endless], rounds=2, seconds=1, device="cpu", patience=0.05)
    assert endless.error is not None and "more than 0 s" in endless.error


# ---------------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """The model `tiny`, two rules and one codec, the peers that are torch's; one of them is broken."""
    broken = Peer("absent", "no_such_library", "Lion")
    peers = {
        ("adamw", "fp32"): PEERS["adamw", "fp32"][:2],
        ("lion", "fp32"): (broken,),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steepest.lab.bench.peers.PEERS", peers)
        plan = Plan(
            "tiny", ("adamw", "lion"), ("fp32", "bf16"), rounds=3, engine="foreach", fresh=False, threads=1
        )
        bench = Bench(plan)
        names = list(bench.run())
    assert len(names) == len(bench) == len(bench.cases) == 5
    return bench.record


def test_a_record_holds_every_round_and_its_own_bound(record: dict[str, Any]) -> None:
    adamw = record["cases"][0]
    assert (record["model"], record["parameters"]) == ("tiny", 131_904)
    assert adamw["name"] == "AdamW" and adamw["bytes"] == 28 * 131_904
    by_name = {(r["name"], r["group"]): r for r in adamw["racers"]}
    for key in (("step", "step"), ("clipped", "clipped"), ("torch fused", "update"), ("a += b", "probe")):
        assert len(by_name[key]["ms"]) == 3, key
    assert by_name["step", "step"]["engine"] == "foreach"
    probe = by_name["a += b", "probe"]
    update = by_name["update", "update"]
    shares = sorted(28 / 12 * a / b for a, b in zip(probe["ms"], update["ms"], strict=True))
    assert probe["bytes"] == 12 * 131_904 and share(adamw, update) == pytest.approx(shares[1])
    assert {"cpu", "threads", "device"} <= set(record["machine"]) and "torch" in record["versions"]


def test_a_peer_that_fails_is_reported(record: dict[str, Any]) -> None:
    (lion,) = [c for c in record["cases"] if c["name"] == "Lion"]
    (absent,) = [r for r in lion["racers"] if r["name"] == "absent"]
    assert absent["error"] == "failed: ModuleNotFoundError: No module named 'no_such_library'"
    text = tables(record)
    assert "| Lion by no_such_library (absent) | failed: ModuleNotFoundError" in text


def test_no_time_left_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan("tiny", ("sgd",), ("fp32",), rounds=1, seconds=0, engine="foreach", peers=False)
    bench = Bench(plan)
    list(bench.run())
    assert bench.record["first_step"][0]["error"].startswith("left out: the time given was spent")
    assert "left out" in tables(bench.record)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(device="tpu"), "device 'tpu'"),
        (Plan(rounds=0), "rounds=0"),
        (Plan(engine="warp"), "unknown engine"),
        (Plan(model="tinny"), "did you mean 'tiny'"),
        (Plan(model="tiny", cards=("adamm",)), "did you mean"),
    ],
)
def test_a_wrong_plan_is_a_sentence(plan: Plan, words: str) -> None:
    with pytest.raises(SteepestError, match=words):
        Bench(plan)


# ---------------------------------------------------------------------- fresh processes


def job(**other: Any) -> Job:
    return Job(**{"card": "sgd", "storage": "fp32", "shapes": BIG, "engine": "foreach", "device": "cpu",
                  "threads": 1, **other})  # fmt: skip


@pytest.mark.slow
def test_first_steps_and_memory_are_measured_in_fresh_processes() -> None:
    first = attempt(first_steps, job())
    assert 0 < first["warm_s"] < 60 and 0 < first["cold_s"] < 60 and first["card"] == "sgd"
    memory = attempt(peak_memory, job(card="adamw"))
    assert 0 <= memory["temporary_bytes"] < 2**28


def test_what_a_fresh_process_refuses_is_said() -> None:
    assert attempt(first_steps, job(storage="int9"))["error"].startswith("refused: unknown codec")


def test_numbers_are_finite(record: dict[str, Any]) -> None:
    times = [t for c in record["cases"] for r in c["racers"] for t in r.get("ms", ())]
    assert len(times) > 50 and all(math.isfinite(t) and t > 0 for t in times)


# ---------------------------------------------------------------------- cores


def test_cores_hand_a_number_over() -> None:
    """A busy machine may take a thread away for longer than the other waits: then it is asked again."""
    found = [x for _ in range(50) if (x := hand_over_ns()) is not None]
    here = torch.get_num_threads() > 1 and bool(team().number)
    assert bool(found) == here and all(1 < x < 1e6 for x in found)


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system cannot hold a process to a core"
)
def test_two_threads_on_one_core_end_without_a_figure() -> None:
    """They never meet while both look: the wait has an end."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import torch; "
        "torch.set_num_threads(2); from steepest.lab.bench.cores import *; print(hand_over_ns())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == "None", out.stderr
