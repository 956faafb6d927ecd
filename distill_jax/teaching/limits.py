"""Limits of calls to an endpoint: rates, concurrency, and waits after failures.

Nothing here sleeps or knows the time by itself: callers pass the time and learn how
long to wait, so that tests need no clock.
"""

from __future__ import annotations

import dataclasses
from email.utils import parsedate_to_datetime


class Rate:
    """At most so much per minute, evenly spread: no burst, so no minute has more.

    Args:
        per_minute: requests or tokens; None for no limit.
    """

    def __init__(self, per_minute: float | None):
        self.per_minute = per_minute
        self._free_at = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds until the next may start."""
        return max(0.0, self._free_at - now)

    def take(self, amount: float, now: float) -> None:
        """Records that a request of this size starts now."""
        if self.per_minute:
            start = max(self._free_at, now)
            self._free_at = start + 60.0 * amount / self.per_minute


class Gate:
    """How many requests may be in flight: halved by 429, slowly raised by success.

    Additive increase, multiplicative decrease, as TCP does it. Of the requests that
    were in flight together only the first refusal counts.

    Args:
        most: the concurrency that the user allows.
    """

    def __init__(self, most: int):
        self.most = most
        self.limit = float(most)
        self.in_flight = 0
        self.closed_until = float("-inf")
        self._changed_at = float("-inf")

    def has_room(self) -> bool:
        return self.in_flight < max(1, int(self.limit))

    def succeeded(self) -> None:
        self.limit = min(float(self.most), self.limit + 1.0 / max(self.limit, 1.0))

    def refused(self, started: float, now: float, wait: float) -> None:
        """Records a 429 for a request that started then; all requests wait."""
        if started >= self._changed_at:
            self.limit = max(1.0, self.limit / 2)
            self._changed_at = now
        self.closed_until = max(self.closed_until, now + wait)


@dataclasses.dataclass(frozen=True)
class Backoff:
    """Seconds between the attempts of one request: doubled each time, with jitter.

    Attributes:
        first: before the second attempt, in seconds.
        longest: maximum wait, even if the endpoint requests more.
    """

    first: float = 1.0
    longest: float = 120.0

    def seconds(self, attempt: int, jitter: float, asked: float | None = None) -> float:
        """The wait after failed attempt 1, 2, ...

        Args:
            jitter: in [0, 1); the wait is between a half and the whole of the step, so
                that requests which failed together do not return together.
            asked: the seconds of ``Retry-After``; never waits less.
        """
        step = min(self.longest, self.first * 2.0 ** min(attempt - 1, 30))
        wait = step * (0.5 + 0.5 * jitter)
        return min(self.longest, max(wait, asked or 0.0))


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds of a ``Retry-After`` header: a number or a date; None if neither.

    Args:
        now: seconds since 1970, to compare a date with.
    """
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None
