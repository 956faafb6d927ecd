"""Requests to an LLM, their cost, and the replies, in two SQLite files.

``ledger.sqlite`` has a line for every call, written before the call is made, so that a
killed job still knows what it spent. ``replies.sqlite`` has each reply under the
hash of its request; it may be shared between jobs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.io.files import alive
from distill_jax.teaching.chat import UNSENT
from distill_jax.text.replies import Reply, is_cut

_CALLS = """
create table if not exists calls (
  id integer primary key,
  at real not null,
  request text not null,
  key text not null,
  status text not null,
  reason text not null default '',
  prompt_tokens integer not null,
  completion_tokens integer not null,
  cost real not null,
  seconds real,
  pid integer not null
);
create table if not exists cached (job text primary key, count integer not null);
"""
_REPLIES = """
create table if not exists replies (
  key text primary key,
  model text not null,
  reply text not null,
  prompt_tokens integer not null,
  completion_tokens integer not null,
  at real not null,
  cut integer not null default 0
);
"""
_BUSY_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Spent:
    """Calls, tokens and money, whether paid or only reserved."""

    calls: int = 0
    tokens: int = 0
    money: float = 0.0

    def plus(self, calls: int, tokens: int, money: float) -> Spent:
        return Spent(self.calls + calls, self.tokens + tokens, self.money + money)

    def beyond(self, limit: Limit) -> str | None:
        """The name of the limit that is passed, None when none is."""
        for name in ("calls", "tokens", "money"):
            most = getattr(limit, name)
            # A sum of many prices is off by a rounding error.
            if most is not None and getattr(self, name) > most * (1 + 1e-9):
                return name
        return None


@dataclasses.dataclass(frozen=True)
class Limit:
    """The most that may ever be spent in one ledger; None for no limit."""

    calls: int | None = None
    tokens: int | None = None
    money: float | None = None


def reply_key(model: str, messages: Sequence[Mapping[str, str]], params: Any) -> str:
    """SHA-256 of what a reply depends on; the endpoint's address does not count."""
    turns = [{"role": m["role"], "content": m["content"]} for m in messages]
    text = json.dumps([model, turns, params], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Replies:
    """Replies by key; several processes may read and write."""

    def __init__(self, path: str | Path):
        self._database = _open(Path(path), _REPLIES)
        columns = self._database.execute("pragma table_info(replies)").fetchall()
        if "cut" not in [column[1] for column in columns]:
            # A file from before it was kept whether a reply had been cut.
            self._database.execute(
                "alter table replies add column cut integer not null default 0"
            )

    def find(self, key: str) -> Reply | None:
        row = self._database.execute(
            "select reply, cut from replies where key = ?", (key,)
        ).fetchone()
        return None if row is None else Reply(row[0], bool(row[1]))

    def keep(self, key: str, model: str, reply: str, tokens: tuple[int, int]) -> None:
        with self._database:
            self._database.execute(
                "insert or replace into replies (key, model, reply, prompt_tokens,"
                " completion_tokens, at, cut) values (?, ?, ?, ?, ?, ?, ?)",
                (key, model, str(reply), *tokens, time.time(), is_cut(reply)),
            )

    def close(self) -> None:
        self._database.close()


class Ledger:
    """One line a call: reserved, then succeeded or failed.

    What a killed process had in flight is closed as failed when the ledger is next
    opened, at its full reservation: it may have been charged.
    """

    def __init__(self, path: str | Path):
        self._database = _open(Path(path), _CALLS)
        self._close_lost()

    def reserve(
        self, request: str, key: str, tokens: tuple[int, int], cost: float
    ) -> int:
        """Records a call before it is made; returns its number."""
        with self._database:
            cursor = self._database.execute(
                "insert into calls (at, request, key, status, prompt_tokens,"
                " completion_tokens, cost, pid)"
                " values (?, ?, ?, 'pending', ?, ?, ?, ?)",
                (time.time(), request, key, *tokens, cost, os.getpid()),
            )
        return int(cursor.lastrowid or 0)

    def settle(
        self,
        call: int,
        status: str,
        reason: str,
        tokens: tuple[int, int],
        cost: float,
        seconds: float,
    ) -> None:
        """What became of a call, and what it took in the end."""
        with self._database:
            self._database.execute(
                "update calls set status = ?, reason = ?, prompt_tokens = ?,"
                " completion_tokens = ?, cost = ?, seconds = ? where id = ?",
                (status, reason, *tokens, cost, seconds, call),
            )

    def record(
        self,
        calls: Iterable[tuple[str, str, str, tuple[int, int]]],
        seconds: float,
    ) -> None:
        """Writes down calls that are over and cost nothing, in one transaction.

        Args:
            calls: (request, status, reason, tokens) of each.
            seconds: what all of them took.
        """
        rows = [
            (time.time(), request, status, reason, *tokens, os.getpid())
            for request, status, reason, tokens in calls
        ]
        rows = [(*row, seconds / len(rows)) for row in rows]
        with self._database:
            self._database.executemany(
                "insert into calls (at, request, key, status, reason, prompt_tokens,"
                " completion_tokens, cost, pid, seconds)"
                " values (?, ?, '', ?, ?, ?, ?, 0, ?, ?)",
                rows,
            )

    def count_cached(self, request: str, count: int = 1) -> None:
        """Counts requests of a job that cost nothing."""
        with self._database:
            self._database.execute(
                "insert into cached values (?, ?) on conflict (job)"
                " do update set count = count + excluded.count",
                (job_of(request), count),
            )

    def spent(self) -> Spent:
        """Everything in this ledger, calls in flight included.

        A call that was not sent (``chat.UNSENT``) spent nothing.
        """
        row = self._database.execute(
            "select count(*), coalesce(sum(prompt_tokens + completion_tokens), 0),"
            " coalesce(sum(cost), 0) from calls where reason != ?",
            (UNSENT,),
        ).fetchone()
        return Spent(*row)

    def counts(self, job: str | None = None) -> dict[str, Any]:
        """Sums of a job, or of all: ``calls = succeeded + failed`` (+ pending).

        Args:
            job: the text before the first "/" of the requests' ids.
        """
        where, values = ("", ()) if job is None else (_OF_JOB, (f"{job}/%",))
        sums = {"succeeded": 0, "failed": 0, "pending": 0}
        tokens, cost = [0, 0], 0.0
        reasons: dict[str, int] = {}
        for status, reason, count, prompt, completion, money in self._database.execute(
            "select status, reason, count(*), sum(prompt_tokens),"
            f" sum(completion_tokens), sum(cost) from calls{where}"
            " group by status, reason order by status, reason",
            values,
        ):
            sums[status] += count
            tokens[0] += prompt
            tokens[1] += completion
            cost += money
            if status == "failed":
                reasons[reason] = count
        query = "select coalesce(sum(count), 0) from cached"
        if job is not None:
            query, values = query + " where job = ?", (job,)
        cached = self._database.execute(query, values).fetchone()[0]
        found = {
            "calls": sum(sums.values()),
            "succeeded": sums["succeeded"],
            "failed": sums["failed"],
            "cached": cached,
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "cost": round(cost, 6),
            "failures": reasons,
        }
        return found | ({"pending": sums["pending"]} if sums["pending"] else {})

    def close(self) -> None:
        self._database.close()

    def _close_lost(self) -> None:
        rows = self._database.execute(
            "select distinct pid from calls where status = 'pending'"
        ).fetchall()
        lost = [(pid,) for (pid,) in rows if pid == os.getpid() or not alive(pid)]
        with self._database:
            self._database.executemany(
                "update calls set status = 'failed', reason = 'lost'"
                " where status = 'pending' and pid = ?",
                lost,
            )


_OF_JOB = " where request like ?"
_JOB = re.compile(r"([a-z]+(?:-[0-9a-f]{8})?)/")


def job_of(request: str) -> str:
    """The job that a request's id names (``rank-0123abcd/...``), "" for none."""
    found = _JOB.match(request)
    return found.group(1) if found else ""


def _open(path: Path, schema: str) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The thread that completes requests is not always the one that opened the file;
    # never two at a time.
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
    try:
        # With a write-ahead log a commit costs no flush of the disk, and a killed
        # process (not a power cut) loses nothing that was committed.
        database.execute("pragma journal_mode = wal")
        database.execute("pragma synchronous = normal")
        database.executescript(schema)
        (state,) = database.execute("pragma quick_check(1)").fetchone()
    except sqlite3.OperationalError:
        database.close()
        raise
    except sqlite3.DatabaseError as error:
        state = str(error)
    if state != "ok":
        database.close()
        raise UserError(
            f"{path}: damaged ({state.splitlines()[0]})",
            "restore it, or move it away: then what it holds is forgotten, and paid for"
            " again",
        )
    return database
