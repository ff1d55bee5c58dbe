"""The list of faults."""

from __future__ import annotations

from collections.abc import Mapping

from steepest.training.faults import rows_of_saves, rows_of_state, rows_of_steps
from steepest.training.faults.terms import Row

LISTED = (*rows_of_steps.ROWS, *rows_of_state.ROWS, *rows_of_saves.ROWS)

ROWS: Mapping[int, Row] = {row.number: row for row in sorted(LISTED, key=lambda row: row.number)}
"""All rows by their number in the list of docs/faults.md."""
