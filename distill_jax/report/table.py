"""Short, aligned tables for the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.report.data import is_main, is_significant
from distill_jax.report.marks import fixed, number


def aligned(rows: Sequence[Sequence[Any]], heads: Sequence[str]) -> str:
    """Columns under their heads: the first flush left, the others flush right."""
    cells = [[_shown(cell) for cell in row] for row in [heads, *rows]]
    widths = [max(map(_width, column)) for column in zip(*cells)]
    lines = [
        "  ".join(
            _padded(cell, width, left=i == 0)
            for i, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in cells
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def measures_table(data: Mapping[str, Any]) -> str:
    """Systems by measures; * where the difference from the baseline is significant."""
    means = data["measures"]
    names = list(dict.fromkeys(m for values in means.values() for m in values))
    starred = {
        (c["system"], c["measure"])
        for c in data.get("significance") or ()
        if is_significant(c) and is_main(data, c)
    }
    rows = [
        [
            system.replace("_", " "),
            *(
                fixed(values.get(m)) + ("*" if (system, m) in starred else " ")
                for m in names
            ),
        ]
        for system, values in means.items()
    ]
    return aligned(rows, ["", *(name + " " for name in names)])


def summary(data: Mapping[str, Any]) -> str:
    """What a job prints last: the table and the verdict."""
    parts = [measures_table(data)]
    found = data.get("significance")
    if found:
        tests = found[0].get("comparisons", len(found))
        parts.append(
            f"* differs from {data['baseline'].replace('_', ' ')}: p < 0.05, paired"
            f" t-test, Holm over {tests} tests"
        )
    if data.get("verdict"):
        parts.append(data["verdict"])
    return "\n".join(parts)


def _shown(cell: Any) -> str:
    return cell if isinstance(cell, str) else number(cell)


def _width(cell: str) -> int:
    """Columns of a terminal: wide characters take two, combining ones none."""
    return sum(
        0
        if unicodedata.combining(c)
        else 2
        if unicodedata.east_asian_width(c) in "WF"
        else 1
        for c in cell
    )


def _padded(cell: str, width: int, *, left: bool) -> str:
    blank = " " * (width - _width(cell))
    return cell + blank if left else blank + cell
