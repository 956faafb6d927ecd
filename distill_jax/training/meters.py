"""Averages as sums and counts that merge; seconds by what they were spent on."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Mean:
    """A sum and a count. ``Mean(6, 2) + Mean(0, 1)`` is the mean of three numbers."""

    total: float = 0.0
    count: float = 0.0

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean; nan when nothing was counted."""
        return self.total / self.count if self.count else math.nan


@dataclasses.dataclass
class Meters:
    """Means by name over the steps since the last ``flush``."""

    means: dict[str, Mean] = dataclasses.field(default_factory=dict)

    def add(self, numbers: Mapping[str, float], count: float = 1.0) -> None:
        """Counts each number ``count`` times; nan means that there was none."""
        for name, number in numbers.items():
            if not math.isnan(number):
                seen = self.means.get(name, Mean())
                self.means[name] = seen + Mean(number * count, count)

    def flush(self) -> dict[str, float]:
        """The means so far; counting starts again."""
        values = {name: mean.value for name, mean in self.means.items()}
        self.means = {}
        return values

    def to_json(self) -> dict[str, list[float]]:
        return {name: [mean.total, mean.count] for name, mean in self.means.items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Meters:
        return cls({name: Mean(*pair) for name, pair in record.items()})


class Goodput:
    """Seconds of a run by what they were spent on.

    ``step`` is useful work; ``compile``, ``input`` (waiting for a batch),
    ``checkpoint`` (blocked by a save), ``eval`` and ``start`` are not.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextlib.contextmanager
    def spent_on(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(what, time.perf_counter() - began)

    def add(self, what: str, seconds: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def __str__(self) -> str:
        spent = ", ".join(f"{what} {s:.1f} s" for what, s in self.seconds.items())
        return f"{spent}; goodput {self.report()['goodput']:.0%}"

    def report(self) -> dict[str, float]:
        """Seconds by kind, ``wall`` and ``goodput`` = step / wall."""
        wall = time.perf_counter() - self._began
        step = self.seconds.get("step", 0.0)
        return {**self.seconds, "wall": wall, "goodput": step / wall if wall else 0.0}
