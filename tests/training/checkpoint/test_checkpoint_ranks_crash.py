"""Every crash of every rank: each is stopped at each of its operations, in turn, and nothing is ever lost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import OPERATIONS, Faulty, Killed, copied, cut, filled, kill, payload, same, shards, tear

from steepest.contract import SteepestError
from steepest.training.checkpoint import Disk, Ranks, Store
from steepest.training.checkpoint.ranks import outcome
from steepest.training.checkpoint.stage import stage
from steepest.training.checkpoint.write import Save, write_generation

BEFORE = {"nothing": (), "two, both to remove": (10, 20)}


@pytest.fixture(params=BEFORE)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Generations, in memory where the system has that: thousands of syncs are quick there."""
    inside = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=inside if os.access(inside, os.W_OK) else tmp_path) as folder:
        filled(Path(folder) / "before", BEFORE[request.param])
        yield Path(folder) / "before"


def run(folder: Path, rank: int, disk: Disk, session: str, patience: float = 0.0) -> bool:
    """One rank's part of the save of step 30, to its end; whether it was told that the generation is there.
    Without patience it does not wait for another that is not done already."""
    ranks = Ranks(rank, 2, session)
    task = Save(disk, folder, 30, ranks.save_id(1, 30), True, patience, ranks)
    try:
        write_generation(task, stage(shards(payload(31), 2)[rank]), keep=False, retain=1, parent=None)
    except SteepestError:
        return False
    return True


def both(folder: Path, disks: tuple[Disk, Disk], order: tuple[int, int]) -> bool:
    """Both ranks, one after the other, on these disks; whether one was killed."""
    session, killed = uuid.uuid4().hex, False
    for rank in order:
        try:
            run(folder, rank, disks[rank], session)
        except Killed:
            killed = True
    return killed


def sound(folder: Path, steps: tuple[int, ...]) -> bool:
    """The newest generation is the new one or the one before it, and whole; whether it is the new one."""
    loaded = Store(folder).load(optional=True)
    if loaded is not None and same(loaded, payload(31)):
        return True
    assert (loaded is None) == (not steps)
    assert loaded is None or (same(loaded, payload(steps[-1])) and not loaded.skipped)
    return False


def again(folder: Path) -> None:
    """Whatever was left, the next save of both ranks goes well and clears it."""
    both(folder, (Disk(), Disk()), (1, 0))
    after = Store(folder).load()
    assert same(after, payload(31)) and not after.leftovers and not after.skipped


def disks(victim: int, faulty: Faulty) -> tuple[Disk, Disk]:
    return (faulty, Disk()) if victim == 0 else (Disk(), faulty)


def test_all_operations_are_used_somewhere(tmp_path: Path) -> None:
    logs = [Faulty(), Faulty()]
    filled(tmp_path / "before", (10,))
    (tmp_path / "before" / "CURRENT.tmp.0a").write_text("left")
    both(tmp_path / "before", (logs[0], logs[1]), (1, 0))
    both(tmp_path / "none", (logs[0], logs[1]), (1, 0))
    assert {name for log in logs for name, _ in log.log} == set(OPERATIONS)
    assert [what for name, what in logs[1].log if name == "replace"] == ["rank-00001.json.part"] * 2


@pytest.mark.parametrize("fault", [kill, tear, cut], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("victim", "order"), [(0, (1, 0)), (1, (1, 0)), (0, (0, 1))])
def test_one_rank_is_killed_at_any_operation(
    base: Path, victim: int, order: tuple[int, int], fault: object
) -> None:
    steps = (10, 20) if any(base.glob("gen-*")) else ()
    counted = Faulty()
    both(copied(base, base.with_name("counted")), disks(victim, counted), order)
    arrived = False
    assert len(counted.log) > 10
    for at, where in enumerate(counted.log):
        folder = copied(base, base.with_name("work"))
        assert both(folder, disks(victim, Faulty(at, fault)), order), where
        new = sound(folder, steps)
        assert new or not arrived, f"the new generation was there and is lost at {where}"
        arrived = new
        again(folder)
    assert arrived == (order == (1, 0))


def test_the_power_of_both_is_cut_at_any_operation(base: Path) -> None:
    """One disk for both: what neither had synced is lost."""
    steps = (10, 20) if any(base.glob("gen-*")) else ()
    counted = Faulty()
    both(copied(base, base.with_name("counted")), (counted, counted), (1, 0))
    arrived = False
    for at, where in enumerate(counted.log):
        folder = copied(base, base.with_name("work"))
        disk = Faulty(at, cut)
        assert both(folder, (disk, disk), (1, 0)), where
        new = sound(folder, steps)
        assert new or not arrived, f"the new generation was there and is lost at {where}"
        arrived = new
        again(folder)
    assert arrived


def test_a_rank_hears_the_end_from_the_folder(tmp_path: Path) -> None:
    """The generation is there; or the folder went; or it stays, and rank 0 is dead."""

    def heard(session: str) -> str:
        save_id = Ranks(1, 2, session).save_id(1, 30)
        return outcome(tmp_path, tmp_path / f"gen-000030.tmp.{save_id[:12]}", save_id, 0.0)

    assert not run(tmp_path, 1, Disk(), "one"), "rank 0 has not come"
    with pytest.raises(SteepestError, match=r"rank 0 did not end it within 0 s"):
        heard("one")
    assert run(tmp_path, 0, Disk(), "one") and heard("one") == "gen-000030"
    assert not run(tmp_path, 0, Disk(), "two"), "what rank 1 of another start reported is no report"
    with pytest.raises(SteepestError, match=r"rank 0 has given it up, and says why"):
        heard("two")


LOOP = """
import itertools, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from stores import payload, same, shards
from steepest.training.checkpoint import Ranks, Store
folder, chance = Path(sys.argv[1]), random.Random(7)
step = 0
for life in itertools.count():
    children = []
    for rank in (0, 1):
        child = os.fork()
        if child == 0:
            store = Store(folder, keep=2, patience=5.0, ranks=Ranks(rank, 2, f"start {life}"))
            while True:
                step += 1
                store.save(shards(payload(step), 2)[rank], step=step)
        children.append(child)
    time.sleep(chance.uniform(0.1, 0.5))
    chance.shuffle(children)
    for child in children:
        os.kill(child, signal.SIGKILL)
        time.sleep(chance.choice((0, 0.02)))
    for child in children:
        os.waitpid(child, 0)
    found = Store(folder).load(optional=True)
    if found is not None:
        assert found.skipped == () and found.step >= step, (found.step, step, found.skipped)
        assert same(found, payload(found.step)), found.generation
        step = found.step
    if life >= 7 and step > 5:  # a busy machine needs more of them
        break
print(step)
"""


def test_ranks_are_killed_by_the_system_at_any_time(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", LOOP, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and int(done.stdout) > 5, done.stderr
