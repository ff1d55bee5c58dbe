"""Models: presets, folders of `transformers` weights, and any module by import path."""

from steepest.models.build import build_model, quiet
from steepest.models.facts import context_limit, describe_model, vocabulary
from steepest.models.presets import Preset, presets

__all__ = ["Preset", "build_model", "context_limit", "describe_model", "presets", "quiet", "vocabulary"]
