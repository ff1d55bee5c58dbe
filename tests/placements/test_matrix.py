"""Law: every rule and codec, placed in every way over 1 to 4 ranks, gives the numbers of one process."""

import pytest

from laws.cases import every_rule
from placements.matrix import CELLS, PLACEMENTS, compare
from placements.matrix_page import PAGE, merged, table, tables
from placements.ranks import on_ranks

TOLD = {}


def test_the_matrix_covers_every_rule_and_codec():
    assert every_rule([cell.case for cell in CELLS])
    assert len({cell.state for cell in CELLS}) > 10 and len({cell.param for cell in CELLS}) == 5
    assert len({str(cell) for cell in CELLS}) == len(CELLS)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_give_the_numbers_of_one_process(world):
    told = TOLD[world] = on_ranks(world, compare, PLACEMENTS, range(len(CELLS)), timeout=1700)
    assert all(len(found) == len(CELLS) * len(PLACEMENTS) for found in told)
    exact = {str(cell): cell.exact for cell in CELLS}
    for rank, found in enumerate(told):
        for (cell, placement), far in found.items():
            assert not isinstance(far, str), (rank, cell, placement, far)
            limit = 0.0 if exact[cell] or placement == "ddp" else 1.0
            assert far <= limit, (rank, cell, placement, far)


def test_the_page_says_what_was_found():
    """After the four above: `python tests/placements/matrix_page.py` writes the page."""
    assert set(TOLD) == {1, 2, 3, 4}, "run the whole file"
    assert tables(PAGE.read_text())["matrix"] == table(merged(TOLD), CELLS, PLACEMENTS)
