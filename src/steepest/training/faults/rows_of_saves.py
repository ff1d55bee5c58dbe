"""Faults of disks and of saved files."""

from __future__ import annotations

from functools import partial
from typing import Any

from steepest.training.faults import disks, oracles, tampering
from steepest.training.faults.oracles import refused, same, told, unsaved
from steepest.training.faults.terms import LAST, Inject, Row, Run, Scenario, Trial

BESIDE = {"checkpoint": {"background": True}}
"""Saves are written while training goes on."""


def _killed(operation: str, save: int, rank: int = 0, nth: int = 1) -> Run:
    """Killed before an operation of a save; one generation is kept, so that every save also removes one."""
    fault = Inject(partial(disks.kill, operation=operation, save=save, nth=nth), rank, fatal=True)
    return Run(inject=(fault,), ends="", change={"checkpoint": {"keep": 1}})


def _on_disk(*faults: Any, **change: Any) -> Scenario:
    """Faults of rank 0's disk, which the run survives."""
    return Scenario(runs=(Run(inject=tuple(Inject(fault, rank) for fault, rank in faults), change=change),))


def _damaged(tamper: Any, words: str) -> Trial:
    """The newest generation is damaged, and the one before is used."""
    return Trial(Scenario(cut=2, tamper=(tamper,)), (told("damaged", f"gen-000002.*({words})"), same))


TORN = "bytes too|cut off|no manifest"
CHANGED = "checksum differs|header was changed|another save|no manifest|changed after"

ROWS = (
    Row(
        19,
        "Killed in the middle of a save: before the shards, in one, before the commit, in the renaming, "
        "while older ones are removed",
        "The last whole generation is loaded, the rest of another is ignored; the run goes on to the bit.",
        (
            Trial(
                Scenario(
                    runs=(
                        _killed("create", save=1, rank=LAST),
                        _killed("write", save=1, nth=3),
                        _killed("rename", save=2),
                        _killed("replace", save=3),
                        _killed("unlink", save=3, nth=2),
                        Run(),
                    )
                ),
                (same,),
            ),
        ),
    ),
    Row(
        20,
        "The same step saved again",
        "Another generation; none is written over.",
        (Trial(Scenario(cut=2, tamper=(tampering.save_again,)), (told("resume", "gen-000002-2"), same)),),
    ),
    Row(
        21,
        "A file cut short",
        "Noticed before anything is changed; the generation before it is used, and that is said.",
        (_damaged(tampering.truncate, TORN),),
    ),
    Row(
        22,
        "A bit flipped on the disk",
        "The same, by checksums.",
        (_damaged(tampering.flip_bit, CHANGED),),
    ),
    Row(
        23,
        "A file missing, of another save, or another rank's",
        "Such a generation is not used; where none is good, all that is wrong is listed and nothing changes.",
        (
            _damaged(tampering.lose_file, "cannot be opened"),
            Trial(
                Scenario(
                    runs=(Run(ends="gen-000000.*gen-000001|gen-000002.*gen-000001"),),
                    cut=2,
                    tamper=(
                        partial(tampering.exchange_files, back=3),
                        partial(tampering.mix_saves, back=2),
                        partial(tampering.lose_file, back=1),
                    ),
                ),
                (refused,),
            ),
        ),
    ),
    Row(
        24,
        "The disk is full, broken or read-only while saving",
        "The save fails for all ranks and is told of; nothing half written stays, training goes on.",
        (
            Trial(
                _on_disk(
                    (partial(disks.refuse, operation="write", save=1, errno=disks.FULL), LAST),
                    (partial(disks.refuse, operation="sync", save=2, errno=disks.BROKEN), 0),
                    (partial(disks.refuse, operation="make_folder", save=3, errno=disks.READ_ONLY), None),
                ),
                (told("checkpoint_failed", "disk is full"), unsaved((1, 2, 3)), same),
            ),
            Trial(
                _on_disk((partial(disks.no_room, save=2), 0)),
                (told("checkpoint_failed", "free some space"), unsaved((2,)), same),
            ),
        ),
    ),
    Row(
        25,
        "A disk that hangs",
        "One save at a time; the next one waits for a stated time, then counts as failed. Training goes on.",
        (
            Trial(
                _on_disk(
                    (partial(disks.hang, operation="sync", save=1, seconds=11.0), 0), timeout=2.0, **BESIDE
                ),
                (told("checkpoint_failed", "hangs|did not"), same),
            ),
        ),
    ),
    Row(
        26,
        "Parameters change while they are saved",
        "A copy is written: every generation is what it was when it was asked for.",
        (
            Trial(
                _on_disk((partial(disks.hang, operation="create", save=1, seconds=1.0), 0), **BESIDE),
                (unsaved(()), oracles.every_save, same),
            ),
        ),
    ),
    Row(
        27,
        "The saving thread fails, or there is no memory",
        "A failed save, told of at the next one, which is made all the same.",
        (
            Trial(
                _on_disk(
                    (partial(disks.fail_in_thread, save=1), 0),
                    (partial(disks.no_memory, save=3), LAST),
                    **BESIDE,
                ),
                (
                    told("checkpoint_failed", "bug"),
                    told("checkpoint_failed", "memory"),
                    unsaved((1, 3)),
                    same,
                ),
            ),
        ),
    ),
    Row(
        28,
        "A checkpoint made to harm: pickles, bombs, names that leave the folder, links",
        "Nothing is unpickled, no link followed; such a generation is passed over.",
        (
            Trial(
                Scenario(
                    cut=3,
                    tamper=(
                        partial(tampering.plant_pickle, back=1),
                        partial(tampering.plant_link, back=2),
                        partial(tampering.plant_path, back=3),
                    ),
                ),
                (
                    told("damaged", "gen-000003"),
                    told("damaged", "gen-000002.*link"),
                    told("damaged", "gen-000001.*names a file"),
                    oracles.unharmed,
                    same,
                ),
            ),
            Trial(
                Scenario(cut=2, tamper=(partial(tampering.plant_bomb, back=1),)),
                (told("damaged", "gen-000002.*not JSON"), same),
            ),
        ),
    ),
)
