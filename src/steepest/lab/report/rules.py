"""The 21 rules of a fair comparison and what a study does about each, as `docs/compare.md` has them."""

from __future__ import annotations

from typing import Literal, NamedTuple


class FairRule(NamedTuple):
    """One rule: whether it is enforced, only reported, or not covered, and how."""

    text: str
    kind: Literal["enforced", "reported", "not covered"]
    how: str


RULES: tuple[FairRule, ...] = (
    FairRule(
        "Same initial weights, data order and evaluation set for every optimizer",
        "enforced",
        "A seed fixes the weights and the order of the data; all are evaluated on the same windows, and "
        "differences are taken pair by pair.",
    ),
    FairRule(
        "Same token budget, and the whole schedule to its end",
        "enforced",
        "Every trial runs all its steps; nothing is ranked on a loss before the schedule has ended.",
    ),
    FairRule(
        "Each optimizer is tuned by itself",
        "enforced",
        "The learning rate is swept for each. Its other hyperparameters stay at the published values "
        "that every record states; they are not tuned.",
    ),
    FairRule(
        "Equal tuning budgets, failed trials counted",
        "reported",
        "Every sweep starts with as many rates; a grid that had to grow cost more. Tokens and seconds of "
        "tuning are listed for each optimizer, diverged trials with them.",
    ),
    FairRule(
        "Search ranges comparable in the size of the update",
        "enforced",
        "Each grid is centred on the optimizer's own prior, and all grids have the same factor between "
        "rates.",
    ),
    FairRule(
        "The best rate lies inside its grid",
        "enforced",
        "A best rate at the end of its grid extends the grid. One that still lies there is marked, and "
        "the verdict says so.",
    ),
    FairRule(
        "Tuning seeds are not evaluation seeds",
        "enforced",
        "The rate is chosen on one seed and judged on others; only those reach the verdict.",
    ),
    FairRule(
        "Seeds, spread and intervals are stated; a tie is a verdict",
        "reported",
        "Every mean has its 95% t-interval; one seed has none and gets no verdict.",
    ),
    FairRule(
        "Many comparisons are corrected for",
        "enforced",
        "Holm's correction over all contenders; better or worse needs p < 0.05 after it and an interval "
        "without zero.",
    ),
    FairRule(
        "No run is stopped early for its loss",
        "enforced",
        "The number of steps is fixed; only a loss that is not finite or explodes ends a trial.",
    ),
    FairRule(
        "Loss at equal tokens, loss at equal time, cost to a target and memory, together",
        "reported",
        "All four are on this page. Memory is the optimizer's state, not the peak of the process.",
    ),
    FairRule(
        "A speed-up is measured against a fitted baseline curve",
        "not covered",
        "The page gives the tokens at which a mean curve crosses the baseline's final loss. As schedules "
        "decay to their end, that is a lower bound on the saving, not a speed-up.",
    ),
    FairRule(
        "Same precision, kernels and clipping",
        "enforced",
        "One precision, one engine and one clipping norm for all trials, stated in every record.",
    ),
    FairRule(
        "It is recorded which rule each tensor got",
        "enforced",
        "Every record carries the digest of its routing table.",
    ),
    FairRule(
        "The meaning of weight decay is stated",
        "enforced",
        "Decoupled, L2 or inside the rule: it belongs to the optimizer, as its page states, and its "
        "value is in every record.",
    ),
    FairRule(
        "Batch size and tokens per parameter are stated, and nothing is claimed outside them",
        "reported",
        "The verdict ends with its scope. One batch size and one length are tried.",
    ),
    FairRule(
        "Times leave out warm-up and evaluation; the median step counts",
        "enforced",
        "A trial's time is its median step. Of an optimizer's trials the fastest median counts, beside "
        "one time of the model for all, because other programs only ever slow a trial down. Seconds are "
        "steps times that.",
    ),
    FairRule(
        "Diverged trials are kept and counted",
        "enforced",
        "They are records like any other, crosses in the sweeps, and a column of the table. An optimizer "
        "that diverges on an evaluation seed has failed.",
    ),
    FairRule(
        "The search space is declared before the run",
        "enforced",
        "The plan is written before the first trial, and saved with the result.",
    ),
    FairRule(
        "One self-contained record per trial, and results made from records alone",
        "enforced",
        "Config, seed, versions, data digest and curve, sealed with a checksum; a damaged one is set "
        "aside and redone.",
    ),
    FairRule(
        "Fine-tuning also reports what was forgotten",
        "not covered",
        "This comparison trains from the given weights on one data set and measures that data only.",
    ),
)
