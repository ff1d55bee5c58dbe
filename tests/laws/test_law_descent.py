"""Law: every optimizer goes down on problems whose minimum is known."""

import math

import numpy as np
import pytest
import torch

from laws.cases import Case
from steepest.engines import ENGINES
from steepest.rules import CARDS, RULES

STEPS = 300
LR = {
    "sgd": 0.3,
    "momentum": 0.05,
    "rmsprop": 0.05,
    "adagrad": 0.5,
    "adam": 0.1,
    "adamw": 0.1,
    "adafactor": 0.1,
    "lamb": 0.1,
    "lars": 60.0,
    "lion": 0.05,
    "signum": 0.05,
}
"""A sensible learning rate on these problems, whose parameters are of size one."""

CASES = {
    "-".join(filter(None, (card.name, dialect))): (
        card.name,
        Case(card.rule, {"weight_decay": 0.0, **card.settings, **({"dialect": dialect} if dialect else {})}),
    )
    for card in CARDS.values()
    for dialect in (card.rule.dialects or [None])
}


def quadratic():
    """1/2 sum a (x - b)^2 with curvatures from 0.1 to 1: minimum 0. Returns (loss of x, minimum)."""
    generator = np.random.default_rng(0)
    a = torch.tensor(np.geomspace(0.1, 1.0, 24).reshape(6, 4))
    b = torch.tensor(generator.normal(size=(6, 4)))
    return lambda x: 0.5 * (a * (x - b) ** 2).sum(), 0.0


def logistic():
    """Logistic regression on 64 points of 24 features with a ridge; its minimum by Newton's method."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(64, 24))
    labels = np.sign(features @ generator.normal(size=24) + generator.normal(size=64))
    signed, ridge = features * labels[:, None], 0.05

    def value(w):
        return np.logaddexp(0, -signed @ w).mean() + 0.5 * ridge * w @ w

    w = np.zeros(24)
    for _ in range(30):
        s = 1 / (1 + np.exp(signed @ w))
        slope = -signed.T @ s / 64 + ridge * w
        w -= np.linalg.solve((signed.T * (s * (1 - s))) @ signed / 64 + ridge * np.eye(24), slope)
    assert np.abs(slope).max() < 1e-12  # a minimum, as the function is convex
    data = torch.tensor(signed)

    def loss(x):
        margins = data @ x.reshape(-1)
        return torch.nn.functional.softplus(-margins).mean() + 0.5 * ridge * (x * x).sum()

    return loss, value(w)


PROBLEMS = {"quadratic": quadratic, "logistic": logistic}


def test_the_table_covers_every_rule():
    assert {case.rule.name for _, case in CASES.values()} == set(RULES) and set(LR) == set(CARDS)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("name", "case"), CASES.values(), ids=CASES.keys())
def test_the_gap_to_the_minimum_closes(name, case, problem):
    loss, minimum = PROBLEMS[problem]()
    x = torch.linspace(-1.5, 1.5, 24, dtype=torch.float64).reshape(6, 4).requires_grad_()
    opt = case.build([x], lr=lambda k: LR[name] * 0.5 * (1 + math.cos(math.pi * k / STEPS)))

    def closure():
        opt.zero_grad()
        value = loss(x)
        value.backward()
        return value

    first = float(loss(x).detach()) - minimum
    for _ in range(STEPS):
        opt.step(closure)
    last = float(loss(x).detach()) - minimum
    assert -1e-12 < last < 1e-2 * first, f"{last / first:.2g} of the gap is left"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "case"), CASES.values(), ids=CASES.keys())
def test_maximize_climbs_what_minimize_descends(name, case, engine):
    """Maximizing -f is minimizing f, bit for bit."""
    loss, _ = quadratic()

    def path(sign, **options):
        x = torch.linspace(-1.5, 1.5, 24, dtype=torch.float64).reshape(6, 4).requires_grad_()
        opt = case.build([x], lr=LR[name], engine=engine, **options)
        for _ in range(3):
            opt.zero_grad()
            (sign * loss(x)).backward()
            opt.step()
        return x

    assert torch.equal(path(1.0), path(-1.0, maximize=True))
