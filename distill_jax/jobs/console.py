"""What a job says while it works: plain lines, on the first process only."""

from __future__ import annotations

import sys
import time

_STARTED = time.monotonic()


def say(line: str) -> None:
    """Prints a line with the time since the start; flushed, so that logs are live."""
    jax = sys.modules.get("jax")
    if jax is not None and _process_index(jax) != 0:
        return
    minutes, seconds = divmod(int(time.monotonic() - _STARTED), 60)
    print(f"[{minutes:3d}:{seconds:02d}] {line}", flush=True)


def _process_index(jax) -> int:
    # Asking jax for its process would start a backend; a job that has not needed one
    # yet is not made to.
    distributed = jax._src.distributed.global_state  # no public form of this question
    return distributed.process_id or 0
