"""`steepest plan`: figures for ranks that nobody has."""

from __future__ import annotations

import sys

import pytest

from steepest.cli.app import main


@pytest.fixture
def call(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")

    def steepest(*arguments):
        monkeypatch.setattr(sys, "argv", ["steepest", "plan", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return steepest


def test_one_plan_lists_what_is_sent(call):
    code, out, _ = call("gpt2-124m", "--rule", "adamw", "--placement", "fsdp", "--ranks", "64")
    assert code == 0
    (row,) = (line.split() for line in out.splitlines() if line.split()[1:2] == ["fsdp"])
    # 124,439,808 parameters of four bytes, over 64: 7.78 MB
    assert row[:2] == ["64", "fsdp"] and row[2:4] == ["7.78", "MB"]
    sent = [tuple(line.split()[:2]) for line in out.splitlines()]
    for what in (("parameters", "all-gather"), ("gradients", "reduce-scatter"), ("verdict", "all-reduce")):
        assert what in sent, out


def test_many_plans_are_a_table(call):
    code, out, _ = call("tiny", "-r", "lamb", "-s", "split24/int8", "-n", "1,8,64")
    rows = [line.split()[:2] for line in out.splitlines() if line.split()[:1] in (["1"], ["8"], ["64"])]
    kinds = ["ddp", "zero1", "zero2", "fsdp", "hybrid"]
    assert code == 0 and rows == [[n, kind] for n in ("1", "8", "64") for kind in kinds]
    assert "what is sent" not in out


def test_a_hybrid_has_groups(call):
    code, out, _ = call("tiny", "-p", "hybrid,ddp", "-n", "64", "--group", "16")
    assert code == 0 and "hybrid of 16" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny", "-p", "fspd"], "unknown placement 'fspd'; did you mean 'fsdp'?"),
        (["tiny", "-n", "eight"], "must be whole numbers"),
        (["tiny", "-r", "adamv"], "unknown optimizer 'adamv'; did you mean"),
        (["tiny", "-s", "int9"], "unknown codec"),
        (["tinny"], "did you mean 'tiny'"),
        (["tiny", "-p", "hybrid", "-n", "12"], "choose a divisor of 12"),
    ],
)
def test_a_mistake_is_a_sentence(call, arguments, words):
    code, _, err = call(*arguments)
    assert code == 1 and words in err and err.count("\n") == 1
