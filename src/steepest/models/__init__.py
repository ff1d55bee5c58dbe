"""Models by preset, folder or import path; heads on them, sampling from them, switches of them."""

from steepest.models.build import build_model, quiet
from steepest.models.compile import compile_model
from steepest.models.facts import context_limit, describe_model, trainable_parameters, vocabulary
from steepest.models.generate import Sampled, sample
from steepest.models.heads import RewardModel, Valued, ValuedModel, positions
from steepest.models.names import canonical
from steepest.models.presets import Preset, presets
from steepest.models.recompute import recompute

__all__ = [
    "Preset",
    "RewardModel",
    "Sampled",
    "Valued",
    "ValuedModel",
    "build_model",
    "canonical",
    "compile_model",
    "context_limit",
    "describe_model",
    "positions",
    "presets",
    "quiet",
    "recompute",
    "sample",
    "trainable_parameters",
    "vocabulary",
]
