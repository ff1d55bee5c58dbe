"""Every crash there is: a save is stopped at each of its operations, in turn, and nothing is ever lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import OPERATIONS, Faulty, Killed, copied, cut, failing, filled, kill, payload, same, tear, tree

from steepest.training.checkpoint import Store

BEFORE = {
    "nothing": ((), 3),
    "one": ((10,), 3),
    "two": ((10, 20), 3),
    "one to remove": ((10, 20), 2),
    "two to remove": ((10, 20), 1),
    "the same step": ((30,), 3),
}
"""What was saved before the save of step 30 that is stopped, and how many generations are kept."""


def save(folder: Path, disk: Faulty, keep: int) -> None:
    Store(folder, keep=keep, disk=disk).save(payload(31), step=30, wait=True)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has that: thousands of syncs are quick there."""
    inside = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=inside if os.access(inside, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


@pytest.fixture(params=BEFORE)
def before(request: pytest.FixtureRequest, memory: Path) -> tuple[Path, tuple[int, ...], int]:
    steps, keep = BEFORE[request.param]
    filled(memory / "before", steps)
    return memory / "before", steps, keep


def operations(base: Path, keep: int) -> list[tuple[str, str]]:
    disk = Faulty()
    save(copied(base, base.with_name("counted")), disk, keep)
    return disk.log


def test_all_operations_are_used_somewhere(tmp_path: Path) -> None:
    filled(tmp_path / "before", (10,))
    (tmp_path / "before" / "CURRENT.tmp.0a").write_text("left")
    seen = {name for name, _ in operations(tmp_path / "before", keep=1)}
    fresh = {name for name, _ in operations(tmp_path / "none", keep=1)}
    assert seen | fresh == set(OPERATIONS)


@pytest.mark.parametrize("fault", [kill, tear, cut], ids=lambda f: f.__name__)
def test_killed_at_any_operation(before: tuple[Path, tuple[int, ...], int], fault: object) -> None:
    base, steps, keep = before
    log = operations(base, keep)
    assert len(log) > 20
    arrived = False
    for at in range(len(log)):
        folder = copied(base, base.with_name("work"))
        with pytest.raises(Killed):
            save(folder, Faulty(at, fault), keep)
        loaded = Store(folder).load(optional=True)
        new = loaded is not None and same(loaded, payload(31))
        if not new:
            assert (loaded is None) == (not steps), log[at]
            assert loaded is None or same(loaded, payload(steps[-1])), log[at]
            assert loaded is None or not loaded.skipped, log[at]
        assert new or not arrived, f"the new generation was there and is lost at {log[at]}"
        arrived = new
        handle = Store(folder, keep=keep).save(payload(40), step=40, wait=True)
        assert handle.result().stuck == ()
        after = Store(folder).load()
        assert same(after, payload(40)) and after.leftovers == () and after.skipped == (), log[at]
    assert arrived or not any(name == "rename" and "removed" in what for name, what in log)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS], ids=os.strerror)
def test_refused_at_any_operation(memory: Path, code: int) -> None:
    base = memory / "before"
    filled(base, (10, 20))
    log = operations(base, keep=2)
    old = {name: data for name, data in tree(base).items() if name != "CURRENT"}
    assert len(old) == 8
    failed = 0
    for at in range(len(log)):
        folder = copied(base, base.with_name("work"))
        store = Store(folder, keep=2, disk=Faulty(at, failing(code)))
        handle = store.save(payload(31), step=30)
        handle.wait()
        said, now, loaded = handle.failure(), tree(folder), Store(folder).load()
        if said is None:  # whatever could not be removed is no reason to call the save failed
            assert os.strerror(code) in handle.result().stuck[0], log[at]
            assert same(loaded, payload(31))
        else:
            failed += 1
            assert said.startswith("the checkpoint of step 30 was not saved: "), log[at]
            assert os.strerror(code) in said and said.endswith("; gen-000020 stands as it was."), log[at]
            assert {k: v for k, v in now.items() if k.startswith(("gen-000010/", "gen-000020/"))} == old, log[
                at
            ]
            assert same(loaded, payload(20)) or same(loaded, payload(31))
        assert not loaded.skipped
        assert not [p for p in os.listdir(folder) if ".tmp." in p and "removed" not in p], log[at]
        store.save(payload(40), step=40, wait=True)
        after = store.load()
        assert same(after, payload(40)) and after.leftovers == ()
    assert 20 < failed < len(log)


def test_what_is_synced_before_what(tmp_path: Path) -> None:
    """The order that power cuts demand: files, their folder, the name, the pointer, then removal."""
    filled(tmp_path, (10,))
    disk = Faulty()
    save(tmp_path, disk, keep=1)
    log = [(name, what.replace(disk.log[0][1], "TEMPORARY")) for name, what in disk.log if name != "close"]
    written = [what for name, what in log if name == "create"]
    assert written[-2] == "manifest.json" and written[-1].startswith("CURRENT.tmp.")
    for file in written:
        assert log.index(("create", file)) < log.index(("write", file)) < log.index(("sync", file))
    marks = [name for name, _ in log if name in ("sync_folder", "rename", "replace", "remove_folder")]
    assert marks == [
        *("sync_folder", "rename", "sync_folder"),
        *("replace", "sync_folder"),
        *("rename", "sync_folder", "sync_folder", "remove_folder"),
    ]
    assert next(what for name, what in log if name == "unlink") == "manifest.json"


def test_the_last_good_one_is_never_removed(tmp_path: Path) -> None:
    """Damaged generations do not count, so with keep=1 the new one is what is kept, and it is good."""
    store = filled(tmp_path, (10, 20, 30), keep=3)
    (tmp_path / "gen-000030" / "manifest.json").write_text("{}")
    (tmp_path / "gen-000020" / "model-00001.safetensors").unlink()
    one = Store(tmp_path, keep=1)
    one.save(payload(40), step=40, wait=True)
    assert one.generations() == ["gen-000020", "gen-000030", "gen-000040"]
    assert same(one.load(), payload(40))
    assert store.keep == 3


def test_marked_generations_stay_and_the_rest_goes(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=2)
    for step in range(1, 8):
        store.save(payload(step), step=step, keep=step in (2, 5), wait=True)
    assert store.generations() == [f"gen-{step:06}" for step in (2, 5, 6, 7)]
    assert all(same(store.load(f"gen-{step:06}"), payload(step)) for step in (2, 5, 6, 7))


def test_after_going_back_the_abandoned_are_removed_first(tmp_path: Path) -> None:
    store = filled(tmp_path, (10, 20, 30), keep=3)
    store.load("gen-000010")
    store.save(payload(15), step=15, wait=True)
    assert store.generations() == ["gen-000010", "gen-000015", "gen-000030"]
    (tmp_path / "gen-000015" / "manifest.json").unlink()
    assert Store(tmp_path).load().generation == "gen-000030"  # nothing says any more where it went on from
    store.save(payload(16), step=16, wait=True)
    assert same(Store(tmp_path).load(), payload(16))


def test_the_same_step_again_is_another_generation(tmp_path: Path) -> None:
    store = filled(tmp_path, (10,))
    first = tree(tmp_path / "gen-000010")
    store.save(payload(11), step=10, wait=True)
    store.save(payload(12), step=10, wait=True)
    assert store.generations() == ["gen-000010", "gen-000010-2", "gen-000010-3"]
    assert tree(tmp_path / "gen-000010") == first
    assert same(store.load(), payload(12))


def test_leftovers_are_told_and_removed_by_the_next_save(tmp_path: Path) -> None:
    store = filled(tmp_path, (10,))
    (tmp_path / "gen-000020.tmp.abc123").mkdir()
    (tmp_path / "gen-000020.tmp.abc123" / "model-00001.safetensors").write_bytes(b"half")
    (tmp_path / "CURRENT.tmp.abc").write_text("gen-0000")
    (tmp_path / "notes.txt").write_text("mine")
    found = store.load()
    assert found.leftovers == ("CURRENT.tmp.abc", "gen-000020.tmp.abc123") and found.skipped == ()
    assert store.load().leftovers == found.leftovers, "reading removes nothing"
    done = store.save(payload(20), step=20, wait=True).result()
    assert set(done.removed) == set(found.leftovers) and store.load().leftovers == ()
    assert (tmp_path / "notes.txt").read_text() == "mine"


LOOP = """
import itertools, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from stores import payload, same
from steepest.training.checkpoint import Store
folder, chance = Path(sys.argv[1]), random.Random(7)
step = 0
for life in itertools.count():
    child = os.fork()
    if child == 0:
        store, step = Store(folder, keep=2), step + 1
        while True:
            store.save(payload(step), step=step)
            step += 1
    time.sleep(chance.uniform(0.02, 0.3))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = Store(folder).load(optional=True)
    if found is not None:
        assert found.skipped == () and found.step >= step, (found.step, step, found.skipped)
        assert same(found, payload(found.step)), found.generation
        step = found.step
    if life >= 11 and step > 5:  # a busy machine needs more of them
        break
print(step)
"""


def test_killed_by_the_system_at_any_time(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", LOOP, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and int(done.stdout) > 5, done.stderr


END = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from stores import payload
from steepest.training.checkpoint import Disk, Store
class Slow(Disk):
    def write(self, file, data):
        time.sleep(0.05)
        super().write(file, data)
Store(Path(sys.argv[1]), disk=Slow()).save(payload(1), step=1)
sys.exit("the program ends here")
"""


def test_a_program_that_ends_finishes_its_save(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", END, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.strip()) == (1, "the program ends here")
    found = Store(tmp_path).load()
    assert same(found, payload(1)) and not found.leftovers
