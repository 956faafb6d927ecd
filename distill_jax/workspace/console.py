"""Console output of a job: plain lines, on the first process only."""

from __future__ import annotations

import sys
import time

from distill_jax.runtime import signals

_STARTED = time.monotonic()


def say(line: str) -> None:
    """Prints a line with the time since the start; flushed, so that logs are live."""
    jax = sys.modules.get("jax")
    if jax is not None and _process_index(jax) != 0:
        return
    minutes, seconds = divmod(int(time.monotonic() - _STARTED), 60)
    print(f"[{minutes:3d}:{seconds:02d}] {line}", flush=True)


_AT_END: list[str] = []


def print_at_end(line: str) -> None:
    """Keeps a line that is printed when the job has ended, as its last."""
    _AT_END.append(line)


def end() -> None:
    """Prints the lines that were kept for the end."""
    for line in _AT_END:
        print(line, flush=True)
    _AT_END.clear()


def _process_index(jax) -> int:
    # Asking jax for its process would start a backend; a job that has not needed one
    # yet is not made to.
    distributed = jax._src.distributed.global_state  # no public form of this question
    return distributed.process_id or 0


class Counter:
    """Progress of long work: a line at intervals with the rate and the ETA.

    Called with (done, total); on a terminal it is a tqdm bar, elsewhere plain lines.
    """

    def __init__(self, what: str, total: int, unit: str):
        from tqdm import tqdm

        self.what, self.unit, self.total = what, unit, int(total)
        self.bar = tqdm(
            total=self.total, desc=what, unit=f" {unit}", disable=not _on_terminal()
        )
        self.started = self.last = time.monotonic()
        self.first: int | None = None
        self.done = 0

    def more(self, count: int) -> None:
        """``count`` more are done."""
        self(self.done + count)

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, done: int, total: int | None = None) -> None:
        signals.check()
        self.bar.update(done - self.done)
        self.done = done
        now = time.monotonic()
        if self.first is None:
            self.first = done
        if _on_terminal() or now - self.last < 15:
            return
        self.last = now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        left = "" if rate <= 0 else f", {(self.total - done) / rate:.0f} s left"
        say(f"{self.what}: {done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s{left}")


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def duration(seconds: float) -> str:
    """Seconds as people say them: ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
