"""Objectives by name: what each declares, and what is said of a wrong name, option or value."""

from __future__ import annotations

import inspect

import pytest
import torch

from objectives import literal
from steepest.contract import SteepestError
from steepest.objectives import OBJECTIVES, dpo, get_objective, next_token, policy

NAMES = ["next_token", "sft", "seq2seq", "dpo", "ipo", "orpo", "reward", "grpo", "rloo", "ppo"]


def test_what_there_is():
    assert list(OBJECTIVES) == NAMES
    assert get_objective("next_token") is next_token
    assert {o.batch for o in OBJECTIVES.values()} == {"text", "completion", "seq2seq", "preference", "policy"}
    assert {o.model for o in OBJECTIVES.values()} == {"causal", "seq2seq", "scored", "valued"}
    assert {n: o.advantages for n, o in OBJECTIVES.items() if o.batch == "policy"} == {
        "grpo": "grpo",
        "rloo": "rloo",
        "ppo": "gae",
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_default_is_in_its_own_range(name):
    objective = OBJECTIVES[name]
    arguments = inspect.signature(objective.function).parameters.values()
    keywords = {a.name: a.default for a in arguments if a.kind is a.KEYWORD_ONLY}
    assert {option: declared.default for option, declared in objective.options.items()} == keywords
    get_objective(name, **keywords)


def test_options_are_bound():
    assert get_objective("dpo", beta=0.5).keywords == {"beta": 0.5}
    assert get_objective("dpo").__name__ == dpo.__name__ and get_objective("grpo") is policy
    g = literal.generator(0)
    batch = {side: literal.rows(2, 5, 4, g) for side in ("chosen", "rejected")}
    model = literal.Says(literal.randn(4, 4, 4, g=g))
    bound = get_objective("dpo", beta=0.5, reference="none")
    assert torch.equal(bound(model, batch)[0], dpo(model, batch, beta=0.5, reference="none")[0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("next-token", {}, "unknown objective 'next-token'; did you mean 'next_token'"),
        ("dp0", {}, "did you mean 'dpo'"),
        ("sft", {"beta": 1}, "unknown option of sft 'beta'"),
        ("dpo", {"betta": 1}, "unknown option of dpo 'betta'; did you mean 'beta'"),
        ("dpo", {"beta": 0}, "objective dpo: beta=0.0 is out of range"),
        ("dpo", {"beta": float("nan")}, "beta=nan is out of range"),
        ("dpo", {"label_smoothing": 0.5}, r"must lie in \[0, 0.5\)"),
        ("dpo", {"reference": "some"}, "reference='some' is not one of 'cached', 'none'"),
        ("grpo", {"clip_low": 1.5}, r"must lie in \[0, 1\]"),
        ("ppo", {"value_coef": "much"}, "value_coef must be a number"),
        ("rloo", {"normalise": "word"}, "is not one of 'token', 'sequence'"),
    ],
)
def test_mistakes(name, options, message):
    with pytest.raises(SteepestError, match=message):
        get_objective(name, **options)
