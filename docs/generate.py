"""Writes what can be known from the code into the pages: `python docs/generate.py`.

The table of `optimizers/index.md`, the facts at the head of every optimizer's page, the options in `cli.md`
and the figures of `bench/results` in `performance.md` and `compare.md` stand between two marks and are
replaced; everything else is written by hand and left alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from steepest.contract import Scope
from steepest.rules import CARDS, Card

PAGES = Path(__file__).parent / "optimizers"
RESULTS = Path(__file__).parent.parent / "bench" / "results"
MARKED = re.compile(r"(<!-- facts: docs/generate\.py -->\n).*?(<!-- end of facts -->)", re.DOTALL)

# GPT-2 of 124M: embeddings, then twelve blocks of (norm, attention, norm, feed-forward), then a norm.
WIDTH = 768
BLOCK = [(WIDTH,)] * 4
BLOCK += [(WIDTH, 3 * WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,)]
BLOCK += [(WIDTH, 4 * WIDTH), (4 * WIDTH,), (4 * WIDTH, WIDTH), (WIDTH,)]
GPT2 = [(50257, WIDTH), (1024, WIDTH), *(BLOCK * 12), (WIDTH,), (WIDTH,)]

DECAY = {
    "decoupled": "at the parameter (decoupled): p (1 - lr wd)",
    "l2": "in the gradient (L2): g + wd p",
    "inside": "in the rule's own formula, see below",
}
SCOPE = {
    Scope.ELEMENT: "element: any cut of a tensor gives the same numbers",
    Scope.TENSOR: "tensor: needs a few numbers of the whole tensor (norms, means)",
}


def state_bytes(card: Card) -> int:
    """Bytes of float32 optimizer state for GPT-2 124M under a card's settings."""
    hyper = {**card.rule.defaults(), **card.settings}
    shapes = [slot for shape in GPT2 for slot in card.rule.slots_for(torch.Size(shape), hyper).values()]
    return 4 * sum(math.prod(shape) for shape in shapes)


def memory(card: Card) -> str:
    """Bytes a parameter, and what that is for GPT-2 124M."""
    total = state_bytes(card)
    each = total / sum(map(math.prod, GPT2))
    return f"{each:.2g} bytes a parameter, {total / 1e6:,.1f} MB for GPT-2 124M"


def facts(card: Card) -> str:
    """The table at the head of an optimizer's page."""
    hyper = {**card.rule.defaults(), **card.settings}
    slots = {name for shape in GPT2 for name in card.rule.slots_for(torch.Size(shape), hyper)}
    kept = ", ".join(f"`{name}`" for name in card.rule.slots if name in slots)
    rows: Mapping[str, str] = {
        "constructor": f"`steepest.{card.constructor}`",
        "state": f"{kept}: {memory(card)}" if kept else "none",
        "learning rate": f"**{card.relative_lr:g} x AdamW's** to start a search from: {card.relative_source}",
        "weight decay": DECAY[card.rule.decay],
        "scope": SCOPE[card.rule.scope],
        "defaults": ", ".join(f"`{key}={value!r}`" for key, value in hyper.items()),
        "defaults from": card.defaults_source,
        "in `steepest compare`": ", ".join(f"`{k}={v!r}`" for k, v in card.lab.items()) or "the defaults",
        "paper, reference": card.rule.paper,
    }
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def table() -> str:
    """One row a card, in the cards' order."""
    head = ("optimizer", "what it does", "state for GPT-2 124M", "first lr, by AdamW's", "when")
    rows = (
        (
            f"[{card.title}]({card.name}.md)",
            card.summary,
            f"{state_bytes(card) / 1e6:,.1f} MB",
            f"{card.relative_lr:g} x",
            card.when,
        )
        for card in CARDS.values()
    )
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def _leaves(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """(name, command) of every command, also inside groups: "bench step"."""
    for name, command in sorted(group.commands.items()):
        full = f"{above} {name}".strip()
        if hasattr(command, "commands"):
            yield from _leaves(command, full)
        else:
            yield full, command


def commands() -> str:
    """Every command with its arguments and options, as `--help` gives them."""
    from typer.main import get_command

    from steepest.cli.app import app

    parts = []
    for name, command in _leaves(get_command(app)):
        rows = []
        for parameter in command.params:
            if parameter.name != "help":
                named = parameter.metavar or parameter.name.upper()
                shown = ", ".join(parameter.opts) if parameter.param_type_name == "option" else named
                bare = parameter.default is None or parameter.default is False
                default = "" if bare else f"`{parameter.default}`"
                rows.append(f"| `{shown}` | {parameter.help} | {default} |")
        about = " ".join(command.help.split())
        table = ["", "| | | default |", "|---|---|---|", *rows] if rows else []
        parts.append("\n".join([f"## steepest {name}", "", about, *table, ""]))
    return "\n".join(parts)


def lab_speed() -> str:
    """Trials a minute, from `bench/results/trials.json`."""
    found = json.loads((RESULTS / "trials.json").read_text(encoding="utf-8"))
    lab = sorted(r["lab_seconds"] for r in found["rounds"])[len(found["rounds"]) // 2]
    trainer = sorted(r["trainer_seconds"] for r in found["rounds"])[len(found["rounds"]) // 2]
    rows = (("the lab's workers", lab), ("transformers' Trainer, one after another", trainer))
    what = f"{found['trials']} trials of {found['steps']} steps, {found['cores']} cores"
    head = f"| {what} | s | trials a minute |"
    return f"{head}\n|---|---:|---:|\n" + "".join(
        f"| {name} | {seconds:.1f} | {60 * found['trials'] / seconds:.0f} |\n" for name, seconds in rows
    )


def known_rates() -> str:
    """Best learning rates and losses, from `bench/results/known_facts.json`."""
    found = json.loads((RESULTS / "known_facts.json").read_text(encoding="utf-8"))
    sweeps = found["sweeps"]
    base = sweeps["adamw"]
    rows = [
        f"| {CARDS[name].title} | {sweep['best_lr']:.3g} | {sweep['best_lr'] / base['best_lr']:.3g} "
        f"| {sweep['vertex_lr'] / base['vertex_lr']:.3g} | {sweep['best_loss']:.3f} |"
        for name, sweep in sweeps.items()
    ]
    head = "| | best lr on the grid | by AdamW's | by AdamW's, vertices | loss there |"
    return "\n".join([head, "|---|---:|---:|---:|---:|", *rows, ""])


def fresh() -> dict[Path, str]:
    """Every page as it should be."""
    generated = {
        PAGES / "index.md": table(),
        PAGES.parent / "cli.md": commands(),
        PAGES.parent / "performance.md": lab_speed(),
        PAGES.parent / "compare.md": known_rates(),
        **{PAGES / f"{name}.md": facts(card) for name, card in CARDS.items()},
    }
    return {
        path: MARKED.sub(lambda m, text=text: m[1] + text + m[2], path.read_text(encoding="utf-8"))
        for path, text in generated.items()
    }


if __name__ == "__main__":
    for path, text in fresh().items():
        path.write_text(text, encoding="utf-8")
