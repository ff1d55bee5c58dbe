"""Where trials run: on this machine, on a Ray cluster, through Slurm."""

from steepest.lab.executors.base import Executor, Job, Lost, Task, attempt
from steepest.lab.executors.choice import EXECUTORS, Start, executor

__all__ = ["EXECUTORS", "Executor", "Job", "Lost", "Start", "Task", "attempt", "executor"]
