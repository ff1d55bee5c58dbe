"""Steepest: the optimizer workbench for LLM training."""
