"""Who says whether a run went as it must. Each looks at what is on the disk and what processes have said."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steepest.training.checkpoint import Store
from steepest.training.checkpoint.manifest import Manifest
from steepest.training.faults.tampering import MARK
from steepest.training.faults.terms import STEPS, Failed, demand
from steepest.training.journal import JOURNAL, read_journal, read_metrics

if TYPE_CHECKING:
    from steepest.training.faults.laboratory import Seen

CUT = ("fsdp", "hybrid")
"""Placements in which no rank holds all parameters."""
TIMES = ("seconds", "tokens_per_second", "step_ms", "optimizer_ms", "eta_seconds", "memory_mb")
"""What two runs need not have in common."""
NEAR = 2e-3
"""How far numbers of runs on different numbers of ranks may be from each other, relative to their size: sums
are made in another order, and the differences grow with every step."""


# ---------------------------------------------------------------------- reading a run


def manifests(folder: Path) -> dict[int, Manifest]:
    """The intact generations by their step, the latest of each."""
    found = [
        one.manifest for one in Store(folder / "checkpoints").check() if one.manifest and not one.problem
    ]
    demand(bool(found), "the run has no generation that is intact")
    return {manifest.step: manifest for manifest in sorted(found, key=lambda manifest: manifest.number)}


def checksums(manifest: Manifest, groups: Collection[str] = ()) -> dict[tuple[str, str, int], str]:
    """(group, tensor, first slice) to checksum. groups: only these; none: all but the curves of times."""
    return {
        (fact.group, name, piece.first): piece.sha256
        for fact in manifest.files.values()
        if not groups or fact.group in groups
        for name, piece in fact.tensors.items()
        if name.rpartition("/")[2] not in TIMES and 0 not in piece.shape
    }


def untimed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: untimed(inner) for key, inner in value.items() if key not in TIMES}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def files(folder: Path) -> dict[str, str]:
    """What a run has on the disk, but for its diary, by path: digests."""
    kept = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in kept
        if path.name not in (".lock", JOURNAL) and path.parent.name != "cache"
    }


def _compare(ours: Mapping[Any, Any], theirs: Mapping[Any, Any], what: str) -> None:
    odd = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
    named = ", ".join("/".join(map(str, key)) if isinstance(key, tuple) else str(key) for key in odd[:3])
    demand(not odd, f"{what} is not that of the undisturbed run: {named}, {len(odd)} in all")


# ---------------------------------------------------------------------- the run without the fault


def same(seen: Seen) -> str:
    """Parameters, state, facts and metrics are those of the undisturbed run, to the bit."""
    ours, theirs = (manifests(folder)[STEPS] for folder in (seen.folder, seen.reference))
    _compare(checksums(ours), checksums(theirs), "a tensor")
    facts = [
        {k: v for k, v in untimed(m.facts).items() if k not in ("config", "digest")} for m in (ours, theirs)
    ]
    _compare(facts[0], facts[1], "a fact")
    lines = [untimed(read_metrics(folder)) for folder in (seen.folder, seen.reference)]
    steps = [line["step"] for line in lines[0]]
    demand(steps == list(range(1, STEPS + 1)), f"the metrics have steps {steps}")
    for mine, other in zip(*lines, strict=True):
        _compare(mine, other, f"a number of step {mine['step']}")
    return "it is the undisturbed run to the last bit"


def same_tensors(seen: Seen) -> str:
    """The same, of parameters and the optimizer's state alone, whatever their names."""
    counts = []
    for folder in (seen.folder, seen.reference):
        counts.append(Counter(checksums(manifests(folder)[STEPS], ("policy", "model", "optimizer")).values()))
    odd = (counts[0] - counts[1]).total()
    demand(not odd, f"{odd} tensors of parameters or state are not those of the undisturbed run")
    return "its parameters and state are those of the undisturbed run to the last bit"


def near(seen: Seen) -> str:
    """Losses and norms are those of the undisturbed run on other ranks, to rounding."""
    ours, theirs = (read_metrics(folder) for folder in (seen.folder, seen.reference))
    demand(len(ours) == len(theirs) == STEPS, f"{len(ours)} of {STEPS} steps are in the metrics")
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("loss", "validation", "grad_norm", "update_norm", "param_norm", "tokens", "lr"):
            a, b = mine.get(key), other.get(key)
            if a is None and b is None:
                continue
            gap = abs(a - b) / max(abs(b), 1e-9) if a is not None and b is not None else math.inf
            demand(gap <= NEAR, f"{key} of step {mine['step']} is {a}, and {b} on other ranks")
            worst = max(worst, gap)
    return f"losses and norms are those on other ranks within {worst:.0e}"


def refused(seen: Seen) -> str:
    """Whatever was on the disk before the last start is there as it was."""
    now = files(seen.folder)
    odd = sorted(path for path in {**seen.before, **now} if seen.before.get(path) != now.get(path))
    demand(not odd, f"a refused start has changed {', '.join(odd[:3])}")
    return f"refused: {seen.sentence}"


def alike(seen: Seen) -> str:
    """All ranks of a model that is whole on each hold the same parameters at the end."""
    digests = {end.digest for end in seen.ends if end.digest}
    if seen.placement in CUT:
        return ""
    demand(len(digests) == 1, "ranks hold different parameters at the end")
    return "all ranks hold the same"


# ---------------------------------------------------------------------- the diary


WORDS = ("reason", "why", "changed", "generation")
"""Where events say what they are about."""


class told:
    """The diary has an event of this kind that says something like this; `times`: so many of them.

    In the pattern {last} is the last rank, and {blamed} too, but where gradients are cut: a bad one of any
    rank is seen by who holds its part of the sum.
    """

    def __init__(self, kind: str, pattern: str = "", times: int | None = None) -> None:
        self.kind, self.pattern, self.times = kind, pattern, times

    def __call__(self, seen: Seen) -> str:
        return f"{self.kind}: {self.words(seen)}"

    def words(self, seen: Seen) -> str:
        """What the first of these events says."""
        events = [line for line in read_journal(seen.folder) if line["kind"] == self.kind]
        said = [str({key: x for key, x in line.items() if key not in ("kind", "time")}) for line in events]
        last = seen.ranks - 1
        blamed = r"\d+" if seen.placement in CUT else last
        pattern = self.pattern.format(last=last, blamed=blamed)
        hits = [line for line in said if re.search(pattern, line, re.IGNORECASE)]
        demand(bool(hits), f"the diary has no {self.kind!r} that says {pattern!r}, but {said[-3:]}")
        demand(
            self.times in (None, len(hits)), f"the diary has {len(hits)} of {self.kind!r}, not {self.times}"
        )
        event = events[said.index(hits[0])]
        return str(next((event[key] for key in WORDS if event.get(key)), ""))


class vetoed:
    """This step was not taken: no bit of parameters, state, rate or count has moved in it, the next one was
    taken, and the diary names what was wrong and where."""

    def __init__(self, step: int, pattern: str) -> None:
        self.step, self.pattern = step, pattern

    def __call__(self, seen: Seen) -> str:
        why = told("veto", self.pattern).words(seen)
        found = manifests(seen.folder)
        before, after = found[self.step - 1], found[self.step]
        _compare(checksums(after, STATE), checksums(before, STATE), f"across step {self.step} a tensor")
        facts = [one.facts["built"]["optimizer"] for one in (before, after)]
        demand(facts[0]["committed"] == facts[1]["committed"], "the veto was counted as a step")
        demand(facts[0]["parameters"] == facts[1]["parameters"], "a parameter's step count moved in the veto")
        rates = {line["step"]: line["lr"] for line in read_metrics(seen.folder)}
        demand(rates.get(self.step + 1) == rates[self.step], "the learning rate moved in the veto")
        lines = {line["step"]: line for line in read_metrics(seen.folder)}
        demand(lines[self.step + 1]["committed"], f"step {self.step + 1} was not taken either")
        return f"step {self.step} was not taken: {why}; no bit moved"


STATE = ("model", "optimizer")


def names_tensor(seen: Seen) -> str:
    """The veto names the tensor that was spoiled."""
    name = next(end.notes["spoiled"] for end in seen.ends if "spoiled" in end.notes)
    culprits = [str(line["culprits"]) for line in read_journal(seen.folder) if line["kind"] == "veto"]
    demand(any(name in said for said in culprits), f"{name} was spoiled, and {culprits} is named")
    return f"{name} is named"


def guard_untouched(seen: Seen) -> str:
    """What a guard remembers after two bad steps is what it remembered before."""
    found = manifests(seen.folder)
    before, after = (
        {k: v for k, v in found[step].facts["built"]["guard"].items() if k not in ("step", "told")}
        for step in (1, 3)
    )
    demand(before == after, "the guard's statistics have moved in steps that were not taken")
    line = read_metrics(seen.folder)[-1]
    demand(line["committed"], "the guard lets no step pass any more")
    return "the guard's statistics are as before, and the next step is taken"


def stands(seen: Seen) -> str:
    """The last generation holds what the first did."""
    found = manifests(seen.folder)
    _compare(checksums(found[max(found)], STATE), checksums(found[0], STATE), "a tensor")
    return f"ended: {seen.sentence}"


def finished(seen: Seen) -> str:
    """The run has come to its end, and its last generation is intact."""
    steps = [line["step"] for line in read_metrics(seen.folder)]
    demand(STEPS in manifests(seen.folder), "the run has not come to its end")
    demand(steps == list(range(1, STEPS + 1)), f"the metrics have steps {steps}")
    first = seen.sentences[0]
    return f"all ranks ended ({first}), and the run goes on" if first else "all ranks go on"


def all_said(seen: Seen) -> str:
    """The sentences in which starts have ended."""
    return "; ".join(f"ended: {words}" for words in seen.sentences if words)


def ended(seen: Seen) -> str:
    """In a sentence; what was saved is intact."""
    return f"ended: {seen.sentence}; generations {', '.join(map(str, manifests(seen.folder)))} are intact"


def unsaved(steps: Collection[int]) -> Any:
    """These steps have no generation, nothing half written is left, and the others are there."""

    def look(seen: Seen) -> str:
        found = set(manifests(seen.folder))
        demand(not found & set(steps), f"a save that failed is there: {sorted(found & set(steps))}")
        demand(found | set(steps) == set(range(STEPS + 1)), f"only {sorted(found)} were saved")
        left = Store(seen.folder / "checkpoints").leftovers()
        demand(not left, f"left behind: {', '.join(left)}")
        return f"no save of step {', '.join(map(str, sorted(steps)))}, all others" if steps else ""

    return look


# ---------------------------------------------------------------------- data


def _fed(ends: Collection[Any]) -> dict[int, Counter[str]]:
    """What all ranks together have read, by step."""
    found: dict[int, Counter[str]] = {}
    for end in ends:
        for step, own in end.fed.items():
            found.setdefault(step, Counter()).update(own)
    return found


def fed_alike(seen: Seen) -> str:
    """In every step the ranks together have read the rows of the undisturbed run."""
    ours: dict[int, Counter[str]] = {}
    for ends in seen.starts:
        if all(end.kind != "gone" for end in ends):
            ours |= _fed(ends)
    theirs = _fed(seen.undisturbed)
    demand(set(ours) == set(theirs), f"steps {sorted(ours)} were fed, and {sorted(theirs)}")
    odd = [step for step in ours if ours[step] != theirs[step]]
    demand(not odd, f"steps {odd} have read other rows")
    return f"the same rows in all of {len(ours)} steps"


def ledger(seen: Seen) -> str:
    """Every position of the data was trained on once."""
    (own,) = manifests(seen.folder)[STEPS].facts["ledger"].values()
    expected = {"trained": [[0, STEPS - 1]], "skipped": [], "vetoed": []}
    demand(own == expected, f"the ledger says {own}")
    return "the ledger has every batch once"


def passed_over(seen: Seen) -> str:
    """After a rollback the ledger says which batches were not read again, and the rest is there once."""
    events = [line for line in read_journal(seen.folder) if line["kind"] == "rollback"]
    demand(len(events) == 1, f"the run was rolled back {len(events)} times, not once")
    first, last = events[0]["skipped"]
    found = manifests(seen.folder)
    (own,) = found[max(found)].facts["ledger"].values()
    demand(own["skipped"] == [[first, last]], f"the ledger says {own}")
    return f"rolled back once; the ledger has batches {first} to {last} as passed over"


def no_difference(seen: Seen) -> str:
    """Rewards that are all equal have moved nothing, and are counted."""
    lines = read_metrics(seen.folder)
    odd = [
        line["step"] for line in lines if line["zero_variance_groups"] != 1.0 or line["update_norm"] != 0.0
    ]
    demand(len(lines) == STEPS and not odd, f"steps {odd} of {len(lines)} have moved, or counted no group")
    return "equal rewards have moved nothing, and are counted"


def lines_lost(seen: Seen) -> str:
    """Trackers that failed were told of and counted."""
    notes = seen.ends[0].notes
    demand(notes["dropped"]["hung"] > 0, "no line that found the queue full was counted")
    demand("down" in notes["off"], f"the tracker that is down was not switched off ({notes['off']!r})")
    return f"lines lost and counted: {notes['dropped']}"


# ---------------------------------------------------------------------- harm


def unharmed(seen: Seen) -> str:
    """Nothing was unpickled, and no link was followed."""
    demand(not (seen.folder / MARK).exists(), "a pickle of the checkpoint was executed")
    return "nothing was executed"


class _Tags(HTMLParser):
    """The tags of a page, and what in it could act."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.handlers += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]


def page_inert(seen: Seen) -> str:
    """The page of a run with hostile names has no tag that one with harmless names has not."""
    if seen.above.page is None:
        raise Failed("pages are lent by the command line; run the laboratory from there")
    pages = []
    for folder in (seen.folder, seen.reference):
        tags = _Tags()
        text = seen.above.page(folder).read_text(encoding="utf-8")
        tags.feed(text)
        pages.append(tags)
    demand(pages[0].tags["script"] == pages[1].tags["script"], "a name has become a script of the page")
    demand(pages[0].tags["img"] == pages[1].tags["img"], "a name has become an image of the page")
    demand(pages[0].handlers == pages[1].handlers, f"a name has become {pages[0].handlers}")
    return "names are text on the page; there is no server"


def every_save(seen: Seen) -> str:
    """Every generation holds what that of the undisturbed run holds."""
    ours, theirs = (manifests(folder) for folder in (seen.folder, seen.reference))
    for step, manifest in ours.items():
        _compare(checksums(manifest), checksums(theirs[step]), f"in the save of step {step} a tensor")
    return f"all {len(ours)} saves are those of the undisturbed run"
