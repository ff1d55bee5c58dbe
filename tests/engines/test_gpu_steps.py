"""Steps by the kernels of a GPU, in Triton's interpreter: the reference engine's numbers, few launches."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("interpreted by test_gpu_process.py", allow_module_level=True)

import itertools
import logging

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest.engines.gpu
from laws.cases import CARD_CASES, CASES, LARGE, Case, every_rule, legal, slots_of, tensors
from steepest.codecs import PARAM_CODECS, SLOT_NAMES, decode, unpack
from steepest.engines.fused import Fused
from steepest.kernels.triton import load

SHAPES = [(40, 133), (5,), LARGE]
"""Two are large enough for codecs, the last for every dialect of Adafactor; 133 leaves tiles unfilled."""
SMALL = [(40, 133), (5,)]
STEPS = 2
PARAMS = [None, *PARAM_CODECS]
CODED = {"int8", "int16", "uint8", "bfloat16", "float16"}


class Interpreted(Fused):
    accelerator = "cpu"


def on_gpu(opt):
    opt._engine = Interpreted()
    return opt


def build(case, shapes, interpreted, param=None, **options):
    dtype = torch.bfloat16 if param else torch.float32
    params = [p.requires_grad_() for p in tensors(shapes, seed=1, dtype=dtype)]
    opt = case.build(params, engine="reference", lr=0.01, param=param, seed=7, **options)
    return params, on_gpu(opt) if interpreted else opt


def feed(params, seed):
    """Gradients that bfloat16 holds exactly, so that every type of parameter sees the same."""
    for p, g in zip(params, tensors([p.shape for p in params], seed, torch.bfloat16), strict=True):
        p.grad = g.to(p.dtype)


def train(case, shapes, interpreted, steps=STEPS, **options):
    params, opt = build(case, shapes, interpreted, **options)
    for k in range(steps):
        feed(params, 40 + k)
        opt.step()
    return params, opt


def choice(case, name):
    """One codec for all slots for which it can work."""
    return {slot: name for slot, fits in legal(case, name, SHAPES).items() if fits}


def off(a, b):
    """How many elements differ by more than 1e-5 of the tensor's size, or, of codes, by more than nothing;
    and whether any code is off by more codes than steps were taken, each of which may flip one rounding."""
    x, y = a.detach().double(), b.detach().double()
    if str(a.dtype).removeprefix("torch.") in CODED:
        steps = (x - y).abs() if not a.is_floating_point() else _ulps(a, b)
        return int((steps > 0).sum()), bool((steps > STEPS).any())
    return int(((x - y).abs() > 1e-5 * x.abs().max()).sum()), False


def _ulps(a, b):
    if a.dtype == torch.float16:  # `codecs.formats.half` stores the magnitude plus 2^-14
        values = [t.double().sign() * (t.double().abs() - 2.0**-14) for t in (a, b)]
        return (values[0] - values[1]).abs() / (2.0**-10 * torch.maximum(a.abs(), b.abs()).double())
    wide = [t.detach().contiguous().view(torch.int16).int() for t in (a, b)]
    ordered = [torch.where(w < 0, -(w & 0x7FFF), w) for w in wide]
    return (ordered[0] - ordered[1]).abs()


def decoded(opt, p):
    """A parameter's tensors; in place of the bits that a bfloat16 lacks, the float32 that they make."""
    held = {"p": p.detach(), **slots_of(opt, p)}
    if "p.low" in held:
        codec = PARAM_CODECS[opt.param_groups[0]["param"]]
        parts = {name: unpack(held[name], codec.parts[part], p.shape) for name, part in _PARTS.items()}
        held["p.low"] = decode(codec, "p", parts)
    return held


_PARTS = {"p": "", "p.low": "low"}


def agree(expected, got):
    """Parameters and slots within the bounds of fused arithmetic: a rounding flips here and there."""
    (params, opt), (others, other) = expected, got
    assert not any(rest for gpu in other._engine._gpus.values() for rest in gpu._rest)
    for p, q in zip(params, others, strict=True):
        ours, theirs = decoded(opt, p), decoded(other, q)
        assert ours.keys() == theirs.keys()
        for name, a in ours.items():
            wrong, far = off(a, theirs[name])
            assert wrong <= 2 + a.numel() // 100, (name, wrong, a.numel())
            assert not far or a.dtype == torch.uint8, name  # two codes of four bits in a byte


def test_the_table_covers_every_rule():
    assert every_rule(CASES) and every_rule(CARD_CASES)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_is_the_reference_s(case):
    agree(train(case, SMALL, False), train(case, SMALL, True))


@pytest.mark.parametrize("case", CARD_CASES, ids=str)
def test_every_rule_is_the_reference_s(case):
    agree(train(case, SHAPES, False), train(case, SHAPES, True))


COMBINATIONS = [
    pytest.param(case, name, PARAMS[k % len(PARAMS)], marks=[pytest.mark.slow] if (i + k) % 8 else [])
    for (i, case), (k, name) in itertools.product(enumerate(CARD_CASES), enumerate(SLOT_NAMES))
]
"""Of every codec, some rules at every change and the others now and then."""


@pytest.mark.parametrize(("case", "name", "param"), COMBINATIONS, ids=str)
def test_every_codec_is_the_reference_s(case, name, param):
    options = {"state": choice(case, name), "param": param, "max_grad_norm": 1.0, "telemetry": True}
    expected, got = (train(case, SHAPES[:1], i, **options) for i in (False, True))
    agree(expected, got)
    for name, row in expected[1].telemetry().items():
        for key, number in got[1].telemetry()[name].items():
            assert number == pytest.approx(row[key], rel=1e-3, abs=20 if key == "lost" else 1e-6), key


@settings(max_examples=10)
@given(
    case=st.sampled_from(CASES),
    shapes=st.lists(st.lists(st.integers(0, 12), max_size=3), min_size=1, max_size=5),
    seed=st.integers(0, 9),
)
def test_any_shapes(case, shapes, seed):
    """Also scalars and empty tensors; what no kernel serves runs on the foreach engine beside them."""
    runs = []
    for interpreted in (False, True):
        params, opt = build(case, shapes, interpreted)
        feed(params, seed)
        opt.step()
        runs.append(params)
    for p, q in zip(*runs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def adamw(**options):
    return Case(next(c for c in CASES if c.rule.name == "adamw").rule, {"weight_decay": 0.1, **options})


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor"])
def test_launches_do_not_follow_the_number_of_tensors(name, monkeypatch):
    case = next(c for c in CARD_CASES if c.rule.name == name)
    counts, start = [], steepest.engines.gpu.start

    def counted(function, programs, *arguments, **options):
        counts[-1].append(function.__name__)
        start(function, programs, *arguments, **options)

    monkeypatch.setattr(steepest.engines.gpu, "start", counted)
    for many in (2, 9):
        params, opt = build(case, [(6, 7)] * many, True)
        for k in range(3):
            counts.append([])
            feed(params, k)
            opt.step()
    assert counts[1] == counts[2] == counts[4] == counts[5]  # before the first, it is tried what compiles
    assert len(set(counts[1])) == len(counts[1]) and counts[1][:3] == ["measure", "verdict", "numbers"]


def test_live_numbers_cause_no_new_text():
    params, opt = build(adamw(), SMALL, True)
    for k in range(3):
        feed(params, k)
        group = opt.param_groups[0]
        group["lr"], group["betas"], group["weight_decay"] = 0.01 * (k + 1), (0.9 - 0.1 * k, 0.99), 0.1 * k
        opt.step()
        if k == 0:
            before = load.cache_info().misses
    assert load.cache_info().misses == before


def test_a_rate_on_the_device_is_never_read(monkeypatch):
    """It goes from tensor to table; a tensor that another program fills is seen at once."""
    rate = torch.tensor(0.01)
    ours, opt = build(adamw(), SMALL, True)
    theirs, other = build(adamw(), SMALL, False)
    opt.param_groups[0]["lr"] = rate
    seen = []
    monkeypatch.setattr("steepest.optimizer.optimizer.expand", lambda *args: seen.append(args))
    for k in range(3):
        rate.fill_(0.02 * (k + 1))
        feed(ours, k)
        opt.step()
    assert opt.committed == 3 and not seen
    monkeypatch.undo()
    for k in range(3):
        other.param_groups[0]["lr"] = 0.02 * (k + 1)
        feed(theirs, k)
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_memory_that_is_not_aligned_takes_the_other_variant():
    whole = torch.randn(64 * 128 + 1, generator=torch.Generator().manual_seed(0))
    runs = []
    for first in (0, 1):
        p = torch.empty(64 * 128 + 4)[first : first + 64 * 128].copy_(whole[: 64 * 128]).view(64, 128)
        opt = on_gpu(adamw().build([p], lr=0.01, state="int4"))
        p.grad = whole[1:].view(64, 128).clone()
        opt.step()
        (gpu,) = opt._engine._gpus.values()
        runs.append((p, [plan.tables._aligned for plan in gpu._plans]))
    assert runs[0][1] == [True] and runs[1][1] == [False]
    assert torch.equal(runs[0][0], runs[1][0])


def test_two_groups_share_one_plan():
    params, others = (tensors(SMALL, 1, torch.float32) for _ in range(2))

    def groups(own):
        return [{"params": own[:1], "lr": 0.1}, {"params": own[1:], "lr": 0.02, "weight_decay": 0.0}]

    opt = on_gpu(steepest.Optimizer(groups(params), "adamw"))
    other = steepest.Optimizer(groups(others), "adamw", engine="reference")
    for own, stepped in ((params, opt), (others, other)):
        for k in range(2):
            feed(own, k)
            own[1].grad = own[1].grad if k else None  # the second group is a step behind
            stepped.step()
    (gpu,) = opt._engine._gpus.values()
    assert len(gpu._plans) == 1
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def no_compiler(*arguments, **options):
    raise RuntimeError("no C compiler was found")


@pytest.mark.parametrize(
    ("name", "broken", "why"),
    [
        ("steepest.engines.fused.available", lambda: "triton is not installed", "triton is not installed"),
        ("steepest.engines.gpu.start", no_compiler, "no C compiler was found"),
    ],
    ids=["no triton", "no compiler"],
)
def test_where_nothing_compiles_a_gpu_runs_on_foreach_and_says_so_once(
    name, broken, why, monkeypatch, caplog
):
    monkeypatch.setattr(name, broken)
    with caplog.at_level(logging.WARNING, logger="steepest"):
        for _ in range(2):
            got = train(adamw(), SMALL, True)
    assert caplog.text.count(why) == 1
    assert not any(gpu._plans for gpu in got[1]._engine._gpus.values())
    for p, q in zip(got[0], train(adamw(), SMALL, False)[0], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
