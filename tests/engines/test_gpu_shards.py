"""Parts of tensors under the kernels of a GPU, in Triton's interpreter."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("interpreted by test_gpu_process.py", allow_module_level=True)

from engines.ranks import chunks, uneven
from engines.shard_cases import compare, train
from laws.cases import CARD_CASES, Case
from steepest.codecs import PARAM_CODECS, SLOT_NAMES
from steepest.contract import Scope
from steepest.engines import Request
from steepest.engines.fused import Fused
from steepest.rules import RULES

SHAPES = [(40, 133), (7, 6), (3,), (5, 16, 64)]
CODED = [name for name in SLOT_NAMES if name != "factored"]
CASES = [
    (case, CODED[i % len(CODED)], [None, *PARAM_CODECS][i % 5])
    for i, case in enumerate(c for c in CARD_CASES for _ in range(2) if c.rule.scope is Scope.ELEMENT)
]


class Interpreted(Fused):
    accelerator = "cpu"


@pytest.mark.parametrize(("case", "name", "param"), CASES, ids=str)
def test_kernels_of_parts_equal_those_of_the_whole(case, name, param):
    for k, how in ((2, chunks), (3, uneven)):
        whole, cut, calls, _ = train(case, name, param, Interpreted, k, how, SHAPES)
        assert calls == 0
        compare(whole, cut)


@pytest.mark.parametrize("name", ["lamb", "adafactor"])
def test_sums_over_parts_are_completed_without_kernels(name):
    case = Case(RULES[name], {"weight_decay": 0.1})
    whole, cut, calls, _ = train(case, "fp32", None, Interpreted, 3, uneven, SHAPES)
    assert calls == {"lamb": 1, "adafactor": 2}[name]
    compare(whole, cut)


def test_no_verdict_about_parts_is_left_to_the_device():
    case = Case(RULES["adamw"], {"weight_decay": 0.1})
    whole, cut, *_ = train(case, "fp32", None, Interpreted, 2, chunks, SHAPES)
    request = Request(looks=False, max_norm=None, clip_eps=0.0)
    assert Interpreted().commit(whole, request) is not None
    assert Interpreted().commit([parts[0] for parts in cut], request) is None
