"""Law: every optimizer has a page, a twin, a source for its defaults, and a constructor that tells no lie."""

import inspect
from pathlib import Path

import pytest
import torch

import steepest
from reference.twins import TWINS
from steepest.optimizer import constructor
from steepest.rules import CARDS, RULES

ROOT = Path(__file__).parents[2]
DIALECT_ONLY = {"trust_low", "trust_high"}
"""Hyperparameters that a dialect sets and a constructor does not offer."""

PAGE = ("| state |", "| learning rate |", "| defaults from |", "## Formula", "## When to use it")
"""What a page must have: memory, learning rate relative to AdamW's, source of the defaults, advice."""


def arguments(cls):
    return {
        name: p
        for name, p in inspect.signature(cls.__init__).parameters.items()
        if name not in ("self", "params") and p.kind is not p.VAR_KEYWORD
    }


def test_every_rule_has_a_card_and_every_card_a_rule():
    assert {card.rule_name for card in CARDS.values()} == set(RULES) and CARDS
    assert all(name == card.name for name, card in CARDS.items())


def test_every_rule_and_dialect_has_a_twin():
    assert set(TWINS) == {(r.name, d) for r in RULES.values() for d in (r.dialects or [None])}


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda c: c.name)
class TestCard:
    def test_says_everything(self, card):
        for field in ("title", "summary", "when", "relative_source", "defaults_source"):
            text = getattr(card, field)
            assert text.strip() and "\n" not in text, field
        assert card.relative_lr > 0
        assert card.rule.paper

    def test_has_a_page_that_says_what_a_page_must(self, card):
        page = ROOT / "docs" / "optimizers" / f"{card.name}.md"
        assert page.is_file(), f"docs/optimizers/{card.name}.md is missing"
        text = page.read_text(encoding="utf-8")
        for part in PAGE:
            assert part in text, f"{page.name} has no {part!r}"
        assert f"steepest.{card.constructor}" in text and card.defaults_source in text

    def test_constructor_is_exported_and_builds_the_card(self, card):
        cls = getattr(steepest, card.constructor)
        assert cls is constructor(card.constructor) and card.constructor in steepest.__all__
        opt = cls([torch.zeros(3, requires_grad=True)], lr=0.1, **card.settings)
        assert opt.param_groups[0]["rule"] == card.rule_name
        for name, value in {"lr": 0.1, **card.settings}.items():
            assert opt.param_groups[0][name] == value

    def test_lab_settings_are_legal(self, card):
        opt = steepest.Optimizer([torch.zeros(3)], card.rule, **{**card.settings, **card.lab})
        assert all(opt.param_groups[0][name] == value for name, value in card.lab.items())


@pytest.mark.parametrize("name", sorted({card.constructor for card in CARDS.values()}))
class TestConstructor:
    def rule(self, name):
        return next(card.rule for card in CARDS.values() if card.constructor == name)

    def test_offers_every_hyperparameter_at_the_rules_default(self, name):
        rule, given = self.rule(name), arguments(constructor(name))
        assert set(given) == set(rule.hyper) - DIALECT_ONLY
        for key, parameter in given.items():
            assert parameter.default in (None, rule.hyper[key].default), key

    def test_without_arguments_gives_the_rules_defaults(self, name):
        rule = self.rule(name)
        for dialect in rule.dialects or [None]:
            named = {"dialect": dialect} if dialect else {}
            group = constructor(name)([torch.zeros(3)], **named).param_groups[0]
            assert {key: group[key] for key in rule.hyper} == rule.defaults(dialect)

    def test_takes_torchs_positional_arguments_in_torchs_order(self, name):
        theirs = getattr(torch.optim, name, None)
        if theirs is None:
            assert name in ("LAMB", "LARS", "Lion", "Signum")
            return
        # The last of these is AdamW by another name.
        options = ("foreach", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay")
        expected = {k: p.default for k, p in arguments(theirs).items() if k not in options}
        ours = {k: p.default for k, p in arguments(constructor(name)).items()}
        assert list(ours)[: len(expected)] == list(expected) and len(expected) >= 5
        for key, value in expected.items():
            if name != "Adafactor" or key != "eps":  # whose default there depends on the parameter's type
                assert ours[key] in (None, value), key
