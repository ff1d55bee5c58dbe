"""A model that is not as it was: modules that have other names now, and a vocabulary that has grown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import session_cases
import torch
from session_cases import finished, still
from torch import nn

from steepest.contract import SteepestError
from steepest.models import vocabulary
from steepest.training import RunConfig
from steepest.training.journal import read_metrics

RUN: dict[str, Any] = {
    "data": "synthetic:0:4000",
    "steps": 4,
    "model": "session_cases:still",
    "guard": {"adagc": True},
    "health": {"every": 1},
}


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, *given: Any, **more: Any) -> Any:
        return self.inner(*given, **more)


def cut(folder: Path) -> None:
    def log(step: int, values: Any) -> None:
        if step > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finished(folder, RUN, log=log)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder)]


def test_a_save_goes_on_under_new_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, both moments, the guard's and health's memory find their tensors again; a second time, from a
    save with the new names, the map is no hindrance."""
    finished(tmp_path / "whole", RUN)
    cut(tmp_path / "cut")
    monkeypatch.setattr(
        session_cases, "still", lambda vocab_size, context: Wrapped(still(vocab_size, context))
    )
    with pytest.raises(SteepestError, match=r"give `rename: \{old: new\}`"):
        finished(tmp_path / "cut", RUN)
    rename = {**RUN, "rename": {"transformer": "inner.transformer"}}
    found = finished(tmp_path / "cut", rename)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole") and len(losses(tmp_path / "cut")) == 4
    built = found.archive.store.load(found.archive.store.generations()[-2]).facts["built"]  # of step 3
    names = [*built["optimizer"]["parameters"], *built["health"]["sizes"]]
    assert names and all(name.startswith("inner.transformer.") for name in names)
    again = finished(tmp_path / "cut", rename)
    assert again.results[0].steps == 4


def test_a_map_that_makes_one_name_of_two_is_a_sentence(tmp_path: Path) -> None:
    cut(tmp_path)
    with pytest.raises(SteepestError, match="two tensors of model one name"):
        finished(tmp_path, {**RUN, "rename": {"transformer.h.0": "transformer.h.1"}})


def test_a_folder_with_fewer_tokens_is_given_rows(tmp_path: Path) -> None:
    """The tokenizer has 256; the rows that the folder has not begin as the mean of its own."""
    model = still(200, 24)
    model.save_pretrained(tmp_path / "model")
    plan = {**RUN, "model": str(tmp_path / "model")}
    with pytest.raises(SteepestError, match=r"256 tokens and model .* knows 200; .*pad_vocab: true"):
        finished(tmp_path / "refused", plan)
    run = finished(tmp_path / "run", {**plan, "pad_vocab": True, "optimizer": {"name": "sgd", "lr": 0.0}})
    policy: Any = run.builder.policy
    rows = policy.get_input_embeddings().weight
    old = model.get_input_embeddings().weight
    assert vocabulary(policy) == 256 == len(rows) and torch.equal(rows[:200], old)
    torch.testing.assert_close(rows[200:], old.mean(0).expand(56, -1))


def test_both_keys_are_plain_by_default() -> None:
    plain = RunConfig(optimizer={"name": "sgd", "lr": 0.1})
    assert (plain.pad_vocab, plain.rename) == (False, {})
