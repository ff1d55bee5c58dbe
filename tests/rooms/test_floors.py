"""The house: imports only point down, and each room keeps to its own words.

After the house itself, every check is fed a module that offends, so each is known to be able to fail.
"""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rooms.floors import (
    CHECKS,
    FLOORS,
    LIMIT,
    clocks,
    distributed,
    doors,
    impure_rules,
    long_files,
    prints,
    room,
    unfinished,
    upward_imports,
    writes,
)

PACKAGE = Path(__file__).parents[2] / "src" / "steepest"
HEAVY = {"transformers", "tokenizers", "plotly", "scipy", "pandas", "jinja2", "typer", "rich", "numba"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(p for p in parts if p != "__init__"), path.read_text(encoding="utf-8"), path


MODULES = list(modules())


def test_there_is_a_house():
    found = {room(module) for module, _, _ in MODULES}
    assert {
        "contract",
        "ops",
        "rules",
        "apply",
        "engines",
        "optimizer",
        "data",
        "training",
        "lab",
        "cli",
    } <= found
    assert found <= set(FLOORS), f"rooms without a floor: {found - set(FLOORS)}"


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_no_module_offends(check):
    assert [wrong for module, source, _ in MODULES for wrong in check(module, source)] == []


def test_every_room_has_one_door():
    doors_found = [(m, s) for m, s, path in MODULES if path.name == "__init__.py"]
    assert len(doors_found) > 8
    assert [wrong for module, source in doors_found for wrong in doors(module, source)] == []
    for module, _ in doors_found:
        loaded = importlib.import_module(f"steepest.{module}".rstrip("."))
        assert all(hasattr(loaded, name) for name in loaded.__all__)


def test_importing_the_package_loads_nothing_heavy():
    """`import steepest` is to be as light as `import torch`; heavy libraries are imported where used."""
    program = (
        "import sys, torch; before = set(sys.modules); import steepest; print(set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(done.stdout)
    assert "steepest" in loaded and {name.split(".")[0] for name in loaded}.isdisjoint(HEAVY)


OFFENDERS = {
    "rules.x": {
        upward_imports: "from steepest.apply import advance",
        impure_rules: "def f(p, g, s, h):\n    return g.to(p.device)",
        prints: "print('here')",
        clocks: "from time import perf_counter",
        writes: "from pathlib import Path\nPath('x').write_text('y')",
        distributed: "import torch.distributed as dist",
        long_files: "x = 1\n" * (LIMIT + 1),
        unfinished: "# TODO",
    },
    "contract": {upward_imports: "from steepest import ops"},
    "schedules.x": {upward_imports: "from steepest.rules import RULES"},
    "data.x": {upward_imports: "import steepest.ops", writes: "open('x', 'w')"},
    "models.x": {upward_imports: "from steepest.data import Corpus"},
    "optimizer.x": {upward_imports: "from steepest.models import build_model"},
    "training.x": {upward_imports: "def late():\n    from steepest.lab import Study"},
    "lab.x": {upward_imports: "from steepest.cli import main", prints: "import sys\nsys.stdout.write('x')"},
    "lab.y": {upward_imports: "from . import study", writes: "import os\nos.replace(a, b)"},
    "lab.z": {upward_imports: "from steepest.attic import x", writes: "open(path, mode='ab')"},
    "engines.x": {upward_imports: "from steepest import AdamW", distributed: "from torch import distributed"},
    "rules.y": {impure_rules: "def f(p, g, s, h):\n    return p.grad, {}"},
    "rules.z": {impure_rules: "def f(p, g, s, h):\n    return s.m.mul_(h.beta1), {}"},
    "rules.v": {impure_rules: "def f(params):\n    return [p for p in params]"},
    "rules.w": {impure_rules: "def f(p, g, s, h):\n    while g:\n        pass"},
}


def test_every_check_has_an_offender():
    assert {check for by_check in OFFENDERS.values() for check in by_check} == set(CHECKS)


@pytest.mark.parametrize(
    ("module", "check", "source"),
    [(m, check, source) for m, by_check in OFFENDERS.items() for check, source in by_check.items()],
    ids=lambda x: x.__name__ if callable(x) else (x if re.fullmatch(r"[\w.]+", x) else ""),
)
def test_the_check_can_fail(module, check, source):
    assert len(list(check(module, source))) >= 1


@pytest.mark.parametrize(
    "source",
    ["x = 1", "__all__ = []\nif True:\n    y = 2", "from a import b\n__all__ = ['b', 'c']", "def f(): ..."],
    ids=["no_all", "logic", "a_name_that_is_not_there", "a_function"],
)
def test_a_bad_door_is_noticed(source):
    assert list(doors("room", source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rules.x", "from steepest.ops import lerp\nfrom steepest.rules.declare import rule"),
        ("training.x", "import time\nopen('x', 'w')\nfrom steepest.data import Corpus"),
        ("cli.x", "print('here')\nfrom steepest.lab import Study\nfrom steepest import schedules"),
        ("data.x", "open(path, 'rb')\n'a'.replace('a', 'b')\nfrom steepest.contract import SteepestError"),
        ("engines.x", "from steepest.kernels import compiled"),
    ],
    ids=lambda x: x if re.fullmatch(r"[\w.]+", x) else "",
)
def test_good_manners_pass(module, source):
    assert [wrong for check in CHECKS for wrong in check(module, source)] == []
