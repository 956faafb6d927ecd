"""What workers of another process import: little, so that they start at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from distill_jax.io.errors import UserError


def square(shard: list[int]) -> list[int]:
    return [number * number for number in shard]


def in_which_process(folder: str, shard: list[int]) -> tuple[int, list[int]]:
    """Notes its process, and waits until several have come."""
    (Path(folder) / str(os.getpid())).touch()
    until = time.monotonic() + 20
    while len(os.listdir(folder)) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    return os.getpid(), square(shard)


def dies_once(folder: str, shard: list[int]) -> list[int]:
    """The first worker that meets the number 5 is killed."""
    mark = Path(folder) / "killed"
    if 5 in shard and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(shard)


def refuses(shard: list[int]) -> list[int]:
    if 5 in shard:
        raise UserError("line 5: no number", "write one")
    return square(shard)


def mortal(folder: str, kills: bool):
    """What applies a stage's function; the fourth shard of each may kill its worker.

    It leaves a file for every shard done, and for every worker killed.
    """

    def applied(function, shard):
        stage = function.func.__name__
        mark = Path(folder) / f"{stage}.killed"
        done = [name for name in os.listdir(folder) if name.startswith(f"{stage}.done")]
        if kills and len(done) >= 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        found = function(shard)
        (Path(folder) / f"{stage}.done.{time.monotonic_ns()}.{os.getpid()}").touch()
        return found

    return applied


def always_dies(shard: list[int]) -> list[int]:
    os.kill(os.getpid(), signal.SIGKILL)
    return shard
