"""The verifier that the laboratory's policy is rewarded by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def letters(completion: str, row: Mapping[str, Any]) -> float:
    """More for small letters, and for different ones."""
    return len({character for character in completion if character.islower()}) / 6
