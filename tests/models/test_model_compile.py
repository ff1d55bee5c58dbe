"""torch.compile as a switch: in place, and aloud where it does not work."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from steepest.models import compile as module
from steepest.models import compile_model


@pytest.fixture(autouse=True)
def forget():
    module._trouble.cache_clear()
    yield
    module._trouble.cache_clear()


def test_no_compiler_is_said_and_survived(monkeypatch):
    def broken(function):
        raise RuntimeError("Failed to find C++ compiler.\nmore lines")

    monkeypatch.setattr(torch, "compile", broken)
    model = nn.Linear(2, 2)
    message = r"does not work here \(RuntimeError: Failed to find C\+\+ compiler\); the model runs without"
    with pytest.warns(RuntimeWarning, match=message):
        assert compile_model(model) is model
    assert model._compiled_call_impl is None


def test_names_and_class_stay(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    model = nn.Sequential(nn.Linear(2, 2))
    assert compile_model(model) is model and type(model) is nn.Sequential
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert model._compiled_call_impl is not None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_a_compiled_model_computes_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(3, 4)
    expected = model(x)
    torch.testing.assert_close(compile_model(model)(x), expected)
