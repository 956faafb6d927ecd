"""Rows of the table of families and students; all of them are slow."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sentence_transformers", minversion="6")

from tests.weights import grid

ROWS = [(f, k) for f in (*grid.FAMILIES, *grid.T5) for k in grid.kinds(f)]
QUICK = (("qwen3", "colbert"), ("umt5", "reranker"))


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        pytest.param(*row, marks=() if row in QUICK else pytest.mark.slow)
        for row in ROWS
    ],
)
def test_a_family_goes_in_and_out_and_trains_on_any_devices(family, kind):
    found = grid.row(family, kind)
    assert max(found.read, found.written) < 2e-5
    assert found.step < 1.0
    assert found.sharded < 1e-4


def test_the_table_has_rows_of_families_and_students_alone():
    text = grid.DOCS.read_text("utf-8")
    lines = text.partition(grid.BEGIN)[2].partition(grid.END)[0].splitlines()
    there = {tuple(c.strip() for c in line.split("|")[1:3]) for line in lines[3:]}
    assert there
    assert there <= set(ROWS)
