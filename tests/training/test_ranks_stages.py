"""Borders between stages on ranks: adapters, reward models and state go on as in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from rank_cases import start
from session_cases import LIFE, LORA, finished
from test_ranks_numbers import QUIET, assert_equal

KINDS = ("ddp", "zero1", "zero2", "fsdp")
STAGES = [
    {**stage, "adapter": {**LORA, "dropout": 0.0}} if isinstance(stage.get("adapter"), dict) else stage
    for stage in LIFE["stages"]
]
CHANGES = {**LIFE, **QUIET, "stages": STAGES}


@pytest.mark.slow
def test_five_stages_on_two_ranks_are_those_of_one_process(tmp_path: Path) -> None:
    finished(tmp_path / "one", CHANGES)
    told = start(2, tmp_path, {kind: {"changes": {**CHANGES, "placement": kind}} for kind in KINDS})
    assert told[0] == told[1] and len(told[0]) == len(KINDS)
    for kind in KINDS:
        assert_equal(tmp_path / kind, tmp_path / "one")
