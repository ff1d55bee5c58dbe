"""The step benchmark: every rule and storage against every peer, interleaved in one run."""

from steepest.lab.bench import facts
from steepest.lab.bench.cases import STORAGES, Case, Storage, parse_storage, plan_cases
from steepest.lab.bench.field import Workspace, ours
from steepest.lab.bench.peers import PEERS, Peer
from steepest.lab.bench.race import error_line
from steepest.lab.bench.run import Bench, Plan, updated
from steepest.lab.bench.shapes import meta_model
from steepest.lab.bench.tables import END, START, page, tables
from steepest.lab.bench.traffic import traffic

__all__ = [
    "END",
    "PEERS",
    "START",
    "STORAGES",
    "Bench",
    "Case",
    "Peer",
    "Plan",
    "Storage",
    "Workspace",
    "error_line",
    "facts",
    "meta_model",
    "ours",
    "page",
    "parse_storage",
    "plan_cases",
    "tables",
    "traffic",
    "updated",
]
