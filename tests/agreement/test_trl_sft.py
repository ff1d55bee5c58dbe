"""Supervised fine-tuning, step by step beside TRL's.

Its loss is a sum over a step's target tokens divided by their number, as ours, and it too asks for
completions only. It ends every completion, so ours have the same end. What differs by default and is switched
off: bf16, gradient checkpointing, shuffling, clipping, and a rate that falls.
"""

from __future__ import annotations

import pytest
import torch
import transformers

trl = pytest.importorskip("trl", reason="agreement with TRL is tested where TRL is installed")

from agreement import same_run  # noqa: E402
from steepest.objectives import sft  # noqa: E402


def test_losses_of_20_steps(tmp_path):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(same_run.config())
    examples = same_run.texts("prompt", "completion")
    theirs = same_run.by_trl(trl.SFTTrainer, trl.SFTConfig, model, examples, tmp_path)
    prepared = [
        same_run.rows([(row["prompt"], row["completion"]) for row in step])
        for step in same_run.batches(examples)
    ]
    same_run.same(same_run.by_us(sft, model, prepared), theirs)
