"""Law: every rule and codec, placed in every way over 1 to 4 ranks, gives the numbers of one process."""

import pytest

from laws.cases import every_rule
from placements.matrix import CELLS, PLACEMENTS, compare
from placements.ranks import on_ranks

BOUND = 3e-5
"""Relative to the largest value of a tensor, where sums over ranks come in another order."""


def test_the_matrix_covers_every_rule_and_codec():
    assert every_rule([cell.case for cell in CELLS])
    assert len({cell.state for cell in CELLS}) > 10 and len({cell.param for cell in CELLS}) == 5


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_give_the_numbers_of_one_process(world):
    told = on_ranks(world, compare, PLACEMENTS, range(len(CELLS)), timeout=900)
    exact = {str(cell): cell.exact for cell in CELLS}
    assert all(len(found) == len(CELLS) * len(PLACEMENTS) for found in told)
    for rank, found in enumerate(told):
        for (cell, placement), far in found.items():
            assert not isinstance(far, str), (rank, cell, placement, far)
            limit = 0.0 if exact[cell] or placement == "ddp" else BOUND
            assert far <= limit, (rank, cell, placement, far)
