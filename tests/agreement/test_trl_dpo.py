"""DPO and IPO, step by step beside TRL's.

Both sum a completion's log-probabilities (IPO: average them) and take the mean over pairs. The reference is
the model as it was before training, which TRL asks at every step and we ask once.
"""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

trl = pytest.importorskip("trl", reason="agreement with TRL is tested where TRL is installed")

from agreement import same_run  # noqa: E402
from steepest.objectives import get_objective, reference_logprobs  # noqa: E402


@pytest.mark.parametrize(("name", "loss_type"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_losses_of_20_steps(tmp_path, name, loss_type):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(same_run.config())
    examples = same_run.texts("prompt", "chosen", "rejected")
    options = {"beta": 0.2, "loss_type": [loss_type], "models": {"ref_model": copy.deepcopy(model)}}
    theirs = same_run.by_trl(trl.DPOTrainer, trl.DPOConfig, model, examples, tmp_path, **options)
    prepared = [
        {side: same_run.rows([(row["prompt"], row[side]) for row in step]) for side in ("chosen", "rejected")}
        for step in same_run.batches(examples)
    ]
    prepared = [batch | reference_logprobs(model, batch) for batch in prepared]
    same_run.same(same_run.by_us(get_objective(name, beta=0.2), model, prepared), theirs)
