"""Parts of tensors under the kernels of a GPU, in Triton's interpreter."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("interpreted by test_gpu_process.py", allow_module_level=True)

import torch

from engines.ranks import chunks, uneven
from engines.shard_cases import compare, train
from laws.cases import CARD_CASES, Case
from steepest.codecs import PARAM_CODECS, SLOT_NAMES
from steepest.contract import Scope
from steepest.engines import Request
from steepest.engines.fused import Fused
from steepest.rules import RULES

SHAPES = [(40, 133), (7, 6), (3,), (4, 16, 64)]
CODED = [name for name in SLOT_NAMES if name != "factored"]
CASES = [
    (case, CODED[i % len(CODED)], [None, *PARAM_CODECS][i % 5])
    for i, case in enumerate(c for c in CARD_CASES if c.rule.scope is Scope.ELEMENT)
]


class Interpreted(Fused):
    accelerator = "cpu"


def interpreted():
    """An engine that has asked Triton once: the interpreter serves the main thread alone."""
    engine = Interpreted()
    assert engine.defers([torch.zeros(1)])
    return engine


@pytest.mark.parametrize(("case", "name", "param"), CASES, ids=str)
def test_kernels_of_parts_equal_those_of_the_whole(case, name, param):
    whole, cut, calls, _ = train(case, name, param, interpreted, 3, uneven, SHAPES)
    assert calls == 0
    compare(whole, cut)


@pytest.mark.parametrize("name", ["lamb", "adafactor"])
def test_sums_over_parts_are_completed_without_kernels(name):
    dialect = {"dialect": "hf"} if name == "adafactor" else {}  # which factors small matrices
    case = Case(RULES[name], {**dialect, "weight_decay": 0.1})
    whole, cut, calls, _ = train(case, "fp32", None, interpreted, 3, uneven, SHAPES)
    assert calls == {"lamb": 1, "adafactor": 2}[name]
    compare(whole, cut)


def test_no_verdict_about_parts_is_left_to_the_device():
    case = Case(RULES["adamw"], {"weight_decay": 0.1})
    whole, cut, *_ = train(case, "fp32", None, interpreted, 2, chunks, SHAPES)
    request = Request(looks=False, max_norm=None, clip_eps=0.0)
    assert interpreted().commit(whole, request) is not None
    assert interpreted().commit([parts[0] for parts in cut], request) is None
