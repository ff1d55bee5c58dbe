"""Named seeds: one number a user gives becomes one independent seed for each thing that is random."""

from __future__ import annotations

import hashlib


def seed_for(root: int, stream: str) -> int:
    """A 63-bit seed for the stream of this name ("init", "data", "dropout", ...) under `root`.

    Streams are independent of each other and of the order in which they are asked for, so a new
    stream never changes the numbers of an old one.
    """
    digest = hashlib.sha256(f"{root}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
