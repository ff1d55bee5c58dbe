"""From a study's records to its answer: who wins, by how much, how sure, at what cost.

Pure: the same plan and records give the same `Summary`. Nothing here formats or draws. Tuning trials
choose each optimizer's learning rate; only race trials, on seeds that tuning never saw, are judged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal

from steepest.lab.records import Record, Series
from steepest.lab.statistics import (
    Basin,
    Difference,
    Estimate,
    basin,
    holm,
    mean_interval,
    paired_difference,
    vertex,
)

Verdict = Literal["better", "worse", "tie", "baseline", "failed", "incomplete"]
Edge = Literal["low", "high"]

LEVEL = 0.05
"""A Holm-corrected p must be below this for a verdict other than "tie"."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """How the loss answers to the learning rate; `points` maps rate to loss, None where it diverged.

    `edge` names the end of the grid that the best rate lies on; None when a rate was tried on both
    sides of it (a diverged one counts: the wall is on that side).
    """

    points: Mapping[float, float | None]
    best: float | None
    edge: Edge | None
    basin: Basin | None
    vertex: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean validation loss over seeds (nats per token) at the steps that all of them evaluated.

    `low` and `high` are the 95% interval of the mean; the mean itself where one seed allows none.
    """

    tokens: tuple[float, ...]
    seconds: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What the records say about one optimizer. `losses` maps seed to loss, None where it diverged."""

    name: str
    title: str
    verdict: Verdict
    reason: str
    hyper: Mapping[str, Any]
    lr: float | None
    sweep: Sweep
    losses: Mapping[int, float | None]
    missing: tuple[int, ...]
    loss: Estimate | None
    bits_per_byte: float | None
    difference: Difference | None
    holm_p: float | None
    curve: Curve | None
    tokens_to_target: float | None
    seconds_to_target: float | None
    step_ms: float | None
    optimizer_ms: float | None
    state_bytes: int | None
    bytes_per_parameter: float | None
    trials: int
    diverged: int
    tuning_tokens: int
    tuning_seconds: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The answer of a study.

    results:   best mean loss first; then the incomplete ones, then those that failed.
    winner:    the one best optimizer, or None when others tie with it or nothing can be judged.
    leaders:   the lowest mean loss and every optimizer that cannot be told apart from it.
    lighter:   leaders that keep less state than the first of them.
    target:    the baseline's final mean loss on its curve, which `*_to_target` refer to.
    foreign:   records that do not belong to this plan, and were left out.
    """

    baseline: str
    results: tuple[Result, ...]
    winner: str | None
    leaders: tuple[str, ...]
    lighter: tuple[str, ...]
    target: float | None
    seeds: int
    complete: bool
    foreign: int

    def __getitem__(self, name: str) -> Result:
        return next(result for result in self.results if result.name == name)


def analyse(study: Mapping[str, Any], records: Iterable[Record]) -> Summary:
    """Judge every optimizer of the plan against its baseline, from records alone.

    A race that diverged makes its optimizer "failed": dropping that seed would flatter it. One that
    is missing makes it "incomplete". Neither stops the others from being judged.
    """
    everything = sorted(records, key=lambda record: record["id"])
    ours = [record for record in everything if _belongs(study, record)]
    names = list(dict.fromkeys([study["baseline"], *study["optimizers"]]))
    model_ms = fastest_model(ours)
    found = {
        name: _result(study, name, [r for r in ours if r["optimizer"] == name], model_ms) for name in names
    }
    base = found[study["baseline"]]
    target = base.curve.mean[-1] if base.curve and base.loss else None
    judged = _judge(found, base)
    ranked = sorted((_reach(result, target) for result in judged.values()), key=_rank)
    leaders = _leaders(ranked, base)
    first = next((r for r in ranked if leaders and r.name == leaders[0]), None)
    by_name = {result.name: result for result in ranked}
    return Summary(
        baseline=base.name,
        results=tuple(ranked),
        winner=leaders[0] if len(leaders) == 1 else None,
        leaders=leaders,
        lighter=tuple(name for name in leaders if first and _bytes(by_name[name]) < _bytes(first)),
        target=target,
        seeds=len(study["seeds"]),
        complete=all(not result.missing or result.verdict == "failed" for result in ranked),
        foreign=len(everything) - len(ours),
    )


def sweep(records: Iterable[Record]) -> Sweep:
    """The learning-rate sweep of one optimizer's tuning trials. The lower of two equal rates is best."""
    points: dict[float, float | None] = {}
    for record in records:
        lr, loss = float(record["hyper"]["lr"]), record["final"]["loss"]
        known = points.get(lr)
        points[lr] = loss if known is None else min(known, known if loss is None else loss)
    rates = sorted(points)
    finished = [(loss, lr) for lr, loss in points.items() if loss is not None]
    best = min(finished)[1] if finished else None
    ends: dict[float | None, Edge] = {rates[-1]: "high", rates[0]: "low"} if rates else {}
    ordered = {lr: points[lr] for lr in rates}
    return Sweep(ordered, best, ends.get(best), basin(points), vertex(points))


def reached(x: Sequence[float], loss: Sequence[float], target: float) -> float | None:
    """Where a curve first comes down to `target`, interpolated between its points; None if never."""
    if loss and loss[0] <= target:
        return x[0]
    for (x0, y0), (x1, y1) in pairwise(zip(x, loss, strict=True)):
        if y1 <= target:
            return x0 + (x1 - x0) * (y0 - target) / (y0 - y1)
    return None


def _belongs(study: Mapping[str, Any], record: Record) -> bool:
    """Whether a record is a trial of this plan: its optimizer, seed, data and model, and the config."""
    seeds = study["seeds"] if record["phase"] == "race" else [study["tuning_seed"]]
    return (
        record["optimizer"] in (study["baseline"], *study["optimizers"])
        and record["seed"] in seeds
        and record["data"].get("digest") == study["data"]["digest"]
        and record["model_digest"] == study["model_digest"]
        and all(record["config"].get(key) == value for key, value in study["config"].items())
    )


def fastest_model(records: Iterable[Record]) -> float | None:
    """Milliseconds a step that are not the optimizer's: forward, backward, data. The same for all.

    Other programs on the machine, and trials beside each other, only ever slow a step down, at times that
    differ from optimizer to optimizer; so of the trials' medians the fastest counts.
    """
    ends = [record["final"] for record in records if record["final"]["loss"] is not None]
    return min(((end["step_ms"] or 0.0) - (end["optimizer_ms"] or 0.0) for end in ends), default=None)


def _result(study: Mapping[str, Any], name: str, records: list[Record], model_ms: float | None) -> Result:
    """Everything about one optimizer that needs no other, but the time of the model they share."""
    tuned = [record for record in records if record["phase"] == "tune"]
    swept = sweep(tuned)
    lr, races = _races(swept, [record for record in records if record["phase"] == "race"])
    losses = {record["seed"]: record["final"]["loss"] for record in races}
    missing = tuple(seed for seed in study["seeds"] if seed not in losses)
    done = [record for record in races if record["final"]["loss"] is not None]
    ends = [loss for loss in losses.values() if loss is not None]
    whole = len(ends) == len(study["seeds"])
    verdict, reason = _standing(swept, losses, missing, bool(tuned))
    timed = [record for record in records if record["final"]["loss"] is not None]
    optimizer_ms = min((record["final"]["optimizer_ms"] or 0.0 for record in timed), default=None)
    step_ms = None if optimizer_ms is None or model_ms is None else model_ms + optimizer_ms
    shown = (races or tuned)[:1]
    state = shown[0]["state_bytes"] if shown else None
    return Result(
        name=name,
        title=shown[0]["title"] if shown else name,
        verdict=verdict,
        reason=reason,
        hyper=dict((races[0] if races else _at(tuned, lr))["hyper"]) if lr is not None else {},
        lr=lr,
        sweep=swept,
        losses=losses,
        missing=missing,
        loss=mean_interval(ends) if whole and ends else None,
        bits_per_byte=_mean([record["final"]["bits_per_byte"] for record in done]) if whole else None,
        difference=None,
        holm_p=None,
        curve=_curve([record["validation"] for record in done], step_ms) if done and step_ms else None,
        tokens_to_target=None,
        seconds_to_target=None,
        step_ms=step_ms,
        optimizer_ms=optimizer_ms,
        state_bytes=state,
        bytes_per_parameter=state / study["parameters"] if state is not None else None,
        trials=len(records),
        diverged=sum(record["status"] == "diverged" for record in records),
        tuning_tokens=sum(record["curve"]["tokens"][-1] for record in tuned if record["curve"]["tokens"]),
        tuning_seconds=sum(record["curve"]["seconds"][-1] for record in tuned if record["curve"]["seconds"]),
    )


def _races(swept: Sweep, races: list[Record]) -> tuple[float | None, list[Record]]:
    """The rate that was raced and its trials in order of seed.

    It is the sweep's best. Where the sweep gives none, or none of its races exist, it is the rate
    that most races ran at, so that what was measured is shown with the rate it was measured at.
    """
    if not races:
        return swept.best, []
    rates = Counter(float(record["hyper"]["lr"]) for record in races)
    lr = swept.best if swept.best in rates else rates.most_common(1)[0][0]
    return lr, sorted((r for r in races if r["hyper"]["lr"] == lr), key=lambda r: r["seed"])


def _standing(
    swept: Sweep, losses: Mapping[int, float | None], missing: Sequence[int], tuned: bool
) -> tuple[Verdict, str]:
    """The verdict before any comparison: "tie" stands for "nothing against it yet"."""
    lost = [seed for seed, loss in losses.items() if loss is None]
    if lost:
        return (
            "failed",
            f"diverged on {len(lost)} of {len(losses)} evaluation seeds at its best learning rate",
        )
    if tuned and swept.best is None and not losses:
        return "failed", "diverged at every learning rate that was tried"
    if missing:
        return "incomplete", f"{len(missing)} of {len(missing) + len(losses)} evaluation trials are missing"
    return "tie", ""


def _judge(found: Mapping[str, Result], base: Result) -> dict[str, Result]:
    """Add paired differences to the baseline, Holm's p over all contenders, and the verdicts."""
    contenders = [r for r in found.values() if r.name != base.name and r.verdict == "tie"]
    compared = {r.name: compare(r, base) for r in contenders} if base.loss else {}
    tested = {name: d.p for name, d in compared.items() if d.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    judged = dict(found)
    for result in contenders:
        difference, p = compared.get(result.name), corrected.get(result.name)
        verdict, reason = _verdict(difference, p, base)
        judged[result.name] = replace(result, difference=difference, holm_p=p, verdict=verdict, reason=reason)
    if base.verdict == "tie":
        judged[base.name] = replace(base, verdict="baseline")
    return judged


def compare(ours: Result, theirs: Result) -> Difference:
    """Paired difference in final loss, `ours - theirs` (nats per token), over the seeds of both."""
    pairs = [
        (a, b)
        for seed, a in ours.losses.items()
        if a is not None and (b := theirs.losses.get(seed)) is not None
    ]
    return paired_difference([a for a, _ in pairs], [b for _, b in pairs])


def _verdict(difference: Difference | None, p: float | None, base: Result) -> tuple[Verdict, str]:
    if difference is None:
        return "incomplete", f"{base.title} has no complete evaluation to compare with"
    if p is None:
        return "incomplete", "one evaluation seed gives no interval, so there is no verdict"
    if p < LEVEL and difference.excludes_zero:
        return ("better" if difference.mean < 0 else "worse"), ""
    return "tie", ""


def _leaders(ranked: Sequence[Result], base: Result) -> tuple[str, ...]:
    """The lowest mean, then all that do not differ from it significantly (Holm over these tests).

    Against the baseline the published verdict decides, so that page and leaders cannot disagree.
    """
    field = [r for r in ranked if r.verdict in ("better", "worse", "tie", "baseline")]
    if len(field) < 2:
        return ()
    first, rest = field[0], field[1:]
    differences = [compare(r, first) for r in rest]
    corrected = holm([1.0 if d.p is None else d.p for d in differences])
    tied = {
        r.name: not (p < LEVEL and d.excludes_zero)
        for r, d, p in zip(rest, differences, corrected, strict=True)
    }
    if base.name in tied:
        tied[base.name] = first.verdict == "tie"
    if first.name == base.name:
        tied = {r.name: r.verdict == "tie" for r in rest}
    return (first.name, *(name for name, is_tied in tied.items() if is_tied))


def _reach(result: Result, target: float | None) -> Result:
    """Add tokens and seconds to the baseline's final loss, on the mean curve."""
    if target is None or result.curve is None or result.loss is None:
        return result
    curve = result.curve
    return replace(
        result,
        tokens_to_target=reached(curve.tokens, curve.mean, target),
        seconds_to_target=reached(curve.seconds, curve.mean, target),
    )


def _curve(series: Sequence[Series], step_ms: float) -> Curve | None:
    """The mean over runs at the steps where all of them have a loss; None if there is no such step.

    Its seconds are steps times `step_ms`, free of what else the machine did during these runs.
    """
    rows = [{step: (tokens, loss) for step, tokens, loss in _rows(one) if loss is not None} for one in series]
    steps = sorted(set.intersection(*(set(row) for row in rows)))
    if not steps:
        return None
    means = [mean_interval([row[step][1] for row in rows]) for step in steps]
    return Curve(
        tokens=tuple(fmean(row[step][0] for row in rows) for step in steps),
        seconds=tuple(step * step_ms / 1e3 for step in steps),
        mean=tuple(m.mean for m in means),
        low=tuple(m.mean if m.low is None else m.low for m in means),
        high=tuple(m.mean if m.high is None else m.high for m in means),
    )


def _rows(series: Series) -> Iterable[tuple[int, int, float | None]]:
    return zip(series["step"], series["tokens"], series["loss"], strict=True)


def _rank(result: Result) -> tuple[int, float]:
    order = {"failed": 2, "incomplete": 1}.get(result.verdict, 0)
    return order, result.loss.mean if result.loss else math.inf


def _at(records: Sequence[Record], lr: float) -> Record:
    return next(record for record in records if record["hyper"]["lr"] == lr)


def _bytes(result: Result) -> float:
    return math.inf if result.state_bytes is None else result.state_bytes


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
