"""Reward modelling, step by step beside TRL's: the score at the last token, Bradley-Terry, with a margin.

Both take the mean over pairs. TRL's own term that centres scores is off by default, as it must be here.
"""

from __future__ import annotations

import pytest
import torch
import transformers

trl = pytest.importorskip("trl", reason="agreement with TRL is tested where TRL is installed")

from agreement import same_run  # noqa: E402
from steepest.models import RewardModel  # noqa: E402
from steepest.objectives import reward  # noqa: E402


@pytest.mark.parametrize("with_margin", [False, True], ids=["plain", "margin"])
def test_losses_of_20_steps(tmp_path, with_margin):
    torch.manual_seed(0)
    model = transformers.LlamaForSequenceClassification(same_run.config(num_labels=1))
    examples = same_run.texts("chosen", "rejected")
    if with_margin:
        examples = [{**row, "margin": (i % 5) / 4} for i, row in enumerate(examples)]
    theirs = same_run.by_trl(trl.RewardTrainer, trl.RewardConfig, model, examples, tmp_path)
    prepared = [
        {side: same_run.rows([("", row[side]) for row in step]) for side in ("chosen", "rejected")}
        | ({"margin": torch.tensor([row["margin"] for row in step])} if with_margin else {})
        for step in same_run.batches(examples)
    ]
    same_run.same(same_run.by_us(reward, RewardModel(model), prepared), theirs)
