"""`steepest bench step`, the script that writes the page, and the accelerator's script on a CPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steepest.cli.app import app, main
from steepest.lab.bench import END, START

ROOT = Path(__file__).parents[2]
TINY = ["bench", "step", "-m", "tiny", "-r", "lion", "--rounds", "2", "--threads", "1", "--engine", "foreach"]


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a small run printed, and the figures it wrote."""
    out = tmp_path_factory.mktemp("bench") / "deep" / "step.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "300")
        patch.setattr(sys, "argv", ["steepest", *TINY])
        line = [*TINY, "-c", "fp32,bf16", "--no-fresh", "--no-peers", "--out", str(out)]
        done = CliRunner().invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output, json.loads(out.read_text())


def test_the_help_teaches() -> None:
    shown = (
        CliRunner().invoke(app, ["bench", "step", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    )
    text = " ".join(shown.split())
    for word in ("interleaved", "memory bandwidth", "--peers", "--budget", "split24/int8", "--out"):
        assert word in text, word
    assert "step" in CliRunner().invoke(app, ["bench"]).output


def test_it_says_what_it_measures_and_ends_in_tables(measured: tuple[str, dict[str, Any]]) -> None:
    out, _ = measured
    assert "tiny: 21 tensors, 131,904 parameters; 2 cases, at most about 30 min" in out
    assert "### Rules" in out and "| Lion | 20.0 |" in out and "| Lion | `bf16` | 16.0 |" in out
    assert "figures  " in out


def test_the_figures_are_written_with_every_round(measured: tuple[str, dict[str, Any]]) -> None:
    _, record = measured
    assert record["command"].startswith("steepest bench step -m tiny")
    assert [case["name"] for case in record["cases"]] == ["Lion", "Lion bf16"]
    ran = [r for case in record["cases"] for r in case["racers"] if "ms" in r]
    assert len(ran) >= 10 and all(len(r["ms"]) == 2 for r in ran)
    assert {r["engine"] for r in ran if r["by"] == "steepest"} == {"foreach"}
    assert record["machine"]["threads"] == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["-r", "lionn"], "unknown optimizer 'lionn'; did you mean 'lion'"),
        (["-c", "int9"], "unknown codec of slots 'int9'"),
        (["--device", "tpu"], "device 'tpu' is not one of"),
        (["--threads", "0"], "threads=0 must be at least 1"),
    ],
)
def test_a_mistake_is_a_sentence(
    line: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["steepest", *TINY, *line])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steepest.lab.bench import Bench

    whole, left = Bench._case, [1]

    def interrupted(bench: Bench, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return whole(bench, *arguments)

    monkeypatch.setattr(Bench, "_case", interrupted)
    out = tmp_path / "step.json"
    done = CliRunner().invoke(app, [*TINY, "-c", "fp32,bf16", "--no-fresh", "--no-peers", "--out", str(out)])
    assert done.exit_code != 0 and "what was measured by then is kept" in done.output
    assert [case["name"] for case in json.loads(out.read_text())["cases"]] == ["Lion"]


def test_the_script_writes_the_page_from_figures_alone(
    measured: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("step")
    figures, page = tmp_path / "step.json", tmp_path / "performance.md"
    figures.write_text(json.dumps(measured[1]))
    page.write_text(f"# Performance\n\n{START}\n{END}\n\nby hand\n")
    monkeypatch.setattr(module, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["step.py", "--page", str(figures)])
    module.main()
    text = page.read_text()
    assert "| Lion | `bf16` | 16.0 |" in text and text.endswith("\n\nby hand\n")
    module.main()
    assert page.read_text() == text
    other = tmp_path / "other.md"
    other.write_text(f"{START}\n{END}\n")
    monkeypatch.setattr(sys, "argv", ["step.py", "--page", str(figures), "--into", str(other)])
    module.main()
    assert "| Lion | `bf16` | 16.0 |" in other.read_text() and page.read_text() == text


@pytest.mark.parametrize("task", ["parity", "training"])
def test_the_accelerator_s_tasks_run_on_a_cpu(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, out = script("accelerator"), tmp_path / "out.json"
    monkeypatch.setitem(module.QUICK, "cards", ("lamb",))
    monkeypatch.setitem(module.QUICK, "storages", ("fp32", "bf16"))
    line = [task, "--device", "cpu", "--quick", "--engine", "foreach", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["accelerator.py", *line])
    assert module.main() == 0
    found = json.loads(out.read_text())
    assert found["passed"] and found["machine"]["device"] == "cpu"
    if task == "parity":
        assert [row["name"] for row in found["cases"]] == ["LAMB", "LAMB bf16"] and found["holds"] == 2
        assert all(row["moved"] > 0 for row in found["cases"])
    else:
        assert len(found["median"]) == 4 and min(found["median"].values()) > 0


def test_parity_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, out = script("accelerator"), tmp_path / "out.json"
    whole = module.moved

    def off(case: Any, device: str, engine: str) -> Any:
        start, end = whole(case, device, "foreach")
        return start, [x + (engine == "fused") * 1e-3 for x in end]

    monkeypatch.setattr(module, "moved", off)
    monkeypatch.setattr(sys, "argv", ["x", "parity", "--device", "cpu", "--quick", "--out", str(out)])
    monkeypatch.setitem(module.QUICK, "cards", ("lion",))
    monkeypatch.setitem(module.QUICK, "storages", ("fp32",))
    assert module.main() == 1
    assert json.loads(out.read_text())["cases"][0]["holds"] is False


def test_the_shell_script_says_how_it_is_called() -> None:
    shell = ROOT / "bench" / "accelerator.sh"
    done = subprocess.run(["bash", str(shell)], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "usage: bench/accelerator.sh OUT" in done.stderr
