"""Systems by collections as text, TSV and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.evaluation.significance import compare, correct
from distill_jax.io.files import atomic_write

Values = dict[str, dict[str, dict[str, float]]]


def table_of(
    values: Values, columns: Sequence[tuple[str, tuple[str, ...]]]
) -> dict[str, dict[str, float | None]]:
    """{system: {column: mean}} with ``mean`` and ``geometric mean`` over the columns.

    A cell is None where a system lacks a collection of the column, and so are the
    means where it lacks a column.
    """
    table: dict[str, dict[str, float | None]] = {}
    for system, found in values.items():
        row: dict[str, float | None] = {}
        for name, specs in columns:
            means = [
                float(np.mean(list(found[s].values()))) for s in specs if s in found
            ]
            row[name] = float(np.mean(means)) if len(means) == len(specs) else None
        cells = [value for value in row.values() if value is not None]
        whole = len(cells) == len(columns)
        row["mean"] = float(np.mean(cells)) if whole else None
        row["geometric mean"] = (
            math.exp(float(np.mean(np.log(np.maximum(cells, 1e-9))))) if whole else None
        )
        table[system] = row
    return table


def significance(values: Values, baseline: str, columns: Any) -> list[Any]:
    """Every system against the baseline in every column, corrected together (Holm)."""
    tests = []
    for system, found in values.items():
        for name, specs in columns:
            both = [s for s in specs if s in found and s in values[baseline]]
            if system == baseline or len(both) < len(specs):
                continue
            pairs = {
                f"{spec} {query}": (values[baseline][spec][query], value)
                for spec in both
                for query, value in found[spec].items()
                if query in values[baseline][spec]
            }
            before = {key: pair[0] for key, pair in pairs.items()}
            after = {key: pair[1] for key, pair in pairs.items()}
            if pairs:
                tests.append(
                    compare(
                        before, after, measure=name, baseline=baseline, system=system
                    )
                )
    return correct(tests)


def text(cells: Any, marks: Any, published: Any) -> str:
    """The table as aligned lines; a published figure is in brackets."""
    names = list(next(iter(cells.values())))
    lines = [["", *names]]
    for system, row in cells.items():
        lines.append(
            [system, *(_cell(system, c, row[c], marks, published) for c in names)]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip()
        for line in lines
    )


def latex(cells: Any, marks: Any, published: Any, measure: str) -> str:
    """The table for a paper: booktabs, best of a column in bold."""
    names = list(next(iter(cells.values())))
    best = {c: max((row[c] for row in cells.values() if row[c] is not None), default=0)
            for c in names}  # fmt: skip
    lines = [
        f"% {measure}; $^*$: p < 0.05, paired t-test, Holm",
        f"\\begin{{tabular}}{{l{'r' * len(names)}}}",
        "\\toprule",
        " & ".join(["", *map(_tex, names)]) + r" \\",
        "\\midrule",
    ]
    for system, row in cells.items():
        words = []
        for name in names:
            word = _cell(system, name, row[name], marks, published).replace("*", "$^*$")
            bold = row[name] is not None and row[name] == best[name]
            words.append(f"\\textbf{{{word}}}" if bold else word)
        lines.append(" & ".join([_tex(system), *words]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _cell(system: str, column: str, value: Any, marks: Any, published: Any) -> str:
    if value is None:
        return "-"
    test = marks.get((system, column))
    star = test is not None and test.p_holm is not None and test.p_holm < 0.05
    beside = published.get(system, {}).get(column)
    return f"{value:.3f}{'*' if star else ''}" + (
        f" [{beside}]" if beside is not None else ""
    )


def write_tsv(path: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    """A line a value: measure, system, collection, value, published, p_holm."""
    with atomic_write(path) as out:
        out.write("measure\tsystem\tcollection\tvalue\tpublished\tp_holm\n")
        for measure, system, column, value, published, p in rows:
            shown = "" if value is None else f"{value:.6f}"
            out.write(f"{measure}\t{system}\t{column}\t{shown}\t{published}\t{p}\n")


def _tex(word: str) -> str:
    return re.sub(r"([_&%#])", r"\\\1", word)
