"""The command line: reads arguments, prints; every decision is made below."""

from steepest.cli.app import main

__all__ = ["main"]
