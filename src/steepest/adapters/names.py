"""An adapter's parameters by their names, as peft gives them. Each function fits a route's `match`."""

from __future__ import annotations

from torch import Tensor


def is_lora_a(name: str, p: Tensor | None = None) -> bool:
    """The matrix from the inputs to the rank; random at the start."""
    return not {"lora_A", "lora_embedding_A"}.isdisjoint(name.split("."))


def is_lora_b(name: str, p: Tensor | None = None) -> bool:
    """The matrix from the rank to the outputs; zero at the start, so that the adapter begins as nothing.

    LoRA+ gives it a higher learning rate than A, about 16 times (arXiv:2402.12354).
    """
    return not {"lora_B", "lora_embedding_B"}.isdisjoint(name.split("."))


def is_magnitude(name: str, p: Tensor | None = None) -> bool:
    """DoRA's norms, one a row."""
    return "lora_magnitude_vector" in name.split(".")
