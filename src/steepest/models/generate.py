"""Sampling from a model: completions of a batch of prompts, a pure function of the weights and a seed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steepest.contract import SteepestError
from steepest.models.build import quiet
from steepest.models.facts import context_limit
from steepest.models.heads import Headed, is_adapted
from steepest.models.seeded import seeded


@dataclass(frozen=True)
class Sampled:
    """Prompts with their completions: ids int64 (B, T + N), N the longest completion's tokens.

    mask:    real tokens; prompts stay padded on the left, completions are padded on the right.
    targets: the completions' tokens, end token included. Both bool, of ids' shape.
    """

    ids: Tensor
    mask: Tensor
    targets: Tensor


def sample(
    model: nn.Module,
    prompts: Tensor,
    mask: Tensor,
    *,
    new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    end_id: int | None,
    pad_id: int,
    seed: int,
    among: tuple[int, int] | None = None,
) -> Sampled:
    """Complete every prompt by at most `new_tokens` tokens, or until `end_id`.

    prompts:     int64 (B, T), padded on the left; mask, bool (B, T): their real tokens.
    temperature: of the softmax; 0 takes the likeliest token.
    top_p:       sample from the likeliest tokens that together have this probability.
    seed:        of the draws. torch's generators, the model's mode and its settings are left as found.
    among:       (first, all): these are the rows from `first` on of so many, and are given the tokens they
                 would have if all were drawn here; a batch may so be cut over processes.

    A `transformers` model generates with its own cache, whatever its generation_config says: nothing but
    the arguments shapes the distribution. Any other module is called with whole rows of ids, again for
    every token. Raises SteepestError for prompts that are empty, padded on the right or too long.
    """
    mask = mask.bool()
    how = _How(new_tokens, temperature, top_p, end_id, pad_id, among or (0, len(prompts)))
    _check(model, prompts, mask, how)
    inner: Any = model.body if isinstance(model, Headed) else model
    inner = inner.get_base_model() if is_adapted(inner) else inner
    draw = _generate if callable(getattr(inner, "generate", None)) else _plain
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_evaluating(inner))
        stack.enter_context(seeded(seed, prompts.device))
        if getattr(inner, "_compiled_call_impl", None) is not None:  # every length would be compiled anew
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        new = draw(inner, prompts, mask, how)
    return _whole(prompts, mask, new, how)


@dataclass(frozen=True, slots=True)
class _How:
    new_tokens: int
    temperature: float
    top_p: float
    end_id: int | None
    pad_id: int
    among: tuple[int, int]


def _check(model: nn.Module, prompts: Tensor, mask: Tensor, how: _How) -> None:
    if prompts.dim() != 2 or mask.shape != prompts.shape or not prompts.numel():
        raise SteepestError(
            f"prompts and mask must be of one shape (rows, tokens), got {tuple(prompts.shape)} "
            f"and {tuple(mask.shape)}."
        )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise SteepestError(
            f"{type(model).__name__} has an encoder; only causal models complete prompts here."
        )
    if not bool(mask[:, -1].all()):
        raise SteepestError("a prompt is empty or padded on the right; pad prompts on the left.")
    if not (how.temperature >= 0 and 0 < how.top_p <= 1 and how.new_tokens >= 1):
        raise SteepestError(
            f"cannot sample with temperature {how.temperature}, top_p {how.top_p} and {how.new_tokens} new "
            "tokens; they must be from 0 up, in (0, 1], and from 1 up."
        )
    limit, asked = context_limit(model), prompts.shape[1] + how.new_tokens
    if limit is not None and asked > limit:
        raise SteepestError(
            f"prompts of {prompts.shape[1]} tokens and {how.new_tokens} new ones are {asked}, and the model "
            f"takes {limit}; shorten either."
        )


def _generate(model: Any, prompts: Tensor, mask: Tensor, how: _How) -> Tensor:
    transformers: Any = importlib.import_module("transformers")
    settings = transformers.GenerationConfig(
        max_new_tokens=how.new_tokens,
        eos_token_id=how.end_id,
        pad_token_id=how.pad_id,
        use_cache=True,
        do_sample=False,  # the largest score of `_scores` is the draw
    )
    # What `generate` is not told it takes from the model's own settings, a folder's penalties among them.
    own, model.generation_config = model.generation_config, transformers.GenerationConfig()
    try:
        with quiet():
            ids: Tensor = model.generate(
                input_ids=prompts,
                attention_mask=mask.long(),
                generation_config=settings,
                logits_processor=transformers.LogitsProcessorList(_scores(how)),
            )
    finally:
        model.generation_config = own
    return ids[:, prompts.shape[1] :]


def _plain(model: nn.Module, prompts: Tensor, mask: Tensor, how: _How) -> Tensor:
    """Token by token, without a cache. A causal module needs no mask for rows padded on the right."""
    steps = _scores(how)
    order = (~mask).long().argsort(dim=1, stable=True)
    rows = nn.functional.pad(prompts.gather(1, order), (0, how.new_tokens), value=how.pad_id)
    start = mask.sum(1)
    each = torch.arange(len(rows), device=rows.device)
    done = torch.zeros_like(each, dtype=torch.bool)
    for i in range(how.new_tokens):
        output = model(rows[:, : int(start.max()) + i])
        logits = getattr(output, "logits", output)[each, start + i - 1].float()
        for step in steps:
            logits = step(rows, logits)
        rows[each, start + i] = logits.argmax(-1).where(~done, how.pad_id)
        if how.end_id is not None:
            done |= rows[each, start + i] == how.end_id
        if bool(done.all()):
            break
    return rows.gather(1, start[:, None] + torch.arange(i + 1, device=rows.device))


def _scores(how: _How) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """From ids and logits (B, V) to scores (B, V), the largest of which is the token: in steps, by the same
    functions as transformers' own sampling."""
    if how.temperature == 0:
        return []
    process: Any = importlib.import_module("transformers.generation.logits_process")
    steps: list[Any] = [process.TemperatureLogitsWarper(float(how.temperature))]
    if how.top_p < 1:
        steps.append(process.TopPLogitsWarper(how.top_p))
    return [*steps, _Draw(*how.among)]


@dataclass(frozen=True, slots=True)
class _Draw:
    """One token a row, as torch.multinomial draws it: the largest of probabilities over exponential noise.
    The noise of all rows is made wherever some are drawn, so that each row has its own."""

    first: int
    rows: int

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        noise = probabilities.new_empty(self.rows, logits.shape[-1]).exponential_(1)
        return probabilities / noise[self.first :][: len(logits)]


def _whole(prompts: Tensor, mask: Tensor, new: Tensor, how: _How) -> Sampled:
    """Completions end with their first end token: what stands after it is padding, and columns of it go."""
    real = torch.ones_like(new, dtype=torch.bool)
    if how.end_id is not None:
        ended = (new == how.end_id).long()
        real = ended.cumsum(1) - ended == 0
    real = real[:, : int(real.sum(1).max())]
    new = new[:, : real.shape[1]].where(real, how.pad_id)
    return Sampled(
        ids=torch.cat([prompts, new], 1),
        mask=torch.cat([mask, real], 1),
        targets=torch.cat([torch.zeros_like(mask), real], 1),
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
