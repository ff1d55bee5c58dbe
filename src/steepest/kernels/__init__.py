"""One-pass kernels: a rule and its codecs traced, cut into passes, printed and compiled."""

from steepest.kernels.build import Kernel, build, prepass
from steepest.kernels.compile import available, cache_folder
from steepest.kernels.graph import Domain
from steepest.kernels.launch import run_on_all_cores, team, threads_for
from steepest.kernels.listing import listing
from steepest.kernels.schedule import Fold, Pass
from steepest.kernels.trace import Graph, Kind, Node, Untraceable, structure, trace

__all__ = [
    "Domain",
    "Fold",
    "Graph",
    "Kernel",
    "Kind",
    "Node",
    "Pass",
    "Untraceable",
    "available",
    "build",
    "cache_folder",
    "listing",
    "prepass",
    "run_on_all_cores",
    "structure",
    "team",
    "threads_for",
    "trace",
]
