"""Every question the doctor asks, in the order in which answers are told."""

from __future__ import annotations

from steepest.training.doctor import course, policy, rates, updates
from steepest.training.doctor.causes import Rule

RULES: tuple[Rule, ...] = (
    Rule("not-finite", "losses and gradients that are not finite", (), updates.not_finite),
    Rule("rate-too-high", "a loss that rises or swings at the peak rate", ("loss",), rates.too_high),
    Rule("warmup", "spikes in and after the warm-up", ("loss", "lr"), rates.short_warmup),
    Rule("spikes", "spikes of the loss, and which norm led them", ("loss",), rates.spikes),
    Rule("rate-too-low", "a loss that still falls in a straight line", ("loss", "lr"), rates.too_low),
    Rule(
        "flat",
        "a loss that does not fall",
        ("loss",),
        rates.flat,
        unless=("not-finite", "rate-too-high", "rate-too-low", "spikes", "warmup"),
    ),
    Rule("clipping", "the share of clipped steps", ("clipped",), updates.clipping),
    Rule("schedule", "where the schedule ends", ("lr",), updates.schedule),
    Rule("balance", "weight decay against the updates", ("layers",), updates.balance),
    Rule("lost-updates", "updates lost to rounding", ("layers",), updates.lost),
    Rule("dead-tensors", "tensors that do not move", ("layers",), updates.dead),
    Rule("restarts", "the loss after a restart", ("loss",), course.restarts),
    Rule("collapse", "a reward that falls from where it was", ("reward",), policy.collapse),
    Rule("reward-gamed", "reward up, validation down", ("reward", "validation"), policy.hacking),
    Rule("policy-step", "how far one update moves the policy", ("clip_fraction",), policy.too_far),
    Rule("policy-drift", "KL to the reference", ("kl",), policy.drift),
    Rule("entropy", "the policy's entropy", ("entropy",), policy.entropy),
    Rule("contrast", "groups of answers with one reward", ("zero_variance_groups",), policy.no_contrast),
    Rule(
        "reward-flat",
        "a reward that does not rise",
        ("reward",),
        policy.stuck,
        unless=("not-finite", "collapse", "contrast"),
    ),
    Rule("overfitting", "validation against training", ("loss", "validation"), course.overfitting),
    Rule("epochs", "the loss at the borders of epochs", ("loss", "epoch"), course.epochs),
    Rule("throughput", "the time of a step", ("step_ms",), course.throughput),
)
