"""Checkpoints: generations that are whole or not there, verified before anything is taken from them."""

from steepest.training.checkpoint.convert import FORMATS, convert
from steepest.training.checkpoint.disk import Disk
from steepest.training.checkpoint.inspect import (
    Change,
    Difference,
    compare,
    find_store,
    flat_facts,
    group_sizes,
    load_at,
)
from steepest.training.checkpoint.manifest import Damaged, FileFact, Manifest, TensorFact
from steepest.training.checkpoint.stage import Payload
from steepest.training.checkpoint.store import Handle, Loaded, Store, Verified, check
from steepest.training.checkpoint.write import Saved

__all__ = [
    "FORMATS",
    "Change",
    "Damaged",
    "Difference",
    "Disk",
    "FileFact",
    "Handle",
    "Loaded",
    "Manifest",
    "Payload",
    "Saved",
    "Store",
    "TensorFact",
    "Verified",
    "check",
    "compare",
    "convert",
    "find_store",
    "flat_facts",
    "group_sizes",
    "load_at",
]
