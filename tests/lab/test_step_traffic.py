"""The bytes that the benchmark counts from declarations are those that the kernels read and write."""

import pytest
import torch

from steepest.contract import SteepestError
from steepest.engines import classify
from steepest.lab.bench import STORAGES, Case, ours, parse_storage, traffic
from steepest.rules import CARDS

SHAPE = torch.Size((1024, 1024))
CASES = [(card, storage) for card in CARDS for storage in STORAGES]


@pytest.mark.parametrize(("card", "storage"), CASES)
def test_bytes(card, storage):
    case = Case(CARDS[card], parse_storage(storage), (SHAPE,))
    p = torch.nn.Parameter(torch.zeros(SHAPE, dtype=case.storage.dtype))
    p.grad = torch.zeros_like(p)
    try:
        opt = ours(case, [p], "fused", "update")
    except SteepestError:  # only for naming a slot that the rule does not have
        assert set(case.storage.state) - set(case.card.rule.slots)
        return
    ((kernel, _),), rest = classify(opt.buckets(), "cpu")
    # Rows and columns are few: a schedule counts them as nothing.
    assert not rest and traffic(case) / SHAPE.numel() == pytest.approx(kernel.schedule.bytes_moved, abs=0.05)


def test_something_is_measured():
    assert len(CASES) > 80
