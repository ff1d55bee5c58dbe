"""Faults for which processes are started by hand."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING

from steepest.training.faults import injections, oracles
from steepest.training.faults.terms import STEPS, Inject, demand
from steepest.training.journal import read_metrics

if TYPE_CHECKING:
    from steepest.training.faults.laboratory import Laboratory

PATIENCE = 60.0
"""Seconds for a run to take its first step."""
BUSY = 6.0
"""Seconds that the first run is kept busy while the second is started."""


def two_runs(lab: Laboratory) -> str:
    """A second run in a folder gets a sentence with the first one's process, which goes on undisturbed."""
    base = lab.fresh("two")
    slow = Inject(partial(injections.linger, step=2, seconds=BUSY))
    first = lab.order(base, lab.config, ranks=lab.ranks, inject=(slow,))
    processes = lab.crew.begin(first)
    until = time.monotonic() + PATIENCE
    while not read_metrics(first.folder) and time.monotonic() < until:
        time.sleep(0.05)
    holder = processes[0].pid
    second = lab.order(base, lab.config, ranks=lab.ranks, start=1)
    refused = lab.crew.run(second)
    ends = lab.crew.finish(first, processes)
    said = next((end.words for end in refused if "in use by" in end.words), "")
    demand(all(end.kind != "done" for end in refused), "a second run has begun in the folder of the first")
    told = " | ".join(end.words for end in refused)
    demand(bool(re.search(rf"in use by process {holder}\b", said)), f"the second run says {told!r}")
    demand(all(end.kind == "done" for end in ends), f"the first run did not finish: {ends[0].words}")
    reference, _ = lab.whole(lab.config, lab.ranks)
    ours, theirs = (oracles.manifests(folder)[STEPS] for folder in (first.folder, reference))
    demand(oracles.checksums(ours) == oracles.checksums(theirs), "the second run has changed the first")
    return said
