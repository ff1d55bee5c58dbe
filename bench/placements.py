"""What placements hold and send at 1 to 16,384 ranks, and the tables of docs/placements.md.

    python bench/placements.py    # plan anew: bench/results/placements.json and the page

Nothing is measured: a plan follows from declarations, and the tests hold it against torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from steepest.contract import Scope, SteepestError
from steepest.lab.plan import planned_model
from steepest.placements.plan import PLACEMENTS, Plan, plan
from steepest.rules import CARDS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "placements.md"
RESULT = ROOT / "bench" / "results" / "placements.json"
START, END = "<!-- table: python bench/placements.py -->", "<!-- end of table -->"

MODELS = ("gpt2-124m", "llama-1b")
RANKS = (1, 8, 64, 1024, 16384)
CASES: dict[str, tuple[str, str, Scope | None]] = {
    "AdamW": ("adamw", "fp32", None),
    "AdamW, `split24/int8`": ("adamw", "split24/int8", None),
    "a rule of matrices, for the blocks": ("momentum", "fp32", Scope.MATRIX),
}
"""Title to rule, storage, and another scope than the rule's."""


def measure() -> dict[str, Any]:
    """Every model, case, placement and number of ranks; the sums that rules of scope tensor add up."""
    rows = []
    for name in MODELS:
        for case, (rule, storage, scope) in CASES.items():
            model = planned_model(name, rule, storage, scope)
            if scope is Scope.MATRIX:
                model = replace(model, units=[[], *model.units[1:]])
            for ranks in RANKS:
                placements = ["one"] if ranks == 1 else [p for p in PLACEMENTS if p != "one"]
                rows += [{"model": name, "case": case, **row(plan(model, p, ranks))} for p in placements]
    cards = [card.name for card in CARDS.values() if card.rule.scope is Scope.TENSOR]
    sums = {name: {card: planned_model(name, card).sums for card in cards} for name in MODELS}
    return {"command": "python bench/placements.py", "torch": torch.__version__, "rows": rows, "sums": sums}


def row(found: Plan) -> dict[str, Any]:
    """The figures of a plan: bytes of the rank with the most and, of state, of the one with the least."""
    return {
        "placement": found.placement,
        "ranks": found.ranks,
        "group": found.group,
        "parameters": int(found.parameters.max()),
        "gradients": int(found.gradients.max()),
        "state": int(found.state.max()),
        "least_state": int(found.state.min()),
        "held": int(found.held.max()),
        "passing": found.passing,
        "collectives": found.collectives,
        "sent": found.sent,
        "work": round(found.balance, 3),
    }


def page(record: dict[str, Any], text: str) -> str:
    """The page `text` with the tables of this record between its two marks."""
    if text.count(START) != 1 or END not in text.partition(START)[2]:
        raise SteepestError(f"the page needs the marks {START!r} and {END!r}, in this order, once.")
    before, _, rest = text.partition(START)
    return f"{before}{START}\n\n" + "\n".join(tables(record)) + f"\n{END}{rest.partition(END)[2]}"


def tables(record: dict[str, Any]) -> Iterator[str]:
    """Everything for AdamW, model by model; state and work for all cases; sums over tensors."""
    rows = record["rows"]
    for model in MODELS:
        own = [r for r in rows if r["model"] == model and r["case"] == "AdamW"]
        yield f"### {model}, AdamW in float32\n"
        yield "| ranks | placement | parameters | gradients | state | passing | collectives | sent |"
        yield "|---:|---|---:|---:|---:|---:|---:|---:|"
        for r in own:
            kept = " | ".join(megabytes(r[k]) for k in ("parameters", "gradients", "state", "passing"))
            yield f"| {r['ranks']:,} | {named(r)} | {kept} | {r['collectives']} | {megabytes(r['sent'])} |"
        yield ""
    yield "### State and balance of work, by rule\n"
    yield "| model | | ranks | zero1: state | work | fsdp: state | work | hybrid: state | work |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for model in MODELS:
        for case in CASES:
            for ranks in RANKS[1:]:
                at = {
                    r["placement"]: r
                    for r in rows
                    if (r["model"], r["case"], r["ranks"]) == (model, case, ranks)
                }
                cells = (
                    f"{megabytes(at[p]['state'])} | {at[p]['work']:,.2f}" for p in ("zero1", "fsdp", "hybrid")
                )
                yield f"| {model} | {case} | {ranks:,} | {' | '.join(cells)} |"
    yield "\n### Sums over cut tensors\n"
    yield f"| rule | {' | '.join(MODELS)} |"
    yield f"|---|{'---|' * len(MODELS)}"
    for card in record["sums"][MODELS[0]]:
        cells = (" + ".join(f"{n:,}" for n in record["sums"][model][card]) for model in MODELS)
        yield f"| {CARDS[card].title} | {' | '.join(cells)} |"


def named(r: dict[str, Any]) -> str:
    return f"hybrid of {r['group']}" if r["placement"] == "hybrid" else r["placement"]


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}" if count < 1e8 else f"{count / 1e6:,.0f}"


def main() -> None:
    record = measure()
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(page(record, PAGE.read_text()))


if __name__ == "__main__":
    main()
