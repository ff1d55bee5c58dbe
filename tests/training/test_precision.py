"""Number formats, accumulation, recompute and compile: what they change, and what they must not."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from session_cases import LORA, assert_same, finished

from steepest.training.journal import read_metrics
from steepest.training.precision import LossScale

TEXT = {"data": "synthetic:0:4000", "steps": 4}
STILL = {"model": "session_cases:still", "schedule": {"name": "constant", "warmup": 0}}
"""A model without dropout, whose noise depends on how a batch is cut."""


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder)]


def parameters(made: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in made.builder.policy.parameters()]


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({"data": "synthetic:0:4000"}, "fp32"),
        ({"objective": "sft", "data": "tasks:copy,add:2:40"}, "fp32"),
        ({"objective": "sft", "data": "tasks:copy,add:2:40", "adapter": {"kind": "lora", "r": 2}}, "fp32"),
        ({"objective": "dpo", "data": "tasks:copy,add:2:40"}, "fp32"),
        ({"objective": "sft", "data": "tasks:copy,add:2:40"}, "fp16"),
    ],
    ids=["text", "sft", "lora", "dpo", "sft in float16"],
)
def test_accumulated_batches_are_the_big_one(
    changes: dict[str, Any], precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of different lengths: a mean of means would be another number."""
    from steepest.training.feeds import Stream, to_device

    def pieces(self: Stream, position: int) -> Any:
        """The same rows in the same order, cut into micro-batches of one row and of three."""
        batch = to_device(self.at(position), self.device)

        def cut(value: Any, rows: slice) -> Any:
            if isinstance(value, dict):
                return {name: cut(inner, rows) for name, inner in value.items()}
            return value[rows]

        return [[cut(batch, rows) for rows in (slice(0, 1), slice(1, 4))]]

    small = partial(
        LossScale, value=2.0**8
    )  # the first scale is found by overflows, at another step for each
    monkeypatch.setattr("steepest.training.precision.LossScale", small)
    base = {**STILL, "steps": 4, "precision": precision, **changes}
    whole = finished(tmp_path / "whole", base)
    monkeypatch.setattr(Stream, "round", pieces)
    cut = finished(tmp_path / "cut", base)
    close = {"rtol": 1e-5, "atol": 1e-6} if precision == "fp32" else {"rtol": 2e-2, "atol": 2e-3}
    for one, other in zip(losses(tmp_path / "whole"), losses(tmp_path / "cut"), strict=True):
        torch.testing.assert_close(one, other, **close)
    moved = max(
        float((one - other).abs().max())
        for one, other in zip(parameters(whole), parameters(cut), strict=True)
    )
    # AdamW's first steps are signs: where a gradient is rounding alone, they may differ by a learning rate.
    assert moved < (1e-3 if precision == "fp32" else 4 * 0.01)
    norms = [[line["grad_norm"] for line in read_metrics(tmp_path / name)] for name in ("whole", "cut")]
    torch.testing.assert_close(norms[0][0], norms[1][0], **close)


FORMATS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "pure_bf16": {"precision": "pure_bf16"},
    "pure_bf16 with codecs": {
        "precision": "pure_bf16",
        "optimizer": {"name": "adamw", "lr": 0.01, "state": "int8", "param": "split24"},
    },
}


@pytest.mark.parametrize("changes", FORMATS.values(), ids=FORMATS)
def test_every_format_trains(changes: dict[str, Any], tmp_path: Path) -> None:
    made = finished(tmp_path, {**TEXT, "steps": 12, **changes})
    found = losses(tmp_path)
    assert found[-1] < found[0] - 0.05
    assert made.results[0].reason is None and made.results[0].trained is not None
    kind = torch.bfloat16 if "pure" in str(changes.get("precision")) else torch.float32
    assert {p.dtype for p in made.builder.policy.parameters()} == {kind}


@pytest.mark.parametrize("name", ["fp16", "pure_bf16 with codecs"])
def test_formats_are_continued_to_the_last_bit(name: str, tmp_path: Path) -> None:
    changes = {**TEXT, **FORMATS[name]}
    finished(tmp_path / "whole", changes)
    with pytest.raises(KeyboardInterrupt):
        finished(tmp_path / "cut", changes, log=lambda step, values: _interrupt(step))
    finished(tmp_path / "cut", changes)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def _interrupt(step: int) -> None:
    if step == 3:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "changes",
    [TEXT, {"objective": "sft", "adapter": LORA}, {"objective": "seq2seq", "model": "session_cases:t5"}],
    ids=["text", "lora", "seq2seq"],
)
def test_recompute_changes_no_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    """Dropout's noise included."""
    usual = finished(tmp_path / "usual", changes)
    again = finished(tmp_path / "again", {**changes, "recompute": True})
    assert losses(tmp_path / "usual") == losses(tmp_path / "again")
    assert all(map(torch.equal, parameters(usual), parameters(again)))


@pytest.mark.slow
def test_compile_trains_or_says_why_not(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        finished(tmp_path / "compiled", {**TEXT, **STILL, "steps": 2, "compile": True})
    finished(tmp_path / "usual", {**TEXT, **STILL, "steps": 2})
    fell_back = any("torch.compile does not work here" in str(one.message) for one in told)
    pairs = list(zip(losses(tmp_path / "compiled"), losses(tmp_path / "usual"), strict=True))
    assert len(pairs) == 2
    for compiled, usual in pairs:
        assert compiled == usual if fell_back else abs(compiled - usual) < 1e-3


def test_a_loss_scale_rises_after_patience_and_falls_at_once() -> None:
    scale = LossScale(value=8.0, patience=3)
    found = []
    for committed in (True, True, True, False, True, True, False, True, True, True):
        scale.observe(committed)
        found.append(scale.value)
    assert found == [8, 8, 16, 8, 8, 8, 4, 4, 4, 8]
    low, high = LossScale(value=1.0), LossScale(value=2.0**24, patience=1)
    low.observe(False)
    high.observe(True)
    assert (low.value, high.value) == (1.0, 2.0**24)
