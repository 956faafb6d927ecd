"""Two libraries' turns at the same work, timed so that a noisy neighbour slows both."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def dtypes_of(flag: str, trained: bool = False) -> tuple[list[str], list[str]]:
    """Their dtypes and ours, of a comma-separated list; int8 is never trained.

    PyTorch has no int8 of its own for these models. XLA for CPUs gains nothing from
    bfloat16, which would take most of a bench's time.
    """
    names = flag.split(",")
    theirs = [name for name in names if name != "int8"]
    ours = theirs if trained else names
    slow = "bfloat16" if jax.default_backend() == "cpu" else None
    return theirs, [name for name in ours if name != slow] or ours


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


def race(
    peer: str,
    what: str,
    count: int,
    rounds: int,
    theirs: Mapping[str, Callable[[], Any]],
    ours: Mapping[str, Callable[[], Any]],
) -> str:
    """Lets every form of both sides take turns, and compares those of one dtype.

    Args:
        theirs, ours: by dtype; of theirs a comma and more may follow it.

    Returns:
        a line with the best form of each side, whatever its dtype: what a user of
        either would choose.
    """
    clocks = turns(rounds, *theirs.values(), *ours.values())
    a = dict(zip(theirs, clocks))
    b = dict(zip(ours, clocks[len(theirs) :]))
    for form, clock in a.items():
        dtype = form.partition(",")[0]
        if dtype in b:
            compare(peer, f"{what} {form}", count, clock, b[dtype])
    for form, clock in b.items():
        print(f"{what} {form:<20} distill_jax {count / clock.wall:8.1f}/s", flush=True)
    best_a, best_b = (min(each, key=lambda form: each[form].wall) for each in (a, b))
    wall_a, wall_b = a[best_a].wall, b[best_b].wall
    return (
        f"best of each, {what}: {peer} ({best_a}) {count / wall_a:.1f}/s, "
        f"distill_jax ({best_b}) {count / wall_b:.1f}/s, x{wall_a / wall_b:.2f} wall"
    )
