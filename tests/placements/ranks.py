"""Running a function on several gloo ranks of this machine, forked from a server that has imported torch."""

import io
import multiprocessing
import multiprocessing.connection
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch.distributed.tensor", "torch.distributed.fsdp", "steepest"])


def on_ranks(world, function, *args, timeout=240):
    """What `function(rank, world, *args)` returns on every rank, by rank. Raises what a rank raises, and
    TimeoutError for one that hangs; nobody is left behind."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = [SERVER.Pipe(duplex=False) for _ in range(world)]
        started = [
            SERVER.Process(target=_rank, args=(rank, world, folder, send, function, args), daemon=True)
            for rank, (_, send) in enumerate(pairs)
        ]
        try:
            for process in started:
                process.start()
            for _, send in pairs:
                send.close()
            return _results([receive for receive, _ in pairs], timeout)
        finally:
            for process in started:
                process.kill()
                process.join()


def _results(pipes, timeout):
    end, found = time.monotonic() + timeout, {}
    while len(found) < len(pipes):
        waiting = [pipe for i, pipe in enumerate(pipes) if i not in found]
        for pipe in multiprocessing.connection.wait(waiting, max(0.0, end - time.monotonic())):
            rank = pipes.index(pipe)
            try:
                found[rank], error = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
            except EOFError:
                raise RuntimeError(f"rank {rank} died") from None
            if error:
                raise RuntimeError(f"rank {rank}:\n{error}")
        if time.monotonic() >= end:
            raise TimeoutError(f"ranks {sorted(set(range(len(pipes))) - set(found))} did not return")
    return [found[rank] for rank in range(len(pipes))]


def _rank(rank, world, folder, send, function, args):
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(str(Path(folder) / "store"), world)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
        found = function(rank, world, *args), ""
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        found = None, traceback.format_exc()
    file = io.BytesIO()
    torch.save(found, file)  # tensors by value: those of a process that has ended cannot be shared
    send.send_bytes(file.getvalue())
    send.close()
