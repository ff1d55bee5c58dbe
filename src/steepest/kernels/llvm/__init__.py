"""The printer for CPUs: a schedule as the text of LLVM's language."""

from steepest.kernels.llvm.module import print_module
from steepest.kernels.llvm.printer import ARGS, FACTS, QUEUE, WORK, Layout
from steepest.kernels.llvm.text import wide

__all__ = ["ARGS", "FACTS", "QUEUE", "WORK", "Layout", "print_module", "wide"]
