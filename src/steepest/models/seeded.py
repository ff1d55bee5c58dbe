"""Random numbers from a seed, with torch's generators left as they were found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """This seed on the CPU's generator and on the device's own; no other generator is touched.

    Not torch.manual_seed, which would also re-seed every other accelerator and not give it back.
    """
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    kind: Any = torch.get_device_module(device)
    index = kind.current_device() if device.index is None else device.index
    with torch.random.fork_rng(devices=[index], device_type=device.type), kind.device(index):
        torch.default_generator.manual_seed(seed)
        kind.manual_seed(seed)
        yield
