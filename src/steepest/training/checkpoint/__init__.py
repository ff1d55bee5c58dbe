"""Checkpoints: generations that are whole or not there, verified before anything is taken from them."""

from steepest.training.checkpoint.assemble import Part
from steepest.training.checkpoint.contents import Contents, Foreign
from steepest.training.checkpoint.convert import FORMATS, convert, open_any
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
from steepest.training.checkpoint.manifest import Damaged, FileFact, Manifest, PieceFact, TensorFact
from steepest.training.checkpoint.ranks import Ranks
from steepest.training.checkpoint.stage import Payload, Piece
from steepest.training.checkpoint.store import Handle, Loaded, Store, Verified, check
from steepest.training.checkpoint.write import Saved

__all__ = [
    "FORMATS",
    "Change",
    "Contents",
    "Damaged",
    "Difference",
    "Disk",
    "FileFact",
    "Foreign",
    "Handle",
    "Loaded",
    "Manifest",
    "Part",
    "Payload",
    "Piece",
    "PieceFact",
    "Ranks",
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
    "open_any",
]
