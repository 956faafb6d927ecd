"""Console output of a training: a bar on a terminal, else plain lines."""

from __future__ import annotations

import sys
import time
from typing import Any


class Progress:
    """Shows the step, the loss, the rates and the time left.

    Args:
        total: steps of the whole run.
        start: steps done before.
        show: None for the first process only; False for silence.
        every: least seconds between two plain lines.
    """

    def __init__(
        self, total: int, start: int, *, show: bool, every: float = 15.0
    ) -> None:
        self.total, self.start, self.show, self.every = total, start, show, every
        self._began = self._last = time.monotonic()
        self._work = {"queries": 0, "tokens": 0}
        self._excluded = 0.0
        self._bar: Any = None
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step")

    def say(self, line: str) -> None:
        """A line that stays, whether there is a bar or not."""
        if not self.show:
            return
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def pause(self, seconds: float) -> None:
        """Leaves out seconds that were no steps (compiling, evaluating)."""
        self._excluded += seconds

    def step(self, step: int, loss: float, queries: int, tokens: int) -> None:
        self._work["queries"] += queries
        self._work["tokens"] += tokens
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {loss:.4g}, {self._rates()}", refresh=False
            )
            self._bar.update(step - self._bar.n)
        elif self.show and (
            time.monotonic() - self._last >= self.every or step == self.total
        ):
            self._last = time.monotonic()
            left = self._seconds() / max(1, step - self.start) * (self.total - step)
            self.say(
                f"step {step} of {self.total}, loss {loss:.4g}, {self._rates()}, "
                f"{_clock(left)} left"
            )

    def rates(self) -> dict[str, float]:
        """Queries and tokens a second since the run started, steps only."""
        seconds = self._seconds()
        return {f"{what}_per_second": n / seconds for what, n in self._work.items()}

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _seconds(self) -> float:
        return max(1e-9, time.monotonic() - self._began - self._excluded)

    def _rates(self) -> str:
        rates = self.rates()
        return (
            f"{rates['queries_per_second']:.3g} queries/s, "
            f"{rates['tokens_per_second']:.3g} tokens/s"
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )
