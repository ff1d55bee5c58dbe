"""The command line in this process: what it teaches, and that every mistake is a sentence."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import steepest
from steepest.cli.app import app, main
from steepest.lab import Pool
from steepest.rules import CARDS
from steepest.training import lock

TINY = ["--budget", "20steps", "--seeds", "2", "--batch", "2", "--context", "16", "--workers", "1"]
"""Twenty steps of thirty-two tokens."""


class Answer(NamedTuple):
    """What a call came to: its exit code, what it printed, and what it said of errors."""

    code: int
    out: str
    err: str


Call = Callable[..., Answer]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`steepest ARGUMENTS`, in an empty folder, with the trials in this process."""

    def run(pool: Pool, next_jobs: Callable[[], list[Any]]) -> Any:
        queue = next_jobs()
        while queue:
            key, arguments = queue.pop(0)
            yield key, pool._task(**arguments)
            queue += next_jobs()

    monkeypatch.setattr(Pool, "__enter__", lambda pool: pool)
    monkeypatch.setattr(Pool, "run", run)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def steepest(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["steepest", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code or 0
        return Answer(int(code), *capsys.readouterr())

    return steepest


def sentence(answer: Answer, words: str, code: int = 1) -> None:
    """The answer is one clear sentence on stderr that says these words."""
    assert answer.code == code
    assert "Traceback" not in answer.out + answer.err
    assert re.search(words, answer.err), answer.err
    assert code == 2 or (answer.err.startswith("error: ") and answer.err.count("\n") == 1)


# ---------------------------------------------------------------------- what it teaches


def leaves(group: Any, above: str = "") -> dict[str, Any]:
    """Every command, also inside groups: "bench step"."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        full = f"{above} {name}".strip()
        found |= leaves(command, full) if hasattr(command, "commands") else {full: command}
    return found


COMMANDS = leaves(get_command(app))


def test_the_commands_are_these() -> None:
    names = ["bench step", "compare", "doctor", "faults run", "kernels show", "optimizers", "plan", "report"]
    names += ["train", *(f"checkpoint {verb}" for verb in ("convert", "diff", "show", "verify"))]
    assert sorted(COMMANDS) == sorted(names)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_is_documented(name: str) -> None:
    command = COMMANDS[name]
    assert len(command.help) > 40
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name} says nothing"
    shown = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    for parameter in command.params:
        for option in parameter.opts:
            assert option in shown.output


def test_help_for_compare_has_defaults_and_examples_of_a_budget() -> None:
    shown = CliRunner().invoke(app, ["compare", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    for words in ("5m", "200steps", "100ktok", "default: 160steps", "default: tiny", "default: stdlib"):
        assert words in shown
    for words in ("pkg.module:factory", "bpe:4096", ".jsonl", "Ctrl-C is safe", "default: runs/compare"):
        assert words in shown


def test_no_arguments_show_the_help(call: Call) -> None:
    answer = call()
    assert "compare" in answer.out + answer.err and "Traceback" not in answer.err


def test_optimizers_lists_every_card_with_its_memory(call: Call) -> None:
    code, out, _ = call("optimizers")
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines() if line.split() and line.split()[0] in CARDS}
    assert rows.keys() == CARDS.keys()
    for name, card in CARDS.items():
        assert f"x {card.relative_lr:g}" in rows[name] and card.summary in rows[name]
    for name, words in (("sgd", 0), ("adamw", 8), ("lion", 4)):
        assert f" {words} B " in rows[name]


@pytest.mark.parametrize(("name", "words"), [("sgd", 0), ("momentum", 4), ("adamw", 8), ("lion", 4)])
def test_the_memory_shown_is_the_memory_kept(name: str, words: int) -> None:
    from steepest.cli.optimizers import state_bytes

    card = CARDS[name]
    weight = torch.nn.Parameter(torch.zeros(64, 32))
    optimizer = getattr(steepest, card.constructor)([weight], lr=0.1, **card.settings)
    assert optimizer.state_bytes() == words * weight.numel() == state_bytes(card) * weight.numel()


# ---------------------------------------------------------------------- mistakes in words

TOY = "compare toys:bigram synthetic:0:20000"

WORDS: list[tuple[str, int, str]] = [
    ("compar", 2, "Did you mean 'compare'"),
    ("compare --optimzers lion", 2, "--optimizers"),
    ("compare --seeds many", 2, "Invalid value for '--seeds'"),
    ("compare tiny synthetic third", 2, "third"),
    ("train", 2, "config"),
    (f"{TOY} --optimizers lyon", 1, "unknown optimizer 'lyon'; did you mean 'lion'"),
    (f"{TOY} --optimizers adamw,siggnum", 1, "did you mean 'signum'"),
    (f"{TOY} --budget 5weeks", 1, "budget '5weeks' is not understood.*200steps"),
    (f"{TOY} --budget 0m", 1, "budget '0m'"),
    (f"{TOY} --budget 3steps", 1, "3 steps and one needs 20; give at least 20steps"),
    (f"{TOY} --budget 1ktok", 1, "1 steps and one needs 20; give at least 10240tok"),
    (f"{TOY} --budget 0.001s", 1, "0 steps and one needs 20; give at least [0-9]+s, or compare fewer"),
    (f"{TOY} --seeds 0", 1, "--seeds 0"),
    (f"{TOY} --workers 0", 1, "--workers 0"),
    (f"{TOY} --batch 0", 1, "batch: .*got 0"),
    (f"{TOY} --context -1", 1, "context: .*got -1"),
    (f"{TOY} --clip -1", 1, "clip: .*got -1"),
    (f"{TOY} --clip nan", 1, "clip: .*got nan"),
    (f"{TOY} --schedule cosin", 1, "did you mean 'cosine'"),
    (f"{TOY} --warmup 1.5", 1, "warmup 1.5"),
    (f"{TOY} --tokenizer byts", 1, "did you mean 'bytes'"),
    (f"{TOY} --tokenizer bpe:12", 1, "'bpe:12' is too small"),
    (f"{TOY} --tokenizer model", 1, "needs a model folder"),
    (f"{TOY} --device cud", 1, "device 'cud' cannot be used"),
    ("compare tinny synthetic:0:20000", 1, "did you mean 'tiny'"),
    ("compare toys:bigrm synthetic:0:20000", 1, "did you mean 'bigram'"),
    ("compare nothing.here:model synthetic:0:20000", 1, "cannot import"),
    ("compare ./no/model synthetic:0:20000", 1, "no folder './no/model'"),
    ("compare toys:bigram nowhere.txt", 1, "no file or folder 'nowhere.txt'"),
    ("compare toys:bigram stdlb", 1, "did you mean 'stdlib'"),
    ("compare toys:broken synthetic:0:20000", 1, "nan before any training; look at the data"),
    ("report nowhere", 1, "nowhere holds no study"),
    ("train nowhere.yaml", 1, "no config at nowhere.yaml"),
]


@pytest.mark.parametrize(("line", "code", "words"), WORDS, ids=[line for line, _, _ in WORDS])
def test_a_mistake_is_a_sentence(call: Call, line: str, code: int, words: str, tmp_path: Path) -> None:
    sentence(call(*line.split()), words, code)
    assert not list(tmp_path.rglob("study.json")), "nothing was begun"


# ---------------------------------------------------------------------- mistakes in data


def nothing(path: Path) -> Path:
    path.write_text("")
    return path


def blank(path: Path) -> Path:
    path.write_text(" \n\n ")
    return path


def binary(path: Path) -> Path:
    path.write_bytes(bytes(range(256)) * 40)
    return path


def missing(path: Path) -> Path:
    return path


def unreadable(path: Path) -> Path:
    path.symlink_to("/proc/self/mem")  # even the superuser cannot read its first bytes
    return path


def short(path: Path) -> Path:
    path.write_text("A sentence.\n" * 40)
    return path


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def broken_lines(path: Path) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text('{"text": "good"}\n{"text": bad}\n')
    return path


def other_key(path: Path) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text('{"body": "good"}\n')
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nothing, "there is no text in"),
        (blank, "there is no text in"),
        (binary, "not UTF-8 text"),
        (missing, "no file or folder"),
        (unreadable, "cannot read .*: input/output error"),
        (short, "tokens and one (batch|window) of"),
        (empty_folder, "there is no text in"),
        (broken_lines, "line 2: not JSON"),
        (other_key, "no 'text' .*'body'"),
    ],
)
def test_bad_data_is_a_sentence(call: Call, tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    if make is unreadable and not Path("/proc/self/mem").exists():
        pytest.skip("this system has no file that nobody can read")
    data = make(tmp_path / "data.txt")
    sentence(call("compare", "toys:bigram", data, "--workers", 1), words)
    assert not (tmp_path / "runs" / "compare" / "study.json").exists()


def test_a_folder_without_a_model_is_a_sentence(call: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    sentence(call("compare", "empty", "synthetic:0:20000"), "holds no model: it has no config.json")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "llama"}')
    sentence(call("compare", "empty", "synthetic:0:20000"), "cannot load the model in")
    (tmp_path / "file").write_text("")
    sentence(call("compare", "file", "synthetic:0:20000"), "'file' is a file; give the folder")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimizer: {name: adamw, lr: -1}", "lr must be a number from 0 up, got -1"),
        ("optimizer: {name: adamw, lr: 1e-3, betas: [0.9, 2]}", r"betas\[1\]=2.0 is out of range"),
        ("optimizer: {name: adamw, lr: 1e-3, beta: 0.9}", "did you mean 'betas'"),
        ("optimizer: {name: adamm, lr: 1e-3}", "did you mean 'adam'"),
        ("stepps: 3\noptimizer: {name: adamw, lr: 1e-3}", "did you mean 'steps'"),
        ("optimizer: {name: sgd, lr: 1e6}\nclip: null", "the run diverged: .*; try a smaller learning rate"),
        ("optimizer: {name: sgd, lr: 1}\nmodel: toys:broken", "nan before any training"),
        ("optimizer: {name: sgd, lr: 1}\nmodel: toys:crashing", "the cat is on the keyboard; set STEEPEST_"),
    ],
)
def test_a_bad_config_is_a_sentence_and_saves_nothing(
    call: Call, tmp_path: Path, text: str, words: str
) -> None:
    whole = text if "model:" in text else text + "\nmodel: toys:bigram"
    (tmp_path / "run.yaml").write_text(whole + "\ndata: synthetic:0:20000\nbatch: 2\ncontext: 16\n")
    sentence(call("train", "run.yaml", "--steps", 20), words)
    assert not (tmp_path / "runs" / "run" / "model").exists()


def test_no_steps_is_a_sentence(call: Call, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("optimizer: {name: adamw, lr: 1e-3}")
    sentence(call("train", "run.yaml", "--steps", 0), "--steps 0 trains nothing")


def test_a_fault_of_its_own_is_named_and_can_be_traced(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("of\nthe worst kind")

    monkeypatch.setattr("steepest.cli.app.app", fail)
    sentence(call(), "ZeroDivisionError: of the worst kind; set STEEPEST_TRACEBACK=1")
    monkeypatch.setenv("STEEPEST_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main()


def test_a_place_that_cannot_be_written_is_a_sentence(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sentence(call("compare", "--out", "file", "--workers", 1), "cannot write file .*--out")
    (tmp_path / "run.yaml").write_text("optimizer: {name: adamw, lr: 1e-3}")
    sentence(call("train", "run.yaml", "--out", "file"), "cannot write file .*--out")


def test_a_folder_in_use_is_a_sentence(call: Call, tmp_path: Path) -> None:
    with lock(tmp_path / "s"):
        busy = rf"s is in use by process {os.getpid()}; wait for it"
        sentence(call("compare", "toys:bigram", "synthetic:0:20000", *TINY, "--out", "s"), busy)


# ---------------------------------------------------------------------- a study, start to end

STUDY = ("compare", "toys:bigram", "synthetic:0:20000", "-o", "lion,sgd", *TINY, "--out", "s")


def test_a_plan_shows_the_cost_and_runs_nothing(call: Call, tmp_path: Path) -> None:
    code, out, err = call(*STUDY, "--plan")
    assert (code, err) == (0, "")
    for words in ("3 optimizers: AdamW, Lion, SGD", "20 steps of 2 x 16 tokens", "about 19 trials", "into s"):
        assert words in out
    assert re.search(r"65,536 parameters.*19 KB to train on, hash [0-9a-f]{8}", out)
    assert re.search(r"about \d+ (s|min)", out)
    assert os.listdir(tmp_path / "s") == [".lock"]


def test_little_data_is_said_in_the_plan(call: Call) -> None:
    arguments = [*STUDY, "--plan"]
    arguments[arguments.index("20steps")] = "900steps"
    assert re.search(r"each trial reads the data 1\.\d times", call(*arguments).out)


def test_names_with_brackets_are_printed_as_they_are(call: Call, tmp_path: Path) -> None:
    data = tmp_path / "[b]odd [red]text.txt"
    data.write_text("The quick brown fox.\n" * 400)
    code, out, err = call("compare", "toys:bigram", data, *TINY, "--out", "x[/b]y", "--plan")
    assert (code, err) == (0, "")
    assert "[b]odd [red]text.txt" in out and "into x[/b]y" in out


@pytest.mark.parametrize("kind", ["jsonl", "folder", "bpe"])
def test_the_users_own_text_can_be_planned(call: Call, tmp_path: Path, kind: str) -> None:
    line = "The {} jumps over the lazy dog, and {} times it lands on its feet again.\n"
    lines = [line.format(animal, count) for animal in ("fox", "cat", "cow") for count in range(300)]
    if kind == "jsonl":
        import json

        data = tmp_path / "own.jsonl"
        data.write_text("".join(json.dumps({"body": text}) + "\n" for text in lines))
    else:
        data = tmp_path / "own"
        (data / "deep").mkdir(parents=True)
        for part in range(6):
            text = "".join(lines[part::6])
            (data / ("deep" if part % 2 else "") / f"{part}.md").write_text(f"# Part {part}\n{text}")
    more = {"jsonl": ["--text-key", "body"], "folder": [], "bpe": ["--tokenizer", "bpe:300"]}[kind]
    code, out, err = call("compare", "toys:bigram", data, *TINY, *more, "--plan")
    assert (code, err) == (0, "")
    assert f"{300**2 if kind == 'bpe' else 256**2:,} parameters" in out


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of the real default model, made by the command itself, workers and all."""
    folder = tmp_path_factory.mktemp("study") / "s"
    line = ["compare", "tiny", "synthetic:0:40000", "-o", "lion", *TINY, "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["steepest", *line])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return folder


@pytest.fixture
def copied(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "copy"))


@pytest.mark.slow
def test_compare_leaves_a_page_and_a_config_that_trains(call: Call, copied: Path, tmp_path: Path) -> None:
    assert {"report.html", "recommended.yaml", "study.json", "trials"} <= set(os.listdir(copied))
    code, out, err = call("train", copied / "recommended.yaml", "--out", tmp_path / "run", "--steps", 20)
    assert (code, err) == (0, "")
    assert re.search(r"validation loss \d\.\d{4} nats a token, \d\.\d{4} bits a byte", out)
    assert (tmp_path / "run" / "model" / "config.json").exists()
    code, out, _ = call("compare", tmp_path / "run" / "model", "synthetic:0:40000", *TINY, "--plan")
    assert code == 0 and "131,904 parameters" in out, "what was trained can be compared on"


@pytest.mark.slow
def test_the_page_comes_again_from_the_records_alone(call: Call, copied: Path) -> None:
    before = (copied / "report.html").read_bytes()
    (copied / "report.html").unlink()
    (copied / "recommended.yaml").unlink()
    code, out, _ = call("report", copied)
    assert code == 0 and f"report  {copied / 'report.html'}" in out
    assert (copied / "report.html").read_bytes() == before
    assert (copied / "recommended.yaml").exists()
    code, _, _ = call("report", copied, "--out", copied / "elsewhere.html")
    assert code == 0 and (copied / "elsewhere.html").stat().st_size > 100_000


@pytest.mark.slow
def test_a_damaged_record_is_named_and_run_again(call: Call, copied: Path) -> None:
    record = sorted((copied / "trials").glob("tune-lion*.json"))[0]
    whole = record.read_bytes()
    record.write_bytes(whole[: len(whole) // 2])
    line = ["compare", "tiny", "synthetic:0:40000", "-o", "lion", *TINY, "--out", copied]
    code, out, _ = call(*line)
    assert code == 0
    assert f"record {record.name} was damaged" in out and f"kept as {record.name}.corrupt" in out
    assert record.exists() and record.with_name(f"{record.name}.corrupt").exists()
    code, out, _ = call(*line)
    assert code == 0 and "was damaged" not in out and "are used again" in out


def test_a_full_disk_is_a_sentence_and_running_again_finishes(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, left = os.fsync, [11]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        sentence(call(*STUDY), "disk is full: .* was not written; free some space and run the same command")
    kept = list((tmp_path / "s" / "trials").glob("*.json"))
    assert kept
    code, out, _ = call(*STUDY)
    assert code == 0 and f"{len(kept)} trials are already in s and are used again" in out
    assert (tmp_path / "s" / "report.html").exists()


def test_an_interrupt_is_a_sentence_and_running_again_finishes(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steepest.lab import study as room

    write, left = room.write_record, [5]

    def interrupted(folder: Path, record: Any) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(folder, record)

    with monkeypatch.context() as patch:
        patch.setattr(room, "write_record", interrupted)
        code, out, err = call(*STUDY)
    assert code == 130 and "Traceback" not in err
    assert "stopped; finished trials are kept, run the same command again to go on" in out
    code, out, _ = call(*STUDY)
    assert code == 0 and "5 trials are already in s" in out


def test_a_study_where_all_diverges_ends_in_a_sentence(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steepest.lab.study.prior_lr", lambda *_: 1e6)
    answer = call(*[a if a != "lion,sgd" else "sgd" for a in STUDY], "--clip", 0)
    assert answer.code == 1 and "Traceback" not in answer.err
    assert "no trial finished" in answer.err
    assert (tmp_path / "s" / "report.html").exists()


# ---------------------------------------------------------------------- kernels


@pytest.mark.parametrize(
    ("to", "says"),
    [("listing", "for every element:"), ("llvm", "define void @pass_0"), ("triton", "tl.load")],
)
def test_kernels_are_shown_in_every_form(call: Call, to: str, says: str) -> None:
    code, out, _ = call("kernels", "show", "lamb", "--codec", "int8", "--to", to)
    assert code == 0 and says in out and out.startswith("# lamb, int8: 2 passes, 26.19 bytes a parameter")


def test_kernels_explain_what_they_cannot_show(call: Call) -> None:
    sentence(call("kernels", "show", "lamm"), "did you mean 'lamb'")
    sentence(call("kernels", "show", "lamb", "--codec", "int9"), "did you mean 'int8'")
    sentence(call("kernels", "show", "lamb", "--shape", "3y"), "whole numbers joined by x")
    sentence(call("kernels", "show", "adamw", "--codec", "bf16_rn"), "use 'bf16'")
