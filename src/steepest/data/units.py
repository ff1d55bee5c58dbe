"""The unit in which losses under different tokenizers can be compared."""

from __future__ import annotations

import math

from steepest.contract import SteepestError


def bits_per_byte(nats_per_token: float, tokens: int, data_bytes: int) -> float:
    """A mean loss in nats per token as bits per byte of the text that those tokens spell.

    nats_per_token: mean cross-entropy; tokens, data_bytes: the length of one text in both units.
    """
    if tokens < 1 or data_bytes < 1:
        raise SteepestError(
            f"bits per byte needs a text; {tokens} tokens over {data_bytes} bytes say nothing. "
            "Pass the length of the same non-empty text in tokens and in bytes."
        )
    return nats_per_token * tokens / (data_bytes * math.log(2))
