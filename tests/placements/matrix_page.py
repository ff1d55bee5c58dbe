"""The tables of docs/matrix.md.

python tests/placements/matrix_page.py          # every cell anew (minutes), then the page
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE, PEERS = ROOT / "docs" / "matrix.md", ROOT / "bench" / "results" / "placed_peers.json"
WORLDS = (1, 2, 3, 4)


def sign(far):
    """What a cell says: the same bits, within the bound, or what is wrong."""
    if isinstance(far, str):
        return "refused"
    return "=" if far == 0.0 else "~" if far <= 1.0 else "differs"


def merged(told):
    """Cell and placement to its sign, over what each rank of each number of ranks has told."""
    order = ("=", "~", "differs", "refused")
    signs = {}
    for found in (of for ranks in told.values() for of in ranks):
        for key, far in found.items():
            signs[key] = max(signs.get(key, "="), sign(far), key=order.index)
    return signs


def table(signs, cells, placements):
    """One row a cell, one column a placement; each over all numbers of ranks."""
    lines = [
        f"| rule, state, parameters | {' | '.join(placements)} |",
        "| --- |" + " :-: |" * len(placements),
    ]
    for cell in cells:
        lines.append(f"| {cell} | {' | '.join(signs[str(cell), p] for p in placements)} |")
    total = Counter(signs.values())
    count = sum(total.values())
    good = total["="] + total["~"]
    first = (
        f"{good} of {count} cells, each on 1, 2, 3 and 4 ranks: {total['=']} to the bit, {total['~']} within "
    )
    first += "the bound.\n"
    return "\n".join([first, *lines]) + "\n"


BOUND = 3e-5
"""For peers, as for ours: relative to the largest value of a tensor."""


def peers():
    """What peers come to on cut parameters."""
    rows = [row for row in json.loads(PEERS.read_text())["peers"] if "cells" in row]
    columns = ["even 2", "even 3", "uneven 2", "uneven 3"]
    lines = [
        f"| optimizer | storage | library | {' | '.join(columns)} |",
        "| --- | --- | --- |" + " :-: |" * 4,
    ]
    for row in rows:
        told = (row["cells"][column] for column in columns)
        shown = ["fails" if isinstance(x, str) else sign(x / BOUND) for x in told]
        lines.append(f"| {row['card']} | {row['storage']} | {row['peer']} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def put(page, name, text):
    """The page with one marked table replaced."""
    return re.sub(
        rf"(<!-- {name} -->\n).*?(<!-- end -->)",
        lambda m: m[1] + "\n" + text + "\n" + m[2],
        page,
        flags=re.DOTALL,
    )


def tables(page):
    """The marked tables of a page, by name."""
    return dict(re.findall(r"<!-- (matrix|peers) -->\n\n(.*?)\n<!-- end -->", page, re.DOTALL))


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests")]
    from placements.matrix import CELLS, PLACEMENTS, compare
    from placements.ranks import on_ranks

    told = {world: on_ranks(world, compare, PLACEMENTS, range(len(CELLS)), timeout=1800) for world in WORLDS}
    text = put(PAGE.read_text(), "matrix", table(merged(told), CELLS, PLACEMENTS))
    PAGE.write_text(put(text, "peers", peers()))
