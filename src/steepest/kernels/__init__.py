"""One-pass kernels: a rule and its codecs traced, cut into passes, printed and compiled."""

from steepest.kernels.trace import Graph, Kind, Node, Untraceable, structure, trace

__all__ = ["Graph", "Kind", "Node", "Untraceable", "structure", "trace"]
