"""The report of a job: ``report.json``, ``report.html``, TensorBoard, the terminal.

data = compare_systems({"before": {...}, "after": {...}})
publish(MODEL_DIR, data | {"collection": ..., "cost": ...})
print(summary(data))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distill_jax.io.files import atomic_write
from distill_jax.io.reading import write_json
from distill_jax.report.curves import read_all, read_metrics
from distill_jax.report.data import compare_systems, examples, funnel
from distill_jax.report.events import show_report
from distill_jax.report.html import page
from distill_jax.report.table import aligned, measures_table, summary

__all__ = [
    "aligned",
    "compare_systems",
    "examples",
    "funnel",
    "measures_table",
    "page",
    "publish",
    "read_metrics",
    "summary",
]


def publish(
    directory: str | Path,
    data: Mapping[str, Any],
    logs: Iterable[str | Path] | None = None,
) -> Path:
    """Writes all forms of a report into a MODEL_DIR; returns ``report.html``.

    Args:
        logs: the ``metrics.jsonl`` of each training, in sequence, for the curves; None
            looks for one in ``directory``.
    """
    directory = Path(directory)
    write_json(directory / "report.json", dict(data))
    metrics = read_all(logs or [directory / "metrics.jsonl"])
    show_report(directory, data, int(metrics[-1]["step"]) if metrics else 0)
    path = directory / "report.html"
    with atomic_write(path) as out:
        out.write(page(data, metrics))
    return path
