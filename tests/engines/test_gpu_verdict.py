"""Steps that a GPU decides about, in Triton's interpreter: a veto moves nothing, the host learns later."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("interpreted by test_gpu_process.py", allow_module_level=True)

import copy
import logging
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest
from laws.cases import CARD_CASES, slots_of, tensors
from steepest import SteepestError, schedules
from steepest.engines import gpu, gpu_tables, gpu_verdict
from steepest.engines.fused import Fused
from steepest.optimizer.step import expand_there

SHAPES = [(4, 3), (3,), (40, 130)]


class Interpreted(Fused):
    accelerator = "cpu"


def make(interpreted=True, rule="adamw", **options):
    params = tensors(SHAPES, 1, torch.float32)
    named = [(f"p{i}", torch.nn.Parameter(p)) for i, p in enumerate(params)]
    options = {"lr": schedules.cosine(0.1, 9), "state": "int8", "max_grad_norm": 1.0} | options
    opt = steepest.Optimizer(named, rule, engine="reference", **options)
    if interpreted:
        opt._engine = Interpreted()
    return opt


def owned(opt):
    return [p for group in opt.param_groups for p in group["params"]]


def feed(opt, k, bad=None, scale=1.0):
    """Gradients of step k, where they were if there were any; `bad` spoils an element of the second."""
    for p, g in zip(owned(opt), tensors(SHAPES, 10 + k, torch.float32), strict=True):
        p.grad = g * scale if p.grad is None else p.grad.copy_(g * scale)
    if bad is not None:
        owned(opt)[1].grad[1] = bad


def snapshot(opt):
    """Every bit that a veto may not move, without waiting for a verdict."""
    return [t.clone() for p in owned(opt) for t in (p.detach(), *slots_of(opt, p).values())]


def host(opt):
    """What the host says of a run."""
    verdict = opt.last_verdict
    return (
        *(opt.committed, opt.skipped, opt.consecutive_skips, opt.param_groups[0]["lr"]),
        *(verdict.commit, verdict.culprits, [opt.state[p]["step"] for p in owned(opt)]),
    )


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a, b):
    """Equal but for what a fused multiplication and addition does; in a code of eight bits that may be a
    rounding the other way, for one element in a thousand."""
    for p, q in zip(owned(a), owned(b), strict=True):
        differ = ~torch.isclose(p, q, rtol=1e-5, atol=1e-5)
        assert differ.sum() <= p.numel() / 1000
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("card", CARD_CASES, ids=str)
def test_a_veto_moves_not_one_bit(card):
    bad = (math.nan, math.inf, -math.inf)[CARD_CASES.index(card) % 3]
    params = [p.requires_grad_() for p in tensors([(40, 130), (5,)], 1, torch.float32)]
    opt = card.build(params, engine="reference", lr=0.01)
    opt._engine = Interpreted()
    opt.step()
    for k in range(2):
        for p, g in zip(params, tensors([p.shape for p in params], k, torch.float32), strict=True):
            p.grad = g
        if k:
            before = snapshot(opt)
            params[0].grad[7, 7] = bad
        opt.step()
    assert same(before, snapshot(opt)) and (opt.committed, opt.skipped) == (1, 1)


@settings(max_examples=5)
@given(bads=st.lists(st.booleans(), min_size=1, max_size=5), asks=st.booleans())
def test_a_run_with_vetoes_is_the_run_of_the_host(bads, asks):
    """Law: parameters, state, counters, schedule, whether anybody asks between steps or not."""
    ours, theirs = make(), make(False)
    for k, bad in enumerate(bads):
        for opt in (ours, theirs):
            feed(opt, k, math.nan if bad else None)
            opt.step()
        if asks:
            assert host(ours) == host(theirs)
    assert host(ours) == host(theirs)
    close(ours, theirs)


def test_the_step_is_counted_at_once_and_taken_back_when_somebody_asks():
    opt = make()
    feed(opt, 0, math.nan)
    opt.step()
    assert opt.__dict__["committed"] == 1 and opt.state[owned(opt)[0]]["step"] == 1
    assert opt.committed == 0 and opt.state[owned(opt)[0]]["step"] == 0
    assert opt.last_verdict.culprits == ("p1",) and opt.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("ask", [lambda o: o.state_dict(), copy.deepcopy, lambda o: o.export_torch_state()])
def test_saving_settles_first(ask):
    opt = make(state=None)
    feed(opt, 0, math.inf)
    opt.step()
    ask(opt)
    assert opt.__dict__["committed"] == 0 and opt.__dict__["skipped"] == 1


def test_a_saved_run_goes_on_as_if_it_had_not_stopped():
    one, other = make(), make()
    for k in range(4):
        feed(one, k)
        one.step()
        if k == 1:
            other.load_state_dict(copy.deepcopy(one.state_dict()))
            for p, q in zip(owned(one), owned(other), strict=True):
                q.data.copy_(p.data)
        elif k > 1:
            feed(other, k)
            other.step()
    assert same(snapshot(one), snapshot(other)) and host(one) == host(other)


def test_too_many_vetoes_in_a_row_raise_a_step_later():
    opt = make(skip_limit=2)
    for k in range(2):
        feed(opt, k, math.nan)
        opt.step()
    before = snapshot(opt)
    feed(opt, 2)
    with pytest.raises(SteepestError, match="2 steps in a row had non-finite gradients, last in p1"):
        opt.step()
    assert same(before, snapshot(opt))
    opt.step()
    assert opt.committed == 1


def test_culprits_are_named_and_the_log_says_so(caplog):
    opt = make()
    feed(opt, 0, math.nan)
    owned(opt)[2].grad[39, 129] = math.inf
    with caplog.at_level(logging.WARNING, logger="steepest"):
        opt.step()
        assert not caplog.text
        assert opt.last_verdict.culprits == ("p1", "p2")
    assert "nothing moved: non-finite gradient in p1, p2" in caplog.text


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": None}, {"maximize": True}])
@pytest.mark.parametrize("scale", [1.0, 1e25])
def test_norm_and_scale_are_the_host_s(options, scale):
    ours, theirs = make(rule="lion", **options), make(False, rule="lion", **options)
    for opt in (ours, theirs):
        feed(opt, 0, scale=scale)
        opt.step()
    assert ours.last_verdict.commit
    assert ours.last_verdict.norm == pytest.approx(theirs.last_verdict.norm, rel=1e-6)
    assert (ours.last_verdict.scale or 1.0) == pytest.approx(theirs.last_verdict.scale or 1.0, rel=1e-6)
    close(ours, theirs)


def test_a_norm_of_zero_is_no_division_by_zero():
    opt = make()
    feed(opt, 0, scale=0.0)
    opt.step()
    assert opt.committed == 1 and all(bool(torch.isfinite(p).all()) for p in owned(opt))


@pytest.mark.parametrize("unscale", [False, True])
def test_a_loss_scaler_s_numbers_stay_on_the_device(unscale):
    opts = make(state=None), make(False, state=None)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2)]
    for k in range(4):
        for opt, scaler in zip(opts, scalers, strict=True):
            feed(opt, k, math.inf if k == 1 else None, scaler.get_scale())
            scaler.scale(torch.zeros(()))
            if unscale:
                scaler.unscale_(opt)
            scaler.step(opt)
            scaler.update()
    assert host(opts[0]) == host(opts[1]) and opts[0].skipped == 1
    assert scalers[0].get_scale() == scalers[1].get_scale() == 512.0
    close(*opts)


def test_nobody_looks_where_nobody_asked():
    opt = make(check_finite=False, max_grad_norm=None, state=None)
    feed(opt, 0, math.nan)
    opt.step()
    assert opt.committed == 1 and math.isnan(opt.last_verdict.norm) and bool(owned(opt)[1][1].isnan())


def test_telemetry_is_of_the_last_committed_step():
    opt = make(telemetry=True)
    feed(opt, 0)
    opt.step()
    before = opt.telemetry()
    feed(opt, 1, math.nan)
    opt.step()
    assert opt.telemetry() == before and before["p0"]["grad_norm"] > 0


def test_what_no_kernel_serves_is_stepped_beside_the_rest():
    """The host decides then, for the foreach engine cannot be told by a number on the device."""
    opts = []
    for interpreted in (True, False):
        params = [p.requires_grad_() for p in tensors([(2, 3, 4), (40, 33)], 1, torch.float32)]
        opt = steepest.Adafactor(params, dialect="hf", engine="reference")
        opt._engine = Interpreted() if interpreted else opt._engine
        for k in range(3):
            for p, g in zip(params, tensors([(2, 3, 4), (40, 33)], k, torch.float32), strict=True):
                p.grad = g
            if k == 1:
                params[0].grad[1, 1, 1] = math.nan
            opt.step()
            assert opt.__dict__["committed"] == (1, 1, 2)[k]
        opts.append(opt)
    (own,) = opts[0]._engine._gpus.values()
    assert own._rest and own._plans
    close(*opts)


def test_a_number_on_another_device_is_never_read():
    """To read it would be to wait for that device; a tensor on "meta" cannot be read at all."""
    opt = make(lr=0.01)
    there = torch.tensor(0.5, device="meta")
    opt.param_groups[0]["lr"], opt.param_groups[0]["betas"] = there, (0.9, there)
    opt._check_groups()
    h, tensors = expand_there({"lr": there, "betas": (0.9, there), "eps": 1e-8}, 3, there.device)
    assert tensors.keys() == {"lr", "beta2"} and (h.beta1, h.eps, h.t) == (0.9, 1e-8, 3)


# ------------------------------------------------------------ captured steps


class Recorded:
    """Stands for a CUDA graph: what is launched while it records can be launched again."""

    def __init__(self, monkeypatch):
        self.calls, self.on = [], False
        start, pending = gpu.start, gpu_verdict.Court.pending
        for module in (gpu, gpu_tables, gpu_verdict):
            monkeypatch.setattr(module, "capturing", lambda tensor: self.on)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)

        def record(*arguments, **options):
            run = lambda: start(*arguments, **options)  # noqa: E731
            self.calls.append(run) if self.on else run()

        def copy_back(court, sums):
            if self.on:
                self.calls.append(lambda: court._seen.copy_(court.control))
                return gpu_verdict.Awaited(court, None, True, sums)
            return pending(court, sums)

        monkeypatch.setattr(gpu, "start", record)
        monkeypatch.setattr(gpu_verdict.Court, "pending", copy_back)

    def replay(self):
        for call in self.calls:
            call()


def test_a_captured_step_can_be_run_again_and_again(monkeypatch):
    graph = Recorded(monkeypatch)
    ours, theirs = make(lr=0.01), make(lr=0.01)
    feed(ours, 0)
    ours.step()
    graph.on = True
    ours.step()
    graph.on = False
    assert ours.committed == 1  # recording is not stepping
    for k in range(1, 5):
        feed(ours, k, math.nan if k == 2 else None)
        graph.replay()
    assert (ours.committed, ours.skipped) == (4, 1)
    feed(ours, 5)
    ours.step()
    for k in range(6):
        feed(theirs, k, math.nan if k == 2 else None)
        theirs.step()
    assert same(snapshot(ours), snapshot(theirs)) and host(ours) == host(theirs)


def test_a_capture_refuses_what_a_graph_would_not_see(monkeypatch):
    graph = Recorded(monkeypatch)
    graph.on = True
    opt = make(lr=0.01)
    feed(opt, 0)
    with pytest.raises(SteepestError, match="first step may not be captured"):
        opt.step()
    graph.on = False
    opt.step()
    graph.on = True
    for p in owned(opt):
        p.grad = p.grad.clone()
    with pytest.raises(SteepestError, match="zero_grad\\(set_to_none=False\\)"):
        opt.step()
