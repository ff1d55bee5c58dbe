"""An adapter's config: short forms, ranges, and mistakes in one sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from steepest.adapters import AdapterConfig, parse_adapter
from steepest.contract import SteepestError


def test_forms():
    assert parse_adapter("lora") == parse_adapter({}) == AdapterConfig()
    assert parse_adapter("dora").kind == "dora"
    given = {"r": 4, "alpha": 8, "dropout": 0.1, "targets": ["q_proj", "v_proj"], "modules_to_save": ["norm"]}
    config = parse_adapter(given)
    assert (config.r, config.targets, config.modules_to_save) == (4, ("q_proj", "v_proj"), ("norm",))
    assert parse_adapter(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lara", "did you mean 'lora'"),
        ({"kind": None}, "unknown kind of adapter 'None'"),
        ({"rank": 4}, "unknown key in adapter 'rank'"),
        ({"target": "all-linear"}, "did you mean 'targets'"),
        ({"r": 0}, "adapter: r: .* got 0"),
        ({"alpha": float("nan")}, "adapter: alpha: .* got nan"),
        ({"dropout": 1.0}, "adapter: dropout: .* got 1.0"),
        ({"targets": "q_proj"}, "adapter: targets: .* got 'q_proj'"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(SteepestError, match=message) as error:
        parse_adapter(given)
    assert "\n" not in str(error.value)


def test_a_mistake_says_where_it_is():
    with pytest.raises(SteepestError, match=r"adapter of stage tune: r: .* got 0"):
        parse_adapter({"r": 0}, "stage tune")
    with pytest.raises(SteepestError, match="unknown key in adapter of stage tune 'rank'"):
        parse_adapter({"rank": 1}, "stage tune")


def test_the_door_imports_nothing_heavy():
    code = "import sys, steepest.adapters; print({'peft', 'transformers'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
