"""What is written for AVX2 stores what is written for any processor."""

from importlib import import_module
from weakref import WeakKeyDictionary

import pytest
import torch

import steepest
from steepest.engines import classes
from steepest.kernels.compile import has_avx2

build = import_module("steepest.kernels.build")  # the package has a function of this name

if not has_avx2():
    pytest.skip("this processor has no AVX2, or what is wider than it", allow_module_level=True)

CASES = [
    *((rule, state) for rule in ("adamw", "rmsprop") for state in ("fp8", "int8", "int4")),
    *(("lion", state) for state in ("fp8", "int8", "fp8_rn", "int8_rn")),
    *(("adamw", state) for state in ({"m": "int4", "v": "fp8"}, {"m": "int8", "v": "factored"})),
]


def stepped(monkeypatch, rule, state, param, used):
    """What is stored after one step of gradients from 1e-10 to 1e2; some are 0 or -0, a whole block too."""
    texts, compiled = [], build.compile_functions
    torch.manual_seed(0)
    # A row is two whole blocks, two vectors, and 13 elements one by one.
    scales = torch.logspace(-6, 2, 41)[:, None] * torch.logspace(0, -4, 333)
    dtype = torch.bfloat16 if param else torch.float32
    p, g = torch.randn(41, 333).to(dtype), torch.randn(41, 333) * scales
    g[3], g[:, 100], g[5, 7], g[6, :128] = 0, 0, -0.0, 0
    with monkeypatch.context() as patch:
        patch.setattr(classes, "_KERNELS", WeakKeyDictionary())
        patch.setattr(build, "has_avx2", lambda: used)
        patch.setattr(build, "compile_functions", lambda t, names: texts.append(t) or compiled(t, names))
        more = {"betas": (0.9, 0.5)} if rule == "lion" else {}  # which rounding to nearest can follow
        options = {"state": state, "param": param, "engine": "fused", **more}
        optimizer = steepest.Optimizer([p], rule, lr=1e-2, **options)
        p.grad = g.to(dtype)
        optimizer.step()
    assert any("@llvm.x86.avx" in text for text in texts) is used
    return {"p": p, **{k: v for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}}


@pytest.mark.parametrize("param", [None, "split24"])
@pytest.mark.parametrize(("rule", "state"), CASES, ids=str)
def test_the_same_is_stored(monkeypatch, rule, state, param):
    with_it, without = (stepped(monkeypatch, rule, state, param, used) for used in (True, False))
    assert with_it.keys() == without.keys() and len(with_it) >= 3
    for name, expected in without.items():
        got = with_it[name]
        if "int" in str(state) and expected.dtype in (torch.int8, torch.uint8):  # roots differ by 2e-7
            different = (got.int() - expected.int()).ne(0)
            assert different.float().mean() < 1e-3, name
        else:
            torch.testing.assert_close(got, expected, rtol=0, atol=0, msg=name)
