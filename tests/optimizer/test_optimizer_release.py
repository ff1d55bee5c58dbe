"""Gradients used and let go of inside the backward pass: the numbers of ordinary steps."""

import itertools

import pytest
import torch
from torch import nn

from steepest import Optimizer, SteepestError
from steepest.optimizer.release import Release

RULES = ["adamw", "lamb", "adafactor", "sgd"]


def model():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3))
    net.add_module("idle", nn.Linear(2, 2))  # the loss does not know it
    net[0].bias.requires_grad_(False)
    return net


def loss_of(net, step, part=0):
    x = torch.randn(16, 12, generator=torch.Generator().manual_seed(10 * step + part))
    for layer in net[:5]:
        x = layer(x)
    return x.square().mean()


def ordinary(rule, clip, parts=1):
    net = model()
    opt = Optimizer(net.named_parameters(), rule, lr=lambda t: 0.05 / (1 + t), max_grad_norm=clip)
    for step in range(4):
        for part in range(parts):
            loss_of(net, step, part).backward()
        opt.step()
        opt.zero_grad()
    return net, opt


def assert_same(net, other):
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("parts", [1, 3])
def test_one_pass_without_clipping_is_the_ordinary_step(rule, parts):
    expected, theirs = ordinary(rule, None, parts)
    net = model()
    opt = Optimizer(net.named_parameters(), rule, lr=lambda t: 0.05 / (1 + t))
    release = Release(opt)
    for step in range(4):
        with release.holding():
            for part in range(parts - 1):
                loss_of(net, step, part).backward()
        loss_of(net, step, parts - 1).backward()
        assert all(p.grad is None for p in net.parameters())
        assert release.finish().commit
    assert_same(net, expected)
    assert opt.committed == theirs.committed == 4
    assert opt.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]


@pytest.mark.parametrize("rule", RULES)
def test_two_passes_clip_as_an_ordinary_step_does(rule):
    expected, _ = ordinary(rule, 0.01)
    net = model()
    release = Release(
        Optimizer(net.named_parameters(), rule, lr=lambda t: 0.05 / (1 + t), max_grad_norm=0.01)
    )
    for step in range(4):
        release.exact(lambda step=step: loss_of(net, step).backward())
    for p, q in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)  # the norm is summed in another order


def test_one_pass_clips_by_the_norm_of_the_step_before():
    net = model()
    opt = Optimizer(net.named_parameters(), "sgd", lr=0.05, max_grad_norm=0.01)
    release = Release(opt)
    scales = []
    for step in range(3):
        loss_of(net, step).backward()
        scales.append(release.finish())
    assert scales[0].scale is None
    for before, now in itertools.pairwise(scales):
        assert now.scale == pytest.approx(0.01 / (before.norm + 1e-6))


def test_a_veto_of_two_passes_moves_nothing_and_counts():
    net = model()
    opt = Optimizer(net.named_parameters(), "adamw", lr=0.05)
    release = Release(opt)
    before = [p.detach().clone() for p in net.parameters()]
    release.exact(lambda: (loss_of(net, 0) * float("nan")).backward())
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert opt.skipped == 1 and opt.committed == 0 and not opt.last_verdict.commit
    release.exact(lambda: loss_of(net, 0).backward())
    assert opt.committed == 1


def test_one_pass_stops_at_the_first_gradient_that_is_not_finite():
    net = model()
    opt = Optimizer(net.named_parameters(), "adamw", lr=0.05)
    release = Release(opt)
    net[2].weight.register_hook(lambda g: g * float("nan"))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    loss_of(net, 0).backward()
    verdict = release.finish()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert not verdict.commit and opt.last_verdict.culprits == ("2.weight",)
    assert "2.weight" not in moved and "0.weight" not in moved and "4.weight" in moved


def test_what_asks_for_all_gradients_at_once_is_refused():
    net = model()
    release = Release(Optimizer(net.named_parameters(), "adamw", lr=0.05))
    release.remove()
    loss_of(net, 0).backward()
    assert net[0].weight.grad is not None
    opt = Optimizer(net.named_parameters(), "adamw", lr=0.05)
    opt.judge = lambda norm: None
    with pytest.raises(SteepestError, match="all gradients at once"):
        Release(opt)
