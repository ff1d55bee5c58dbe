"""A model from its name: a preset, a folder of `transformers` weights, or a factory by import path."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steepest.contract import SteepestError, unknown
from steepest.models.facts import context_limit, vocabulary
from steepest.models.heads import Headed, RewardModel, ValuedModel
from steepest.models.presets import PRESETS, Preset
from steepest.models.seeded import seeded

KINDS = ("causal", "seq2seq", "scored", "valued")


def build_model(
    spec: str,
    *,
    vocab_size: int | None,
    context: int,
    seed: int,
    kind: str = "causal",
    pad_vocab: bool = False,
) -> nn.Module:
    """The model `spec` names, on the CPU, in training mode.

    spec:       a preset ("tiny", see `presets`): fresh weights; a folder with `config.json` and weights:
                those weights, as float32, read from disk only; or "package.module:factory": what the
                factory returns, called with `vocab_size` and `context` if it has such arguments.
    vocab_size: the tokenizer's vocabulary. A preset gets exactly this one (None: its own); other
                models must know at least as many tokens.
    context:    the longest sequence that will be asked of the model, in tokens.
    seed:       of the initial weights. They depend on nothing else, and torch's CPU generator is left
                as it was found.
    kind:       "causal"; "seq2seq": an encoder and a decoder; "scored": a causal model as a `RewardModel`;
                "valued": one as a `ValuedModel`. The same seed gives all causal kinds the same body.
    pad_vocab:  whether a `transformers` model that knows fewer tokens than that is given rows for the rest.

    Raises SteepestError, in one sentence, for whatever cannot be found, imported, loaded or fitted.
    """
    if kind not in KINDS:
        raise unknown("kind of model", kind, KINDS)
    with seeded(seed):
        model = _make(spec, vocab_size, context, kind)
        if pad_vocab and vocab_size is not None:
            _pad_vocabulary(model, vocab_size)
        model = _with_head(model, kind).train()
    limit, known = context_limit(model), vocabulary(model)
    if limit is not None and context > limit:
        raise SteepestError(f"model {spec!r} takes {limit} tokens; lower the context from {context}.")
    if known is not None and vocab_size is not None and vocab_size > known:
        raise SteepestError(
            f"the tokenizer has {vocab_size} tokens and model {spec!r} knows {known}; "
            "use the model's own tokenizer, a smaller vocabulary, or `pad_vocab: true` in the config."
        )
    return model


def _pad_vocabulary(model: nn.Module, size: int) -> None:
    """Let a model know `size` tokens. The rows it lacks become the mean of those it has, which changes least
    what it says of the others (Hewitt 2021, "Initializing new word embeddings for pretrained language
    models")."""
    known = vocabulary(model)
    if known is None or size <= known:
        return
    grown: Any = model
    if not hasattr(grown, "resize_token_embeddings"):
        raise SteepestError(
            f"{type(model).__name__} knows {known} tokens and cannot be given more (it has no "
            f"resize_token_embeddings); build it for {size}, and leave pad_vocab out."
        )
    with quiet(), torch.no_grad():
        grown.resize_token_embeddings(size, mean_resizing=False)
        for layer in (grown.get_input_embeddings(), grown.get_output_embeddings()):
            for rows in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
                if rows is not None:
                    rows[known:] = rows[:known].mean(0)


def _with_head(model: nn.Module, kind: str) -> nn.Module:
    head = {"scored": RewardModel, "valued": ValuedModel}.get(kind)
    return model if head is None or isinstance(model, Headed) else head(model)


def _make(spec: str, vocab_size: int | None, context: int, kind: str) -> nn.Module:
    if spec in PRESETS:
        _fits(f"preset {spec!r}", PRESETS[spec].kind, kind)
        return _from_preset(PRESETS[spec], vocab_size)
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return _from_folder(folder, kind)
    if folder.exists():
        raise SteepestError(f"{spec!r} is a file; give the folder that holds the model's config.json.")
    if ":" in spec:
        return _from_import_path(spec, vocab_size=vocab_size, context=context)
    if os.sep in spec or spec.startswith((".", "~")):
        raise SteepestError(
            f"there is no folder {spec!r}; models are read from disk only, so download it first "
            "(`hf download ID --local-dir FOLDER`) and give its folder."
        )
    raise unknown("model", spec, PRESETS)


def _fits(what: str, is_a: str, kind: str) -> None:
    needed = "seq2seq" if kind == "seq2seq" else "causal"
    if is_a != needed:
        fitting = ", ".join(name for name, preset in PRESETS.items() if preset.kind == needed)
        raise SteepestError(
            f"{what} is a {is_a} model and a {needed} one is asked for; use another model ({fitting}), "
            "or another objective."
        )


def _from_preset(preset: Preset, vocab_size: int | None) -> nn.Module:
    with quiet():
        module = importlib.import_module(preset.family.module)
        config = getattr(module, preset.family.config)(**preset.arguments(vocab_size))
        model: nn.Module = getattr(module, preset.family.model)(config)
    return model


def _from_folder(folder: Path, kind: str) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise SteepestError(f"folder '{folder}' holds no model: it has no config.json; give one that does.")
    transformers: Any = importlib.import_module("transformers")
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            _fits(f"the model in '{folder}'", "seq2seq" if config.is_encoder_decoder else "causal", kind)
            model, loading = getattr(transformers, _auto_class(config, kind)).from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except SteepestError:
        raise
    except Exception as error:
        raise SteepestError(f"cannot load the model in '{folder}': {_first_line(error)}") from error
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise SteepestError(f"the weights in '{folder}' are not a whole {kind} model: missing {missing}.")
    model.config.use_cache = False  # keys and values are kept for generation only
    whole: nn.Module = model
    return whole


def _auto_class(config: Any, kind: str) -> str:
    """The class of transformers that loads a folder of this configuration as this kind of model."""
    if config.is_encoder_decoder:
        audio = hasattr(config, "num_mel_bins")
        return "AutoModelForSpeechSeq2Seq" if audio else "AutoModelForSeq2SeqLM"
    wrote = (config.architectures or ("",))[0]
    classifier = kind == "scored" and wrote.endswith("ForSequenceClassification")
    return "AutoModelForSequenceClassification" if classifier else "AutoModelForCausalLM"


def _from_import_path(spec: str, **offered: int | None) -> nn.Module:
    name, _, attribute = spec.partition(":")
    if os.getcwd() not in sys.path:  # a console script, unlike `python`, does not look where it stands
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise SteepestError(f"cannot import {name!r} for model {spec!r}: {_first_line(error)}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"factory in module {name!r}", attribute, public)
    try:
        model = factory(**_accepted(factory, offered))
    except Exception as error:
        raise SteepestError(f"model factory {spec!r} failed: {_first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise SteepestError(
            f"model factory {spec!r} returned {type(model).__name__}; it must return a torch.nn.Module."
        )
    return model


def _accepted(factory: Any, offered: dict[str, int | None]) -> dict[str, int]:
    """Those of the offered arguments that have a value and that the factory takes."""
    arguments = inspect.signature(factory).parameters
    takes_all = any(a.kind is a.VAR_KEYWORD for a in arguments.values())
    return {k: v for k, v in offered.items() if v is not None and (takes_all or k in arguments)}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no message'}."


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' log and progress bars, and leave its settings as they were."""
    log: Any = importlib.import_module("transformers.utils.logging")
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
