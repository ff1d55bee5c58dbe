"""One model, one order of rows, one optimizer: trained by TRL's trainers, and by a plain loop of ours."""

from __future__ import annotations

import copy
import random
import string

import datasets
import tokenizers
import torch
import transformers

STEPS, BATCH, RATE = 20, 4, 3e-3
PAD, END = "<pad>", "<end>"
LETTERS = {token: i for i, token in enumerate([PAD, END, *string.ascii_lowercase])}


def tokenizer():
    """Every letter a token."""
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(LETTERS, unk_token=PAD))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, eos_token=END)


def config(**more):
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaConfig(
        **widths, vocab_size=len(LETTERS), max_position_embeddings=64, pad_token_id=0, **more
    )


def texts(*names):
    """Rows of random words of unequal length under these names."""
    draw = random.Random(0)
    return [
        {name: "".join(draw.choices(string.ascii_lowercase, k=draw.randint(1, 12))) for name in names}
        for _ in range(STEPS * BATCH)
    ]


def rows(parts):
    """(prompt, completion) pairs as one batch; the completion and its end are asked for."""
    ids = [[LETTERS[c] for c in prompt + completion] + [LETTERS[END]] for prompt, completion in parts]
    width = max(map(len, ids))
    index, lengths = torch.arange(width), torch.tensor([[len(row)] for row in ids])
    mask = index < lengths
    starts = torch.tensor([[len(prompt)] for prompt, _ in parts])
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    return {"ids": padded, "mask": mask, "targets": mask & (index >= starts)}


def batches(examples):
    """The examples in their own order, a step's at a time."""
    return [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]


def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)


def by_trl(trainer, configuration, model, examples, folder, models=None, **options):
    """The loss of each step of a TRL trainer on a copy of the model: no shuffling, no clipping, no schedule.

    models: what the trainer takes beside the model.  options: of its configuration.
    Losses are taken where they are computed: the log rounds them.
    """
    losses = []

    class Recording(trainer):
        def compute_loss(self, *given, **named):
            out = super().compute_loss(*given, **named)
            losses.append((out[0] if isinstance(out, tuple) else out).item())
            return out

    model = copy.deepcopy(model)
    arguments = configuration(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        **options,
    )
    Recording(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer(),
        optimizers=(optimizer(model), None),
        **(models or {}),
    ).train()
    return losses


def by_us(objective, model, prepared):
    """The loss of each step of a plain loop on a copy of the model."""
    model = copy.deepcopy(model).train()
    ours, losses = optimizer(model), []
    for batch in prepared:
        loss, _ = objective(model, batch)
        loss.backward()
        ours.step()
        ours.zero_grad()
        losses.append(loss.item())
    return losses


def same(ours, theirs):
    """Both ran all steps, moved, and agree to the rounding of float32 sums in another order."""
    assert len(ours) == len(theirs) == STEPS
    assert max(ours) - min(ours) > 1e-2
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-5)
