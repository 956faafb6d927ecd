"""Two libraries' turns at the same work, timed so that a noisy neighbour slows both."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass
class Clock:
    """The best wall and CPU seconds of one side."""

    wall: float = float("inf")
    cpu: float = float("inf")

    def measure(self, run: Callable[[], Any]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        self.wall = min(self.wall, time.perf_counter() - wall)
        self.cpu = min(self.cpu, time.process_time() - cpu)


def turns(rounds: int, *runs: Callable[[], Any]) -> list[Clock]:
    """Warms every side up (compilation included), then lets them take turns."""
    for run in runs:
        run()
    clocks = [Clock() for _ in runs]
    for _ in range(rounds):
        for clock, run in zip(clocks, runs):
            clock.measure(run)
    return clocks


def compare(peer: str, what: str, count: int, theirs: Clock, ours: Clock) -> None:
    """Prints one line: both speeds, and how many times ours is theirs."""
    print(
        f"{what:<34} {peer} {count / theirs.wall:8.1f}/s   "
        f"distill_jax {count / ours.wall:8.1f}/s   x{theirs.wall / ours.wall:5.2f} wall"
        f"   x{theirs.cpu / ours.cpu:5.2f} cpu",
        flush=True,
    )
