"""The page about placements shows what is planned today, and its examples run."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

import steepest
from steepest.contract import SteepestError
from steepest.models import build_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def placements():
    spec = importlib.util.spec_from_file_location("bench_placements", ROOT / "bench" / "placements.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_figures_are_those_of_today(placements):
    record, today = json.loads(placements.RESULT.read_text()), placements.measure()
    assert len(record["rows"]) == len(placements.MODELS) * len(placements.CASES) * 21
    today = json.loads(json.dumps(today))  # tuples are lists there
    for part in ("rows", "sums"):
        assert record[part] == today[part], "run python bench/placements.py"


def test_the_tables_are_those_of_the_committed_figures(placements):
    text = placements.PAGE.read_text(encoding="utf-8")
    record = json.loads(placements.RESULT.read_text())
    assert placements.page(record, text) == text, "run python bench/placements.py"
    with pytest.raises(SteepestError, match="marks"):
        placements.page(record, "# Placements\n")


def test_the_examples_run(placements):
    blocks = re.findall(r"```python\n(.*?)```", placements.PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        for code in blocks:
            model = build_model("tiny", vocab_size=64, context=8, seed=0)
            ids = torch.arange(8).view(1, 8)
            optimizer = steepest.AdamW(model.parameters(), lr=1e-3)
            own = {"model": model, "steepest": steepest, "fully_shard": fully_shard, "optimizer": optimizer}
            loss = model(input_ids=ids, labels=ids).loss
            space = {**own, "DistributedDataParallel": DistributedDataParallel, "loss": loss}
            exec(code, space)
            if "opt" in space:
                assert 0 < space["opt"].state_bytes() <= 8 * sum(p.numel() for p in model.parameters())
            else:
                assert optimizer.committed == 1 and all(p.grad is None for p in model.parameters())
    finally:
        dist.destroy_process_group()
