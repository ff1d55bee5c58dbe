"""Audio through the loop that trains text: the objective knows what a batch is, the loop does not."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import steepest
from steepest.data import seed_for
from steepest.models import build_model
from steepest.objectives import get_objective
from steepest.training import Stage, Validation, train
from steepest.training.feeds import Stream
from steepest.training.learner import Learner
from steepest.training.precision import Precision

CPU = torch.device("cpu")
MELS, FRAMES, NOTES = 16, 64, 4
"""A clip holds four notes, each a quarter of the frames long; a note sounds in one mel band, its token."""


def clips(position: int, rows: int = 8) -> dict[str, Tensor]:
    """Noisy notes as log-mel features (B, mels, frames), and what they are as tokens, after the start."""
    generator = torch.Generator().manual_seed(seed_for(0, f"clips/{position}"))
    notes = torch.randint(1, MELS, (rows, NOTES), generator=generator)
    bands = torch.nn.functional.one_hot(notes, MELS).float().repeat_interleave(FRAMES // NOTES, 1)
    features = bands.transpose(1, 2) * 2 + 0.2 * torch.randn(rows, MELS, FRAMES, generator=generator)
    ids = torch.cat([torch.zeros(rows, 1, dtype=torch.int64), notes], 1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    targets = mask.clone()
    targets[:, 0] = False
    return {"features": features, "ids": ids, "mask": mask, "targets": targets}


def stage(steps: int, accumulate: int = 1) -> Stage:
    objective: Any = get_objective("seq2seq")
    model = build_model("tiny-whisper", vocab_size=MELS, context=8, seed=0, kind="seq2seq")
    optimizer = steepest.AdamW(model.named_parameters(), lr=1e-3)
    learner = Learner(model, optimizer, objective, seed=0, precision=Precision("fp32", CPU))
    feed = Stream(clips, accumulate, CPU)
    held_out = Validation([clips(-1, rows=32)], objective)
    return Stage("audio", learner, feed, held_out, steps=steps, evals=2)


def test_a_whisper_learns_to_write_down_what_it_hears() -> None:
    made = stage(150)
    done = train(made)
    first, *_, last = done.validation.loss
    blind = math.log(MELS - 1)  # the best that can be done without listening: every note is as likely
    assert first > blind > 2 * last
    assert len(done.curve.loss) == 150 and made.place.tokens == 150 * 8 * (NOTES + 1)
    deaf = clips(-1, rows=32)
    deaf["features"] = deaf["features"].flip(0)
    assert Validation([deaf], made.learner.objective)(made.model) > blind, "it listens"


def test_the_loop_is_the_same_for_audio_accumulated_and_continued() -> None:
    """Two micro-batches a step, and a stage that stops in the middle and goes on, with audio as with text."""
    whole = stage(4, accumulate=2)
    train(whole)
    parts = stage(2, accumulate=2)
    train(parts)
    parts.steps = 4
    train(parts)
    for (name, a), b in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b), name
