"""What each codec costs in loss: paired differences to float32, and the tables of docs/quality.md.

    python bench/quality.py                    # every study, then the page; goes on where it was stopped
    python bench/quality.py --study recipes    # one of them, without the page
    python bench/quality.py --page             # only the page

Each trial is a training of the embedded text. Trials that share a seed share initial weights and the order of
the data; each rule has one learning rate for all its codecs: that of bench/results/compare.json, or where a
model is not in it, the best of a sweep in float32 on a seed that is used for nothing else.

Codecs of parameters are measured as a bfloat16 run has them, but for the rounding inside the forward pass,
which is the model's and not the optimizer's: the optimizer holds bfloat16 parameters; before a forward pass
they are copied into a float32 model, and its gradients are rounded to bfloat16 before the step. What they are
compared with is the float32 run from the same weights before rounding.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steepest.contract import SteepestError
from steepest.lab import Pool
from steepest.lab.bench.cases import parse_storage
from steepest.lab.bench.shapes import shapes_of
from steepest.lab.pool import Job
from steepest.lab.statistics import Difference, paired_difference
from steepest.lab.trial import versions
from steepest.models import presets, quiet
from steepest.optimizer import Optimizer
from steepest.rules import find_card
from steepest.training import Diverged, RunConfig, build_optimizer, prepare, stage_of, train, write_atomic

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "quality.md"
RESULT = ROOT / "bench" / "results" / "quality.json"
START, END = "<!-- table: python bench/quality.py -->", "<!-- end of table -->"

KNOWN = json.loads((ROOT / "bench" / "results" / "compare.json").read_text())
WINDOWS = 256
"""Sequences that the final validation reads: four times a comparison's, for differences of a milli-nat."""

Losses = dict[str, float | None]
"""A trial's name to its final validation loss in nats per token; None where it diverged."""


def llama(width: int, layers: int, vocab_size: int) -> nn.Module:
    """The embedded preset at another width and depth; heads stay 16 wide."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": width, "intermediate_size": 8 * width // 3, "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 16, "num_key_value_heads": width // 16}
    changed = {**sizes, **heads, "initializer_range": round(0.02 * (768 / width) ** 0.5, 3)}
    with quiet():
        return LlamaForCausalLM(LlamaConfig(**{**presets()["tiny"].arguments(vocab_size), **changed}))


w32, w64, w128, w192 = (partial(llama, width, 2) for width in (32, 64, 128, 192))
w128x4 = partial(llama, 128, 4)

SLOTS = ("bf16", "fp16", "fp8", "int8", "int4", "v=factored", "m=int8+v=factored")
PARAMS = ("nearest/fp32", "bf16/fp32", "split24/fp32", "kahan/fp32", "split32/fp32")
BEST = ("split24/int4", "bf16/int8")
FACTORED = ("split24/m=int8+v=factored", "split24/m=int4+v=factored", "bf16/m=int8+v=factored")
FURTHER = ("bf16/fp8", "split24/m=int8+v=factored", "split24/int8")
RECIPES = (*BEST, *FACTORED, "nearest/int8", "bf16/fp8", "split24/int8", "split24/fp8", "split32/int8")
CONTROL = "other engine"
"""float32 by an engine that rounds in another order: what a difference of the last bit grows to."""


@dataclass(frozen=True)
class Study:
    """Trials of every model x rule x storage x seed. `rates`: to be tried, instead of the known best."""

    title: str
    models: tuple[str, ...]
    steps: int
    seeds: tuple[int, ...]
    storages: tuple[str, ...] = ()
    rules: tuple[str, ...] = ("adamw",)
    rates: tuple[float, ...] = ()


SEEDS = tuple(KNOWN["seeds"])
SIZES = tuple(f"quality:{name}" for name in ("w32", "w64", "w128", "w192"))
LONG = "quality:w128x4"
STEPS = KNOWN["config"]["steps"]
RULES = ("adamw", "lion", "lamb", "adafactor", "rmsprop", "adagrad", "momentum")
STUDIES = {
    "rules": Study(
        "Every codec under every rule", ("tiny",), STEPS, SEEDS, (*SLOTS, *PARAMS, CONTROL), RULES
    ),
    "recipes": Study("AdamW, parameters and slots", ("tiny",), STEPS, (*SEEDS, 106, 107), RECIPES),
    "rates": Study(
        "Learning rates", (*SIZES, LONG), 300, (KNOWN["tuning_seed"],), rates=(1e-3, 2e-3, 4e-3, 8e-3)
    ),
    "sizes": Study("AdamW by size", SIZES, 300, SEEDS, BEST),
    "long": Study("AdamW, a longer run", (LONG,), 1500, SEEDS, (*BEST, *FURTHER)),
}


@dataclass(frozen=True)
class Trial:
    """One training, by what its loss depends on."""

    model: str
    steps: int
    rule: str
    storage: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.model} {self.steps} steps {self.rule} {self.storage} lr {self.lr:g} seed {self.seed}"

    def config(self, options: Mapping[str, Any]) -> RunConfig:
        # Its own noise for every seed, so that the interval over seeds covers the luck of rounding too.
        optimizer = {
            "name": self.rule,
            "lr": self.lr,
            "seed": self.seed,
            **find_card(self.rule).lab,
            **options,
        }
        own = {"model": self.model, "steps": self.steps, "seed": self.seed, "optimizer": optimizer}
        return RunConfig(**{**KNOWN["config"], **own, "evals": 1, "validation_windows": WINDOWS})


def way(storage: str) -> tuple[dict[str, Any], bool]:
    """What an optimizer is given for a storage, and whether its parameters are bfloat16. "nearest/..." is
    bfloat16 parameters without a codec: each step rounds them to nearest."""
    if storage == CONTROL:
        return {"engine": "foreach"}, False
    stored = parse_storage(storage.removeprefix("nearest/"))
    return stored.options(), storage.startswith("nearest/") or stored.param is not None


def final_loss(trial: Trial) -> float | None:
    """Train, and return the loss on the validation text, in nats per token; None if the run diverged."""
    options, narrow = way(trial.storage)
    made = prepare(trial.config({} if narrow else options))
    if narrow:
        made.optimizer = on_bfloat16(made.model, trial.config(options))
    try:
        trained = train(stage_of(made))
    except Diverged:
        return None
    return trained.validation.loss[-1]


def on_bfloat16(model: nn.Module, config: RunConfig) -> Optimizer:
    """The config's optimizer over bfloat16 twins of the model's parameters. Its steps take the model's
    gradients, rounded, and leave the twins' values in the model."""
    twin = copy.deepcopy(model).to(torch.bfloat16)
    optimizer = build_optimizer(config, twin)
    pairs = list(zip(model.parameters(), twin.parameters(), strict=True))

    def take(*_: Any) -> None:
        for wide, own in pairs:
            own.grad, wide.grad = None if wide.grad is None else wide.grad.to(torch.bfloat16), None

    def give(*_: Any) -> None:
        for wide, own in pairs:
            wide.data.copy_(own.data)

    optimizer.register_step_pre_hook(take)
    optimizer.register_step_post_hook(give)
    give()
    return optimizer


def says_something(rule: str, storage: str) -> bool:
    """Whether a rule has, in the embedded model, every slot that a storage names."""
    card, state = find_card(rule), way(storage)[0].get("state")
    slots = card.rule.slots_for(torch.Size([64, 64]), {**card.rule.defaults(), **card.settings})
    return not isinstance(state, Mapping) or set(state) <= set(slots)


@cache
def bytes_per_parameter(rule: str, storage: str) -> float:
    """Parameter, remainder and slots at GPT-2 124M's shapes; nothing is allocated."""
    options, narrow = way(storage)
    dtype = torch.bfloat16 if narrow else torch.float32
    params = [nn.Parameter(torch.empty(s, dtype=dtype, device="meta")) for s in shapes_of("gpt2-124m")]
    optimizer = Optimizer(params, find_card(rule).rule, lr=1e-3, **find_card(rule).settings, **options)
    return (optimizer.state_bytes() + sum(p.nbytes for p in params)) / sum(p.numel() for p in params)


def size_of(trial: Trial) -> dict[str, float]:
    """A model's parameters, and the share of them whose slots a codec does not leave in float32."""
    rows = prepare(trial.config({"state": "int8"})).optimizer.routing()
    sizes = [(math.prod(shape), "int8" in codecs) for _, shape, _, _, codecs in rows]
    total = sum(n for n, _ in sizes)
    return {"parameters": total, "compressed": sum(n for n, small in sizes if small) / total}


def trials(study: Study, losses: Losses) -> Iterator[Trial]:
    """Those of a study, a whole seed after another, float32 first."""
    storages = ("fp32", *study.storages)
    for seed, storage, model, rule in product(study.seeds, storages, study.models, study.rules):
        if says_something(rule, storage):
            for lr in study.rates or (rate(model, rule, losses),):
                yield Trial(model, study.steps, rule, storage, lr, seed)


def rate(model: str, rule: str, losses: Losses) -> float:
    """The learning rate of all of a rule's trials on a model."""
    if model == KNOWN["model"]:
        return float(KNOWN["results"][rule]["lr"])
    tried = {
        t.lr: loss
        for t in trials(STUDIES["rates"], losses)
        if t.model == model and (loss := losses.get(t.name)) is not None
    }
    if not tried:
        raise SteepestError(f"{model} has no learning rate yet; run --study rates first.")
    return min(tried, key=tried.__getitem__)


def measure(names: Sequence[str], out: Path, workers: int) -> dict[str, Any]:
    """Run what is missing of these studies; the record is written after every trial."""
    record = {"versions": versions(), "config": KNOWN["config"], "models": {}, "losses": {}}
    if out.exists():
        record = json.loads(out.read_text())
    if record["versions"] != versions():
        raise SteepestError(f"{out} holds losses of other versions ({record['versions']}); move it away.")
    losses = record["losses"]
    for name in names:
        todo = [t for t in trials(STUDIES[name], losses) if t.name not in losses]
        for trial in {t.model: t for t in todo}.values():
            record["models"][trial.model] = size_of(trial)
            print(f"{trial.model}: {record['models'][trial.model]}", flush=True)
        for key, loss in results([(t.name, {"trial": t}) for t in todo], workers):
            losses[key] = loss
            write_atomic(out, json.dumps(record, indent=1) + "\n")
            left = sum(t.name not in losses for t in todo)
            print(f"{name}, {left} left: {key}: {loss}", flush=True)
    return record


def results(jobs: list[Job], workers: int) -> Iterator[tuple[str, float | None]]:
    """(name, final loss) of every job as it ends."""
    if jobs:
        queue = [jobs]
        with Pool(final_loss, workers) as pool:
            yield from pool.run(lambda: queue.pop() if queue else [])


def page(record: Mapping[str, Any], text: str) -> str:
    """The page `text` with the tables of this record between its two marks."""
    if text.count(START) != 1 or END not in text.partition(START)[2]:
        raise SteepestError(f"the page needs the marks {START!r} and {END!r}, in this order, once.")
    before, _, rest = text.partition(START)
    sections = (by_rule(record), by_recipe(record), by_model(record, "sizes"), by_model(record, "long"))
    return "\n\n".join([before + START, *sections, END + rest.partition(END)[2]])


def gap(study: Study, model: str, rule: str, storage: str, losses: Losses) -> Difference | None:
    """A storage against float32, in nats, over the seeds that have both; None if there are none. A run that
    diverged counts as infinitely worse, which has no interval."""
    ours, theirs = (runs(study, model, rule, name, losses) for name in (storage, "fp32"))
    both = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    if len(pairs) < len(both):
        return Difference(math.inf, None, None, len(both), None)
    return paired_difference([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None


def shown(found: Difference | None) -> str:
    """Milli-nats with half their interval, bold where the interval says that the storage is worse."""
    if found is None or found.half_width is None:
        return "" if found is None else f"**{1e3 * found.mean:+.1f}**"
    text = f"{1e3 * found.mean:+.1f} ± {1e3 * found.half_width:.1f}"
    return f"**{text}**" if found.excludes_zero and found.mean > 0 else text


def runs(study: Study, model: str, rule: str, storage: str, losses: Losses) -> dict[int, float | None]:
    """Seed to loss, of the trials that are there."""
    lr = rate(model, rule, losses)
    names = {seed: Trial(model, study.steps, rule, storage, lr, seed).name for seed in study.seeds}
    return {seed: losses[name] for seed, name in names.items() if name in losses}


def noise(study: Study, model: str, rule: str, losses: Losses) -> float:
    """The standard deviation of the float32 loss over seeds, in nats."""
    return statistics.stdev(loss for loss in runs(study, model, rule, "fp32", losses).values() if loss)


def by_rule(record: Mapping[str, Any]) -> str:
    """A row a codec, a column a rule."""
    study, losses = STUDIES["rules"], record["losses"]
    model = study.models[0]
    rows = [
        (
            f"`{storage}`" if storage != CONTROL else f"none ({CONTROL})",
            f"{bytes_per_parameter('adamw', storage):.2f}",
            *(shown(gap(study, model, rule, storage, losses)) for rule in study.rules),
        )
        for storage in study.storages
    ]
    spread = [f"{1e3 * noise(study, model, rule, losses):.1f}" for rule in study.rules]
    head = ("codec", "bytes a parameter (AdamW)", *(find_card(rule).title for rule in study.rules))
    return table(about(study, record), head, [*rows, ("noise of fp32", "12.00", *spread)])


def by_recipe(record: Mapping[str, Any]) -> str:
    """A row a way to store AdamW, lightest first."""
    study, losses = STUDIES["recipes"], record["losses"]
    model, rule = study.models[0], study.rules[0]
    spread = noise(study, model, rule, losses)
    rows = []
    for storage in sorted(study.storages, key=partial(bytes_per_parameter, rule)):
        found = gap(study, model, rule, storage, losses)
        inside = "yes" if found and found.high is not None and found.high < spread else "no"
        rows.append((f"`{storage}`", f"{bytes_per_parameter(rule, storage):.2f}", shown(found), inside))
    head = ("storage", "bytes a parameter", "difference", f"below the noise ({1e3 * spread:.1f})")
    return table(about(study, record), head, rows)


def by_model(record: Mapping[str, Any], name: str) -> str:
    """A row a model, a column a way to store AdamW."""
    study, losses = STUDIES[name], record["losses"]
    rule = study.rules[0]
    rows = [
        (
            model.partition(":")[2].replace("w", "width ", 1).replace("x", ", layers "),
            f"{record['models'][model]['parameters'] / 1e6:.2f}",
            f"{record['models'][model]['compressed']:.0%}",
            f"{rate(model, rule, losses):g}",
            f"{1e3 * noise(study, model, rule, losses):.1f}",
            *(shown(gap(study, model, rule, storage, losses)) for storage in study.storages),
        )
        for model in study.models
    ]
    head = ("model", "parameters, M", "slots compressed", "lr", "noise of fp32")
    return table(about(study, record), (*head, *(f"`{storage}`" for storage in study.storages)), rows)


def about(study: Study, record: Mapping[str, Any]) -> str:
    """The title of a study's table, and what was run."""
    cells = product(study.models, study.rules, study.storages)
    counts = {found.n for key in cells if (found := gap(study, *key, record["losses"]))}
    seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
    batch, context = (record["config"][key] for key in ("batch", "context"))
    return f"### {study.title}\n\n{study.steps} steps of {batch} × {context} tokens, {seeds} paired seeds.\n"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (head, ["---", *["---:"] * (len(head) - 1)], *rows)
    return title + "\n" + "\n".join(f"| {' | '.join(row)} |" for row in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--study", choices=list(STUDIES), action="append")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--page", action="store_true")
    arguments = parser.parse_args()
    if not arguments.page:
        measure(arguments.study or list(STUDIES), arguments.out, arguments.workers)
    if arguments.page or not arguments.study:
        PAGE.write_text(page(json.loads(arguments.out.read_text()), PAGE.read_text()))


if __name__ == "__main__":
    main()
