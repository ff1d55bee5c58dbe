"""The fused engine: one launch for many groups, no second compilation, odd tensors served or passed on."""

import logging
import sys
import threading

import numpy as np
import pytest
import torch

import steepest
from steepest.engines import cpu, tables
from steepest.kernels import compile as compiling
from steepest.kernels import launch


@pytest.fixture
def work(monkeypatch):
    """What is built, compiled and launched while a test runs."""
    counts = {"compiled": 0, "launched": 0}

    def count(name, real):
        def call(*args):
            counts[name] += 1
            return real(*args)

        return call

    building = sys.modules["steepest.kernels.build"]  # the room's door has a function of this name
    monkeypatch.setattr(building, "compile_functions", count("compiled", compiling.compile_functions))
    monkeypatch.setattr(tables, "run_on_all_cores", count("launched", launch.run_on_all_cores))
    return counts


def grads(params, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def compare(make, params, steps=3, **tolerance):
    """The same steps on the fused and on the reference engine."""
    found = []
    for engine in ("fused", "reference"):
        own = [p.clone() for p in params] if isinstance(params, list) else params()
        opt = make(own, engine)
        for k in range(steps):
            grads(own, k)
            opt.step()
        found.append(own)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, **tolerance)


def test_it_is_what_users_get():
    assert steepest.AdamW([torch.ones(3)]).engine == "fused"
    assert steepest.AdamW([torch.ones(3)], fused=True).engine == "fused"


def test_one_launch_for_all_groups_and_step_counts(work):
    params = [torch.randn(100) for _ in range(6)]
    groups = [{"params": [p], "lr": 0.1 * (i + 1), "weight_decay": i} for i, p in enumerate(params)]
    opt = steepest.AdamW(groups, engine="fused", check_finite=False)
    grads(params)
    params[0].grad = None  # it will be one step behind
    opt.step()
    grads(params)
    work["launched"] = 0
    opt.step()
    assert work["launched"] == 1


def test_no_number_causes_a_compilation(work):
    p = torch.randn(50, 60)
    opt = steepest.LAMB([p], engine="fused", weight_decay=0.0, betas=(0.9, 0.99), max_grad_norm=100.0)
    grads([p])
    opt.step()
    before = work["compiled"]
    for k in range(8):
        group = opt.param_groups[0]
        group["lr"], group["weight_decay"] = 0.1 / (k + 1), 0.0 if k % 2 else 0.1 * k
        group["betas"], group["eps"] = (0.4 + k / 20, 0.3 + k / 20), 10.0**-k
        opt.max_grad_norm = 10.0**-k
        grads([p], k)
        opt.step()
    assert work["compiled"] == before


def test_another_length_of_the_same_kind_compiles_nothing(work):
    a, b = torch.randn(64, 64), torch.randn(1000)
    for p in (a, b):
        opt = steepest.Adagrad([p], engine="fused", check_finite=False)
        grads([p])
        opt.step()
        first = work["compiled"]
    assert work["compiled"] == first


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("state", [None, "int8", "int4"])
@pytest.mark.parametrize("name", ["AdamW", "LAMB", "Adafactor"])
def test_the_number_of_threads_changes_no_bit(name, state, threads):
    def run(count):
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            torch.manual_seed(1)
            params = [torch.randn(300, 257), torch.randn(70_001), torch.randn(5)]
            beta1 = {"beta1": 0.9} if name == "Adafactor" else {}
            opt = getattr(steepest, name)(params, lr=0.01, state=state, engine="fused", **beta1)
            for k in range(2):
                grads(params, k)
                opt.step()
            return [*params, *(t for p in params for t in opt.state[p].values() if torch.is_tensor(t))]
        finally:
            torch.set_num_threads(before)

    assert all(torch.equal(a, b) for a, b in zip(run(1), run(threads), strict=True))


def odd():
    torch.manual_seed(3)
    return [
        torch.randn(8, 13).t(),
        torch.randn(20, 7)[::2],
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(()),
        torch.randn(0, 4),
        torch.randn(1),
        torch.randn(1, 9),
        torch.randn(9, 1),
        torch.randn(3, 300, 200),
    ]


@pytest.mark.parametrize("name", ["AdamW", "LAMB", "Adafactor", "Lion"])
def test_odd_tensors(name):
    compare(lambda own, engine: getattr(steepest, name)(own, lr=0.01, engine=engine), odd)


def test_gradients_of_another_layout():
    p, q = torch.randn(30, 40), torch.randn(30, 40)
    q.copy_(p)
    g = torch.randn(40, 30)
    for x, engine in ((p, "fused"), (q, "reference")):
        x.grad = g.t()
        steepest.AdamW([x], engine=engine).step()
    torch.testing.assert_close(p, q)


def test_memory_that_was_exchanged_is_found():
    """Addresses are read at every step: `.data` swapped, states loaded, gradients made anew."""
    p, q = torch.randn(100), torch.zeros(100)
    q.copy_(p)
    opts = [steepest.AdamW([x], lr=0.1, engine=e) for x, e in ((p, "fused"), (q, "reference"))]
    for k in range(4):
        for x, opt in zip((p, q), opts, strict=True):
            grads([x], k)
            if k == 1:
                x.data = x.data.clone()
            if k == 2:
                opt.load_state_dict(opt.state_dict())
            if k == 3:
                opt.state[x]["m"] = opt.state[x]["m"].clone()
            opt.step()
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("state", [None, "int8"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_vetoed_step_changes_no_bit(state, poison):
    params = [torch.randn(64, 128), torch.randn(70_000)]
    opt = steepest.LAMB(params, state=state, engine="fused")
    grads(params)
    opt.step()
    kept = [t.clone() for p in params for t in (p, *(x for x in opt.state[p].values() if torch.is_tensor(x)))]
    grads(params)
    params[1].grad[69_999] = poison
    opt.step()
    assert not opt.last_verdict.commit and opt.last_verdict.culprits == ("parameter 1 of group 0",)
    after = [t for p in params for t in (p, *(x for x in opt.state[p].values() if torch.is_tensor(x)))]
    assert all(torch.equal(a, b) for a, b in zip(kept, after, strict=True))


def test_the_norm_is_exact_and_does_not_overflow():
    engine = steepest.engines.find_engine("fused")
    generator = np.random.default_rng(0)
    values = generator.standard_normal(3_000_001)
    parts = [torch.from_numpy(x).float() for x in np.split(values, [1, 1000, 2_000_000])]
    exact = float(np.sqrt(sum(float((x.double() ** 2).sum()) for x in parts)))
    assert engine.measure(parts) == pytest.approx(exact, rel=1e-9)
    assert engine.measure([torch.full((100,), 1e30)]) == pytest.approx(1e31)
    assert engine.measure([torch.full((5,), 3.0, dtype=torch.bfloat16)]) == pytest.approx(45**0.5)
    assert not np.isfinite(engine.measure([torch.tensor([1.0, float("inf")])]))
    assert engine.measure([torch.zeros(0), torch.tensor(3.0)]) == 3.0


def test_two_threads_step_two_optimizers():
    """As an optimizer in the backward pass does."""
    params = [torch.randn(200_000) for _ in range(2)]
    expected = [p.clone() for p in params]
    opts = [steepest.AdamW([p], lr=0.1, engine="fused") for p in params]
    grads(params)
    threads = [threading.Thread(target=lambda o=o: [o.step() for _ in range(20)]) for o in opts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for p, q in zip(params, expected, strict=True):
        opt = steepest.AdamW([q], lr=0.1, engine="reference")
        q.grad = p.grad.clone()
        for _ in range(20):
            opt.step()
        torch.testing.assert_close(p, q)


def test_one_thread_does_the_work_of_those_that_do_not_come(monkeypatch):
    """As a nested or limited OpenMP may give fewer threads than were asked for."""
    monkeypatch.setattr(tables, "threads_for", lambda shares: min(3, shares))
    monkeypatch.setattr(
        tables, "run_on_all_cores", lambda f, given, threads: launch.run_on_all_cores(f, given, 1)
    )
    compare(lambda own, engine: steepest.LAMB(own, engine=engine), [torch.randn(500, 300), torch.randn(9)])


def test_threads_of_python_serve_where_openmp_is_not(monkeypatch):
    monkeypatch.setattr(launch, "_team", lambda process: launch._threads())
    compare(lambda own, engine: steepest.LAMB(own, engine=engine), [torch.randn(500, 300), torch.randn(9)])


def test_without_a_compiler_foreach_runs_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(cpu, "available", lambda: "llvmlite is not installed; pip install llvmlite")
    cpu.complain.cache_clear()
    p = torch.randn(10)
    with caplog.at_level(logging.WARNING, "steepest"):
        for _ in range(2):
            opt = steepest.AdamW([p])
            grads([p])
            opt.step()
    assert opt.committed == 1 and len(caplog.records) == 1
    assert "foreach" in caplog.text and "pip install llvmlite" in caplog.text


def test_what_no_engine_trains_is_refused_in_a_sentence():
    p, q, w = torch.zeros(3, 3), torch.zeros(3, dtype=torch.complex64), torch.zeros(3, dtype=torch.int64)
    p.grad, q.grad, w.grad = torch.eye(3).to_sparse(), torch.ones_like(q), torch.ones_like(w)
    for x, kind in ((p, "sparse"), (q, "complex"), (w, "of whole numbers")):
        opt = steepest.AdamW([x])
        with pytest.raises(steepest.SteepestError, match=f"a gradient is {kind}"):
            opt.step()


def test_frozen_whole_numbers_are_left_alone():
    """Quantized weights stand among the parameters of many models."""
    p, q = torch.zeros(3, dtype=torch.int32), torch.zeros(3)
    q.grad = torch.ones(3)
    opt = steepest.AdamW([p, q])
    opt.step()
    assert opt.committed == 1 and p not in opt.state and not p.any() and q.all()


def test_parameters_of_several_types_in_one_optimizer():
    def make(own, engine):
        return steepest.AdamW(own, lr=0.01, engine=engine)

    torch.manual_seed(0)
    types = (torch.float32, torch.float64, torch.float32, torch.float64)
    compare(make, [torch.randn(300, dtype=dtype) for dtype in types])
