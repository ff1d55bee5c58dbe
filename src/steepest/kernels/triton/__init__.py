"""The printer for GPUs: a schedule as a module of Triton."""

from steepest.kernels.triton.module import Launch, Printed, print_triton
from steepest.kernels.triton.source import available, load
from steepest.kernels.triton.text import FACTS, WORK

__all__ = ["FACTS", "WORK", "Launch", "Printed", "available", "load", "print_triton"]
