"""The explicit list of rules; nothing registers itself by being imported."""

from __future__ import annotations

from collections.abc import Mapping

from steepest.contract import Rule, unknown
from steepest.rules.adafactor import adafactor
from steepest.rules.adam import adam, adamw, lamb
from steepest.rules.adaptive import adagrad, rmsprop
from steepest.rules.sgd import lars, sgd
from steepest.rules.sign import lion, signum

RULES: Mapping[str, Rule] = {
    rule.name: rule for rule in (sgd, rmsprop, adagrad, adam, adamw, adafactor, lamb, lars, lion, signum)
}


def find_rule(rule: str | Rule) -> Rule:
    """The rule of this name (a `Rule` is returned as it is); a misspelt name is an error that helps."""
    if isinstance(rule, Rule):
        return rule
    if rule not in RULES:
        raise unknown("optimizer", rule, RULES)
    return RULES[rule]
