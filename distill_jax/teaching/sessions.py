"""A client at work in one folder: cache, budget, retries, and a ledger that adds up.

One dispatcher starts calls, each in a task of its own; every decision is made in the
dispatcher, between awaits, so that there is nothing to lock. The policy:

1. a reply in the cache is used;
2. a call is written down with the most it may take, if the budget has that left; if it
   has not but calls in flight may give some back, it waits for them;
3. a failure that may pass is tried again, after a wait, ``max_attempts`` times in all;
4. until something has succeeded one call is made at a time, and what would fail alike
   for every request (``chat.REFUSED``, ``chat.ALIKE``) ends the job at once, in the
   endpoint's own words; a call that was not sent is not charged;
5. so do ``failures_in_a_row`` requests that fail alike;
6. at the end of the budget nothing new starts; what is in flight ends and is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from distill_jax.io.errors import Unfinished, UserError
from distill_jax.teaching import calls, chat
from distill_jax.teaching.ledger import Ledger, Replies
from distill_jax.teaching.limits import Backoff, Gate, Rate
from distill_jax.teaching.refusals import refusal


class Session:
    """An opened ``Client``.

    Args:
        config: the ``Client``.
        folder: gets ``ledger.sqlite`` and, unless the client names another cache,
            ``replies.sqlite``.
        clock, sleep, jitter: time, waiting, and a random number in [0, 1).
    """

    def __init__(
        self,
        config: Any,
        folder: str | Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ):
        self._folder = folder = Path(folder)
        self.config, self.model = config, config.model
        self.ledger = Ledger(folder / "ledger.sqlite")
        self.replies = Replies(config.cache or folder / "replies.sqlite")
        self._clock, self._sleep, self._jitter = clock, sleep, jitter
        self._spent = self.ledger.spent()
        self._gate = Gate(config.concurrency)
        self._requests = Rate(config.requests_per_minute)
        self._tokens = Rate(config.tokens_per_minute)
        self._backoff = Backoff()
        self._worked = False
        self._opened = clock()

    def complete_all(self, requests: Sequence[Any]) -> list[str | None]:
        """One reply a request, in order; None where it failed for good.

        Raises:
            Unfinished: the budget is used up; finished replies are in the cache.
            UserError: the endpoint cannot be reached or refuses a request, requests
                fail alike one after another, or the disk is full.
        """
        keys = [calls.key(request, self.config) for request in requests]
        found: dict[str, str | None] = {}
        todo: dict[str, Any] = {}
        for key, request in zip(keys, requests):
            if key in todo or key in found:
                self.ledger.count_cached(request.id)
                continue
            reply = self.replies.find(key)
            if reply is None:
                todo[key] = request
            else:
                found[key] = reply
                self.ledger.count_cached(request.id)
        if todo:
            try:
                found |= _run(self._complete(todo))
            except sqlite3.OperationalError as error:
                raise UserError(
                    f"{self._folder}: the ledger or the cache of replies cannot be "
                    f"written ({error})",
                    "free some space and run the same command: replies are kept",
                ) from error
        return [found.get(key) for key in keys]

    def counts(self, job: str | None = None) -> dict[str, Any]:
        """Sums of the ledger; see ``Ledger.counts``. No prices, no cost."""
        counts = self.ledger.counts(job)
        return (
            counts if self.config.cost((0, 0)) is not None else counts | {"cost": None}
        )

    def _cost(self, tokens: tuple[int, int]) -> float:
        return self.config.cost(tokens) or 0.0

    def seconds_left(self, now: float) -> float:
        """Seconds left for new calls."""
        budget = self.config.budget_seconds
        return float("inf") if budget is None else self._opened + budget - now

    def close(self) -> None:
        self.ledger.close()
        self.replies.close()

    async def _complete(self, todo: dict[str, Any]) -> dict[str, str | None]:
        import httpx

        config = self.config
        secure = config.base_url.startswith("https")
        async with httpx.AsyncClient(
            timeout=config.timeout,
            limits=httpx.Limits(max_connections=config.concurrency),
            # Certificates take a tenth of a second to load; plain HTTP needs none,
            # and redirects are not followed.
            verify=secure,
        ) as http:
            work = _Work(self, http, todo)
            try:
                return await work.run()
            finally:
                await work.abandon()


class _Work:
    """The requests of one ``complete_all`` that the cache does not have."""

    def __init__(self, session: Session, http: Any, todo: dict[str, Any]):
        self.s, self.http = session, http
        self.url = session.config.base_url.rstrip("/")
        self.key = session.config.key
        # (when it may start, which came first, attempts made, key, request)
        self.waiting = [
            (float("-inf"), n, 0, key, request)
            for n, (key, request) in enumerate(todo.items())
        ]
        self.in_flight: dict[asyncio.Task, tuple] = {}
        self.found: dict[str, str | None] = {}
        self.stop: UserError | None = None
        # The reason of the last failures, and how many requests in a row ended with it.
        self.alike, self.in_a_row = "", 0

    async def run(self) -> dict[str, str | None]:
        while self.in_flight or (self.waiting and self.stop is None):
            wait = self._start_what_may()
            await self._until_something_happens(wait)
        if self.stop is not None:
            raise self.stop
        return self.found

    async def abandon(self) -> None:
        """Closes the calls that an exception leaves open."""
        for task in self.in_flight:
            task.cancel()
        for task, (call, reserved, started, *_) in self.in_flight.items():
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
            self._settle(call, chat.Outcome(reason="interrupted"), reserved, started)
        self.in_flight.clear()

    def _start_what_may(self) -> float | None:
        """Starts calls; returns seconds until the next may start, None if unknown."""
        s = self.s
        while self.waiting and self.stop is None:
            now = s._clock()
            left = s.seconds_left(now)
            if left <= 0:
                if not self.in_flight:
                    self._out_of_time()
                return None
            ready = self.waiting[0][0]
            wait = max(
                ready - now,
                s._gate.closed_until - now,
                s._requests.wait(now),
                s._tokens.wait(now),
            )
            if wait > 0:
                return min(wait, left)
            if not s._gate.has_room() or (self.in_flight and not s._worked):
                return None
            request = self.waiting[0][-1]
            asked = calls.call_of(request)
            reserved = asked.tokens()
            cost = s._cost(reserved)
            passed = s._spent.plus(1, sum(reserved), cost).beyond(s.config.limit)
            if passed is not None:
                if not self.in_flight:
                    self._out_of_budget(passed)
                return None
            _, number, attempts, key, request = heapq.heappop(self.waiting)
            call = s.ledger.reserve(request.id, key, reserved, cost)
            s._spent = s._spent.plus(1, sum(reserved), cost)
            s._gate.in_flight += 1
            s._requests.take(1, now)
            s._tokens.take(sum(reserved), now)
            task = asyncio.ensure_future(
                chat.ask(
                    self.http,
                    self.url + asked.path,
                    calls.payload(request, s.config),
                    self.key,
                    s.config.timeout,
                    asked.read,
                )
            )
            self.in_flight[task] = (
                call, reserved, now, number, attempts + 1, key, request,
            )  # fmt: skip
        return None

    async def _until_something_happens(self, wait: float | None) -> None:
        timer = None if wait is None else asyncio.ensure_future(_sleep(self.s, wait))
        tasks = {*self.in_flight, *([timer] if timer else [])}
        if not tasks:
            return
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if timer is not None:
                timer.cancel()
        for task in done - {timer}:
            self._finish(task.result(), *self.in_flight.pop(task))

    def _finish(
        self, outcome, call, reserved, started, number, attempts, key, request
    ) -> None:
        s, now = self.s, self.s._clock()
        # The reply is kept first: killed in between, it is not paid for twice.
        if outcome.reply is not None:
            tokens = outcome.tokens or (reserved[0], _tokens_of(outcome.reply))
            s.replies.keep(key, s.model, outcome.reply, tokens)
            self.found[key] = outcome.reply
            s._worked = True
            self.alike, self.in_a_row = "", 0
            s._gate.succeeded()
        self._settle(call, outcome, reserved, started)
        if outcome.reply is not None:
            return
        refused = outcome.status in chat.REFUSED or outcome.reason in chat.ALIKE
        if refused and not s._worked:
            self.stop = self.stop or refusal(s.config, outcome, self.key)
            return
        wait = s._backoff.seconds(attempts, s._jitter(), outcome.wait)
        if outcome.status == 429:
            s._gate.refused(started, now, (outcome.wait and wait) or 0.0)
        if outcome.again and attempts < s.config.max_attempts:
            again = (now + wait, number, attempts, key, request)
            heapq.heappush(self.waiting, again)
        else:
            self.found[key] = None
            self._count_alike(outcome)

    def _count_alike(self, outcome: Any) -> None:
        """Ends the job where request after request fails for the same reason."""
        # What a filter refuses is a matter of the texts.
        if outcome.reason == "content filter":
            return
        again = outcome.reason == self.alike
        self.alike, self.in_a_row = outcome.reason, self.in_a_row + 1 if again else 1
        if self.in_a_row >= self.s.config.failures_in_a_row and self.stop is None:
            self.stop = refusal(self.s.config, outcome, self.key, self.in_a_row)

    def _settle(self, call: int, outcome: Any, reserved: Any, started: float) -> None:
        s = self.s
        # Without reported usage, the reserved amount is charged.
        tokens = outcome.tokens or reserved
        if outcome.reply is not None and outcome.tokens is None:
            tokens = (reserved[0], _tokens_of(outcome.reply))
        cost = s._cost(tokens)
        status = "failed" if outcome.reply is None else "succeeded"
        seconds = s._clock() - started
        s.ledger.settle(call, status, outcome.reason, tokens, cost, seconds)
        calls = -1 if outcome.reason == chat.UNSENT else 0
        s._spent = s._spent.plus(
            calls, sum(tokens) - sum(reserved), cost - s._cost(reserved)
        )
        s._gate.in_flight -= 1

    def _out_of_time(self) -> None:
        s = self.s
        self.stop = self._unfinished("seconds", f"{s.config.budget_seconds:,} s")

    def _out_of_budget(self, which: str) -> None:
        s = self.s
        spent, limit = getattr(s._spent, which), getattr(s.config.limit, which)
        amounts = f"{spent:,.2f} of {limit:,.2f}" if which == "money" else (
            f"{spent:,} of {limit:,}"
        )  # fmt: skip
        self.stop = self._unfinished(which, amounts)

    def _unfinished(self, which: str, amounts: str) -> Unfinished:
        return Unfinished(
            f"{self.s.model}: the budget of {which} is used up ({amounts} spent),"
            f" {len(self.waiting):,} requests of this shard are left",
            f"raise budget_{which} and run the same command: it resumes, and"
            " finished replies are not requested again",
        )


async def _sleep(session: Session, seconds: float) -> None:
    await session._sleep(seconds)


def _tokens_of(reply: str) -> int:
    return len(reply.encode("utf-8", "replace")) // 3 + 1


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs to the end, in a thread of its own where a loop is running (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    outcome: dict[str, Any] = {}

    def target() -> None:
        try:
            outcome["result"] = asyncio.run(work)
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]
