"""Starting the ranks of a run on this machine: torchrun's own launcher, with its restarts."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from steepest.contract import SteepestError
from steepest.training.signals import Stopped


def launch(arguments: Sequence[str], ranks: int, restarts: int = 0) -> None:
    """Run `python -m steepest` with these arguments as so many ranks, and wait for them.

    restarts: how often all ranks are started again after one has failed; each start goes on from the last
    generation. Raises `Stopped` where a signal has ended them, SteepestError where one failed for good; what
    it had to say it has said itself.
    """
    if ranks < 1 or restarts < 0:
        raise SteepestError(f"--nproc {ranks} --restarts {restarts}: give at least 1 and 0.")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The cores are divided, or every rank would compute on all of them.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
    )
    logging.disable(logging.ERROR)  # the launcher tells of a failed rank in forty lines
    try:
        elastic_launch(config, sys.executable)("-m", "steepest", *arguments)
    except SignalException as ended:
        raise Stopped(int(ended.sigval)) from None
    except ChildFailedError as failed:
        raise _ended(failed.failures, restarts) from None
    finally:
        logging.disable(logging.NOTSET)


def _ended(failures: dict[int, Any], restarts: int) -> BaseException:
    """What the first rank that failed means for all."""
    rank, first = min(failures.items(), key=lambda item: item[1].timestamp)
    code = first.exitcode
    asked = code - 128 if code > 128 else 0
    if asked in (signal.SIGTERM, signal.SIGINT):
        return Stopped(asked)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    again = f", after {restarts} restarts" if restarts else ""
    return SteepestError(
        f"rank {rank} {how}{again}; the same command goes on from the last generation, with --restarts by "
        "itself."
    )


def restarted() -> bool:
    """Whether the launcher has started this rank again after a failure."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
