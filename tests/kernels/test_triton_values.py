"""What kernels for GPUs compute, in Triton's interpreter, value by value."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("interpreted by test_gpu_process.py", allow_module_level=True)

import math

import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from laws.cases import CASES, bucket, tensors
from steepest import Optimizer
from steepest.codecs import STRIDE, multiplier, tensor_key, word
from steepest.contract import Hyper, Scope, Slot
from steepest.engines.classes import always, find_kernel
from steepest.engines.fused import Fused
from steepest.kernels.triton import device, load, print_triton
from steepest.ops import where
from steepest.rules.declare import rate, rule

SPECIAL = [0.0, -0.0, 1.0, -1.5, 2.0, 3.0, -3.0, 0.5, 1e-30, -1e30, math.inf, -math.inf, math.nan]


class Interpreted(Fused):
    accelerator = "cpu"


@triton.jit
def draw(to, seed, step, ordinal, first, STRIDE: tl.constexpr, MULTIPLIER: tl.constexpr):
    key0, key1 = device.tensor_key(tl.load(seed), tl.load(step), tl.load(ordinal))
    at = tl.arange(0, 64)
    place = (tl.load(first) + at).to(tl.int32)
    tl.store(to + at, device.word(place, key0, key1, STRIDE, MULTIPLIER))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**40),
    step=st.integers(1, 10**7),
    ordinal=st.integers(0, 10**4),
    first=st.integers(0, 2**34),
    number=st.integers(0, 5),
)
def test_noise_is_that_of_the_codecs_to_the_last_bit(seed, step, ordinal, first, number):
    to = torch.zeros(64, dtype=torch.int32)
    whole = [torch.tensor([n]) for n in (seed & 0xFFFFFFFF, ordinal, first)]
    constants = {"STRIDE": STRIDE, "MULTIPLIER": multiplier(number)}
    draw[(1,)](to, whole[0], torch.tensor([float(step)], dtype=torch.float64), *whole[1:], **constants)
    expected = word(first + torch.arange(64), tensor_key(seed, step, ordinal), number)
    assert torch.equal(to, expected)


@triton.jit
def apply(x, y, to, WHICH: tl.constexpr):
    at = tl.arange(0, 16)
    a, b = tl.load(x + at), tl.load(y + at)
    if WHICH == 0:
        tl.store(to + at, device.power(a, b).to(tl.float32))
    elif WHICH == 1:
        tl.store(to + at, device.tanh(a))
    else:
        tl.store(to + at, device.round_bf16(a))


@pytest.mark.parametrize(
    ("which", "function"),
    [(0, torch.pow), (1, lambda a, b: torch.tanh(a)), (2, lambda a, b: a.bfloat16().float())],
    ids=["power", "tanh", "round_bf16"],
)
@pytest.mark.parametrize("second", [2.0, 3.0, -1.0, 0.5, 0.0, -0.37])
def test_functions_of_the_device_are_torch_s(which, function, second):
    x = torch.tensor([*SPECIAL, 1 + 2**-8, 1e-4, 0.3])
    y, to = torch.full((16,), second), torch.empty(16)
    apply[(1,)](x, y, to, WHICH=which)
    torch.testing.assert_close(to, function(x, y), rtol=1e-6, atol=0, equal_nan=True)


def test_every_operation_of_rules_is_torch_s():
    """A rule of one's own, with operations that none of the library's has."""

    @rule(
        slots={name: Slot() for name in ("a", "b", "c", "d", "e")},
        scope=Scope.ELEMENT,
        paper="none",
        hyper={"lr": rate(0.1), "weight_decay": Hyper(0.0, low=0.0), "k": Hyper(0.7)},
    )
    def odd(p, g, s, h):
        a = torch.minimum(p, g) + torch.maximum(p, -g)
        b = torch.exp(-abs(g)) * torch.log(1 + p * p) / torch.sqrt(1 + g * g)
        c = torch.tanh(g) + torch.rsqrt(1 + p * p) + torch.reciprocal(2 + p * p)
        d = where((p > 0) & (g <= 0) | (p == g), p, g * h.k) ** 2
        d = d + (1 + p * p) ** (h.k * 2) + abs(p) ** -0.3 + 2 ** torch.tanh(g)
        e = torch.clamp(torch.sign(p) * g, -h.k, h.k) + where(h.k > 0.5, g, p) * h.k**h.t
        return s.a + b, {"a": a, "b": b, "c": c, "d": d, "e": e}

    runs = []
    for engine in ("reference", "gpu"):
        p, g, n = tensors([(7, 50), (7, 50), (7, 50)], 3, torch.float32)
        opt = Optimizer([p], odd, engine="reference")
        opt._engine = Interpreted() if engine == "gpu" else opt._engine
        for _ in range(2):
            p.grad = g
            opt.step()
            g = n
        runs.append([p, *(opt.state[p][slot] for slot in "abcde")])
    assert not any(own._rest for own in opt._engine._gpus.values())
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("slot", ["minimum", "maximum"])
def test_extrema_pass_nan_on_as_torch_does(slot):
    @rule(slots={"a": Slot()}, scope=Scope.ELEMENT, paper="none", hyper={"lr": rate(0.0)}, decay="inside")
    def extreme(p, g, s, h):
        return g, {"a": getattr(torch, slot)(p, g)}

    p = torch.tensor([1.0, math.nan, 2.0, math.nan, -0.0])
    opt = Optimizer([p], extreme, engine="reference", check_finite=False)
    opt._engine = Interpreted()
    p.grad = torch.tensor([math.nan, 1.0, 1.0, math.nan, 0.0])
    before = p.clone()
    opt.step()
    assert torch.equal(opt.state[p]["a"].isnan(), getattr(torch, slot)(before, p.grad).isnan())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_numbers_are_those_of_the_host(case):
    """What depends on live numbers alone, from a table and a count that lie on the device."""
    p, g = tensors([(35,)] * 2, 1, torch.float32)
    slots = {name: [torch.zeros(p.shape)] for name in case.rule.slots_for(p.shape, case.full)}
    for t in (1, 2, 1000):
        h = always(case.live(t))
        own = find_kernel(bucket(case.rule, [p], [g], slots, h), ())
        printed = print_triton(own.schedule, own.layout)
        live = torch.tensor([[float(getattr(h, n[2:])) for n in printed.live] or [0.0]], dtype=torch.float64)
        steps, control = torch.tensor([t - 1.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        constants = torch.zeros(1, max(1, len(own.schedule.host)))
        load(printed.text).numbers[(1,)](live, steps, constants, control)
        expected = torch.tensor(own.constants(h) or [0.0], dtype=torch.float64).float()
        torch.testing.assert_close(constants[0], expected, rtol=2e-7, atol=0)
        assert steps.item() == t
