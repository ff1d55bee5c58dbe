"""Adapters: LoRA and DoRA, by peft."""

from steepest.adapters.config import AdapterConfig, parse_adapter
from steepest.adapters.lora import add_adapter, merge, save_adapter
from steepest.adapters.names import is_lora_a, is_lora_b, is_magnitude

__all__ = [
    "AdapterConfig",
    "add_adapter",
    "is_lora_a",
    "is_lora_b",
    "is_magnitude",
    "merge",
    "parse_adapter",
    "save_adapter",
]
