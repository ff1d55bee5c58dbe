"""What is written for AVX2 and for AVX-512 stores what is written for any processor."""

import re
from importlib import import_module
from weakref import WeakKeyDictionary

import pytest
import torch

import steepest
from steepest.engines import classes
from steepest.kernels.compile import x86_lanes
from steepest.kernels.llvm.x86 import AVX2, AVX512

build = import_module("steepest.kernels.build")  # the package has a function of this name

if not x86_lanes():
    pytest.skip("this processor has no AVX2", allow_module_level=True)

WIDE = [lanes for lanes in (AVX2, AVX512) if lanes <= x86_lanes()]
CASES = [
    *((rule, state) for rule in ("adamw", "rmsprop") for state in ("fp8", "int8", "int4")),
    *(("lion", state) for state in ("fp8", "int8", "fp8_rn", "int8_rn")),
    *(("adamw", state) for state in ({"m": "int4", "v": "fp8"}, {"m": "int8", "v": "factored"})),
]


def stepped(monkeypatch, rule, state, param, lanes, ahead=0):
    """What is stored after one step of gradients from 1e-10 to 1e2; some are 0 or -0, a whole block too. And
    the instructions of x86 in the kernels' text."""
    texts, compiled = [], build.compile_functions
    torch.manual_seed(0)
    # A row is two whole blocks, two vectors, and 13 elements one by one.
    scales = torch.logspace(-6, 2, 41)[:, None] * torch.logspace(0, -4, 333)
    dtype = torch.bfloat16 if param else torch.float32
    p, g = torch.randn(41, 333).to(dtype), torch.randn(41, 333) * scales
    g[3], g[:, 100], g[5, 7], g[6, :128] = 0, 0, -0.0, 0
    with monkeypatch.context() as patch:
        patch.setattr(classes, "_KERNELS", WeakKeyDictionary())
        patch.setattr(build, "x86_lanes", lambda: lanes)
        patch.setattr(build, "asked_ahead", lambda: ahead)
        patch.setattr(build, "compile_functions", lambda t, names: texts.append(t) or compiled(t, names))
        more = {"betas": (0.9, 0.5)} if rule == "lion" else {}  # which rounding to nearest can follow
        options = {"state": state, "param": param, "engine": "fused", **more}
        optimizer = steepest.Optimizer([p], rule, lr=1e-2, **options)
        p.grad = g.to(dtype)
        optimizer.step()
    stored = {"p": p, **{k: v for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}}
    return stored, {name for text in texts for name in re.findall(r"@llvm\.(x86\.\w+|prefetch)", text)}


@pytest.mark.parametrize("lanes", WIDE)
@pytest.mark.parametrize("param", [None, "split24"])
@pytest.mark.parametrize(("rule", "state"), CASES, ids=str)
def test_the_same_is_stored(monkeypatch, rule, state, param, lanes):
    (with_it, used), (without, none) = (stepped(monkeypatch, rule, state, param, n) for n in (lanes, 0))
    # AVX-512's text has estimates alone, of integers' roots beside the rule's own.
    rooted = rule != "lion" and state not in ("fp8", CASES[-1][1])
    assert not none and bool(used) == (lanes == AVX2 or rooted)
    assert not used or any("avx512" in name for name in used) == (lanes == AVX512)
    assert with_it.keys() == without.keys() and len(with_it) >= 3
    for name, expected in without.items():
        got = with_it[name]
        if "int" in str(state) and expected.dtype in (torch.int8, torch.uint8):  # roots differ by 2e-7
            different = (got.int() - expected.int()).ne(0)
            assert different.float().mean() < 1e-3, name
        else:
            torch.testing.assert_close(got, expected, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("ahead", [64, 1024])
@pytest.mark.parametrize("state", [None, "bf16", "int8", "int4"])
def test_asking_for_memory_ahead_changes_no_bit(monkeypatch, state, ahead):
    (plain, none), (asked, used) = (stepped(monkeypatch, "adamw", state, None, 0, n) for n in (0, ahead))
    assert not none and used == {"prefetch"} and plain.keys() == asked.keys()
    for name, expected in plain.items():
        torch.testing.assert_close(asked[name], expected, rtol=0, atol=0, msg=name)
