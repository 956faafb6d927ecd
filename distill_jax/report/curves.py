"""The training log as curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_jax.report.plots import Plot, lines

Series = dict[str, list[tuple[float, float | None]]]

# Not curves of their own.
_NOT = {"step", "time", "epoch"}


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Records of ``metrics.jsonl``; a torn last line is left out, no file is []."""
    path = Path(path)
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def read_all(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Records of several trainings in sequence, with steps numbered throughout."""
    records: list[dict[str, Any]] = []
    for path in paths:
        before = records[-1]["step"] if records else 0
        found = read_metrics(path)
        records += [{**record, "step": before + record["step"]} for record in found]
    return records


def series(records: Sequence[Mapping[str, Any]]) -> Series:
    """{name: [(step, value or None), ...]} of everything numeric in the log."""
    found: Series = {}
    for record in records:
        for name, value in record.items():
            known = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name in _NOT or not (known or value is None):
                continue
            number = float(value or 0) if known else math.nan
            point = (float(record["step"]), number if math.isfinite(number) else None)
            found.setdefault(name, []).append(point)
    return {k: v for k, v in found.items() if any(p[1] is not None for p in v)}


def plots(records: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Figures of the log: loss and its parts, learning rate, evaluations, the rest."""
    found = series(records)
    # A loss of one part logs that part, under its own name, with the same values.
    loss = found.get("loss")
    rate = found.pop("learning_rate", None)
    evals = {k: found.pop(k) for k in [k for k in found if k.startswith("eval/")]}
    norm = found.pop("gradient_norm", None)
    spread = found.pop("score_spread", None)
    for name in list(found):
        # Counters and speeds have units of their own, and are not parts of the loss.
        if name.startswith(_OTHER) or "/" in name or name.endswith("_per_second"):
            found.pop(name)
    losses = {"loss": loss} if loss else {}
    losses |= {k: v for k, v in found.items() if k != "loss" and v != loss}
    shown = {
        name.removeprefix("eval/"): evals[name]
        for name in sorted(evals)
        if "loss" not in name
    }
    few = all(len(points) <= 40 for points in shown.values())
    made = [
        lines(losses, title="Loss and its parts", x="step", y="mean over the batch"),
        _one("learning rate", rate, "Learning rate", "per step"),
        lines(
            shown,
            title="Measures on the dev queries",
            x="step",
            y="mean over queries",
            dots=few,
        ),
        _one("gradient norm", norm, "Gradient norm before clipping", "L2 norm"),
        _one(
            "spread",
            spread,
            "Spread of the student's scores",
            "deviation within a list, in score units",
        ),
    ]
    return [figure for figure in made if figure]


def _one(name: str, points: Any, title: str, y: str) -> Plot | None:
    return lines({name: points or ()}, title=title, x="step", y=y, zero=True)


_OTHER = (
    "seconds", "queries", "tokens", "pairs", "goodput", "memory", "finite", "skipped",
    "count", "wall", "wait", "flops", "mfu", "padding", "examples", "lists", "steps",
)  # fmt: skip
