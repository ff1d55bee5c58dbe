"""Running one training: the config, the loop, the files."""

from steepest.training.config import RunConfig, load_config, parse_config
from steepest.training.files import lock, write_atomic
from steepest.training.loop import Curve, Diverged, Progress, Validation, train
from steepest.training.run import Run, build_optimizer, prepare, run
from steepest.training.stage_config import ScheduleConfig, StageConfig

__all__ = [
    "Curve",
    "Diverged",
    "Progress",
    "Run",
    "RunConfig",
    "ScheduleConfig",
    "StageConfig",
    "Validation",
    "build_optimizer",
    "load_config",
    "lock",
    "parse_config",
    "prepare",
    "run",
    "train",
    "write_atomic",
]
