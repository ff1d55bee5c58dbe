"""What a person wants to know before choosing: one card an optimizer, data only.

`relative_lr` is the learning rate to try first, as a multiple of AdamW's for the same model and data; the
lab searches around it, so it need only be right to a factor of four or so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steepest.contract import Rule, unknown
from steepest.rules.table import RULES


@dataclass(frozen=True)
class Card:
    """One optimizer as people name it: a rule, with the settings that make it this one.

    constructor: the class a user calls.        settings: what differs from the rule's defaults.
    lab:         settings under which `compare` runs it, beside the learning rate it searches.
    """

    name: str
    title: str
    rule_name: str
    constructor: str
    summary: str
    when: str
    relative_lr: float
    relative_source: str
    defaults_source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    lab: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rule(self) -> Rule:
        return RULES[self.rule_name]


# Decoupled decay acts through lr x weight_decay, so a rule with a smaller learning rate needs a larger
# decay for the same pull; 0.1 for AdamW is the pre-training convention (labs.md section 4 sources:
# Marin and EPFL sweeps).
CARDS: Mapping[str, Card] = {
    card.name: card
    for card in (
        Card(
            "sgd",
            "SGD",
            "sgd",
            "SGD",
            "Moves straight down the gradient.",
            "Baselines, convex problems, RL with verifiable rewards; trails on language models.",
            200.0,
            "measured: bench/results/known_facts.json",
            "torch.optim.SGD",
        ),
        Card(
            "momentum",
            "SGD + momentum",
            "sgd",
            "SGD",
            "Gradient descent with a running sum of past gradients.",
            "Vision models; half of Adam's state. Needs a well-scaled problem.",
            32.0,
            "measured: 16 in bench/results/compare.json, 64 in known_facts.json",
            "torch.optim.SGD; 0.9 from Sutskever et al. 2013",
            settings={"momentum": 0.9},
        ),
        Card(
            "rmsprop",
            "RMSprop",
            "rmsprop",
            "RMSprop",
            "Divides the gradient by its running root mean square.",
            "Reinforcement learning and recurrent nets; Adam without the first moment.",
            0.5,
            "measured: bench/results/compare.json",
            "torch.optim.RMSprop",
        ),
        Card(
            "adagrad",
            "Adagrad",
            "adagrad",
            "Adagrad",
            "Divides by the root of the sum of all squared gradients, so its rate only falls.",
            "Sparse features, embeddings, short runs.",
            8.0,
            "measured: bench/results/compare.json",
            "torch.optim.Adagrad",
        ),
        Card(
            "adam",
            "Adam",
            "adam",
            "Adam",
            "RMSprop with momentum and bias correction; weight decay is part of the gradient.",
            "Reproducing older recipes; prefer AdamW when weight decay is not zero.",
            1.0,
            "the same update as AdamW's when weight decay is zero",
            "torch.optim.Adam; arXiv:1412.6980",
        ),
        Card(
            "adamw",
            "AdamW",
            "adamw",
            "AdamW",
            "Adam with weight decay applied to the parameter, not the gradient.",
            "The default for language models; the one to beat.",
            1.0,
            "the unit of this column",
            "torch.optim.AdamW; arXiv:1711.05101",
            lab={"weight_decay": 0.1},
        ),
        Card(
            "adafactor",
            "Adafactor",
            "adafactor",
            "Adafactor",
            "Keeps squared gradients as row and column means, and scales steps by the parameter's size.",
            "Out of memory on optimizer state; T5-style training.",
            15.0,
            "steps are multiplied by the parameter's rms (about 0.02 to 0.1 here)",
            "t5x/adafactor.py",
        ),
        Card(
            "lamb",
            "LAMB",
            "lamb",
            "LAMB",
            "AdamW's direction, rescaled so that each tensor moves by a fixed share of its own norm.",
            "Very large batches (thousands of sequences).",
            4.0,
            "steps are relative to each tensor's norm; lr ~ sqrt(batch), arXiv:1904.00962",
            "apex FusedLAMB, timm Lamb",
            lab={"weight_decay": 0.01, "always_adapt": True},
        ),
        Card(
            "lars",
            "LARS",
            "lars",
            "LARS",
            "Momentum on a gradient rescaled tensor by tensor to the parameter's norm.",
            "Large-batch vision training; rarely the choice for transformers.",
            1000.0,
            "steps are trust_coefficient (0.001) times lr times the tensor's norm",
            "arXiv:1708.03888, timm Lars",
        ),
        Card(
            "lion",
            "Lion",
            "lion",
            "Lion",
            "The sign of an average of gradient and momentum: every weight moves by lr.",
            "Half of AdamW's state at about its quality; wants a larger batch and its own lr and decay.",
            0.2,
            "1/3 to 1/10 of AdamW's: arXiv:2302.06675 section 5; 1/4 to 1/8 in Marin's sweeps",
            "google/automl lion",
            lab={"weight_decay": 0.5},
        ),
        Card(
            "signum",
            "Signum",
            "signum",
            "Signum",
            "The sign of the momentum.",
            "Communication-bound or memory-bound training; simpler cousin of Lion.",
            0.2,
            "as Lion's; EPFL sweep, arXiv:2509.01440",
            "arXiv:1802.04434",
            lab={"weight_decay": 0.5},
        ),
    )
}


def find_card(name: str) -> Card:
    """The card of this name, whatever its case; a misspelt name is an error that helps."""
    key = name.strip().lower()
    if key not in CARDS:
        raise unknown("optimizer", name, CARDS)
    return CARDS[key]
