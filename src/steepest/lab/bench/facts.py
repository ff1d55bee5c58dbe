"""What the figures depend on: the machine, the versions, the day."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = (
    "steepest",
    "torch",
    "llvmlite",
    "triton",
    "optimi",
    "torch-optimi",
    "lion-pytorch",
    "pytorch-optimizer",
    "transformers",
    "torchao",
    "bitsandbytes",
    "schedulefree",
    "timm",
)


def machine(device: str) -> dict[str, Any]:
    """The processor, how much of it is used, and the device that is timed."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def versions() -> dict[str, str]:
    """Of python and of every library that is installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def today() -> str:
    """The date, in UTC."""
    return datetime.now(UTC).date().isoformat()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
