"""Running one training: the config, the loop, the stages, the files."""

from steepest.training.config import RunConfig, load_config, parse_config
from steepest.training.curve import Curve, Diverged, Progress, Validation
from steepest.training.files import lock, write_atomic
from steepest.training.loop import Stage, train
from steepest.training.recipe import build_optimizer
from steepest.training.result import StageResult
from steepest.training.run import Run, prepare, run, stage_of
from steepest.training.saved_run import forget
from steepest.training.session import Session
from steepest.training.signals import Stop, Stopped, catching
from steepest.training.stage_config import ScheduleConfig, StageConfig

__all__ = [
    "Curve",
    "Diverged",
    "Progress",
    "Run",
    "RunConfig",
    "ScheduleConfig",
    "Session",
    "Stage",
    "StageConfig",
    "StageResult",
    "Stop",
    "Stopped",
    "Validation",
    "build_optimizer",
    "catching",
    "forget",
    "load_config",
    "lock",
    "parse_config",
    "prepare",
    "run",
    "stage_of",
    "train",
    "write_atomic",
]
