"""Which codec a slot or a parameter gets, and what is refused with which sentence; the page about it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from steepest.codecs import (
    PARAM_CODECS,
    PARAM_NAMES,
    SLOT_NAMES,
    codec_bytes,
    compressible,
    param_codec,
    plain,
    slot_codec,
)
from steepest.contract import Slot, SteepestError, zeros

PAGE = Path(__file__).parents[2] / "docs" / "codecs.md"
MATRIX = (64, 128)
M, V = Slot(average="beta1"), Slot(average="beta2", nonnegative=True)
SUM = Slot(nonnegative=True)
LARGEST = Slot(nonnegative=True, exact=True)
MEANS = Slot(nonnegative=True, shape=lambda shape, h: torch.Size([shape[0], 1]))
BETAS = {"beta1": 0.9, "beta2": 0.999}
NAMED = [name for name in SLOT_NAMES if name not in ("fp32", "factored")]


def choose(choice, name="m", slot=M, shape=MATRIX, **options):
    return slot_codec(choice, name, slot, shape, BETAS, **options)


def test_the_names_are_those_of_the_formats():
    assert len(NAMED) == 10 and len(PARAM_NAMES) == 5


@pytest.mark.parametrize("choice", [None, "fp32", {}, {"v": "int8"}])
def test_what_is_not_asked_for_is_kept_plainly(choice):
    assert choose(choice) is plain(torch.float32)
    assert choose({"v": "fp32"}, dtype=torch.float64) is plain(torch.float64)


@pytest.mark.parametrize("name", [name for name in NAMED if not name.endswith("_rn")])
def test_a_name_serves_every_slot_it_can_and_leaves_exact_ones_alone(name):
    for slot in (M, V, SUM, zeros):
        assert choose(name, slot=slot).name == choose({"m": name}, slot=slot).name == name
    assert choose(name, slot=LARGEST) is choose(name, slot=MEANS) is plain(torch.float32)


@pytest.mark.parametrize("shape", [(), (5,), (4095,), (63, 64), (4096, 1), (512, 31), (8192,)])
def test_small_and_narrow_tensors_stay_in_float32(shape):
    assert not compressible(shape)
    assert choose("int8", shape=shape) is choose({"m": "int8"}, shape=shape) is plain(torch.float32)


@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (16, 16, 16), (64, 8, 8)])
def test_others_are_compressed(shape):
    assert compressible(shape) and choose("int8", shape=shape).name == "int8"


def test_factored_is_for_matrices():
    assert choose("factored", "v", V).name == "factored"
    assert choose("factored", "v", V, shape=(8192,)) is plain(torch.float32)


REFUSED = {
    "misspelt": ({"choice": "int88"}, r"unknown codec of slot m in state 'int88'; did you mean 'int8'"),
    "misspelt for a slot": ({"choice": {"m": "fp9"}}, r"unknown codec of slot m in state 'fp9'"),
    "float64": (
        {"choice": "int8", "dtype": torch.float64},
        r"state: int8 is for float32 and narrower parameters, not float64\.",
    ),
    "a maximum": (
        {"choice": {"m": "int8"}, "slot": LARGEST},
        r"slot m is a maximum, .*leave it in fp32",
    ),
    "means": ({"choice": {"m": "int8"}, "slot": MEANS}, r"state: slot m is a few means already; leave it"),
    "factored, both signs": ({"choice": {"m": "factored"}}, r"slot m has both signs, .*try 'int8'"),
    "factored for all": ({"choice": "factored"}, r"choose slot by slot, \{'m': 'int8', 'v': 'factored'\}"),
    "slow average": (
        {"choice": "bf16_rn", "slot": V},
        r"state: slot m moves by 0\.001 of itself a step and bf16_rn rounds away changes below 0\.0039; "
        r"use 'bf16', which rounds stochastically\.",
    ),
    "a sum": ({"choice": "fp16_rn", "slot": SUM}, r"slot m moves by ever smaller parts of itself"),
    "elsewhere": ({"choice": "int4_rn", "where": "group 3"}, r"group 3: slot m moves by 0\.1 of itself"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_with_the_reason(case):
    options, says = REFUSED[case]
    with pytest.raises(SteepestError, match=says):
        choose(**options)


@pytest.mark.parametrize("name", [name for name in NAMED if name.endswith("_rn")])
def test_rounding_to_nearest_is_allowed_exactly_where_the_average_is_fast_enough(name):
    step = choose(name.removesuffix("_rn"), slot=zeros).step
    assert 0 < step < 0.2
    for moves, fits in ((step * 1.01, True), (step * 0.99, False)):
        try:
            slot_codec(name, "m", M, MATRIX, {"beta1": 1 - moves})
        except SteepestError:
            assert not fits
        else:
            assert fits


def test_a_parameter_s_codec_needs_bfloat16():
    for name, codec in PARAM_CODECS.items():
        assert param_codec(name, torch.bfloat16) is codec
        with pytest.raises(SteepestError, match=f"param='{name}' is for bfloat16 parameters and"):
            param_codec(name, torch.float32)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert param_codec(None, dtype) is plain(dtype)
    assert param_codec("fp32", torch.float32) is plain(torch.float32)
    with pytest.raises(SteepestError, match=r"group 1: param='fp32' is for float32.*choose 'split32'"):
        param_codec("fp32", torch.bfloat16, "group 1")
    with pytest.raises(SteepestError, match="unknown codec of parameters in param 'split'; did you mean 'sp"):
        param_codec("split", torch.bfloat16)


def rows():
    """(table, name, bytes per element) for every row of the page's tables."""
    table, found = "", []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            table = line.removeprefix("## ")
        elif match := re.match(r"\| `(\w+)` \| ([\d.]+) \|", line):
            found.append((table, *match.groups()))
    return found


def test_the_page_lists_every_name_with_its_true_bytes():
    """Of a matrix of 4096 x 4096."""
    shape = (4096, 4096)
    listed = {(table, name): size for table, name, size in rows()}
    expected = {}
    for name in SLOT_NAMES:
        base = name.removesuffix("_rn")
        if base == name:
            codec = slot_codec(name, "v", V, shape, BETAS)
            expected["Slots", name] = codec_bytes(codec, shape) / 4096**2
    for name in PARAM_NAMES:
        dtype = torch.float32 if name == "fp32" else torch.bfloat16
        expected["Parameters", name] = codec_bytes(param_codec(name, dtype), shape) / 4096**2
    assert listed == {key: f"{size:.4g}" for key, size in expected.items()}
