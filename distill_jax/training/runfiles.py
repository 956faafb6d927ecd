"""The files of a run that only one process may write: its lock and its log."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax

from distill_jax.io.errors import UserError
from distill_jax.io.files import atomic_write, sweep, unwritable
from distill_jax.runtime.loggers import Logger, finite, open_loggers
from distill_jax.training.options import FitOptions


class Lock:
    """Holds a file of a folder as long as this process lives.

    The kernel drops the lock with its holder, so a killed run leaves nothing stale.

    Args:
        name: of the file. A job holds another one than the trainings in its folder.

    Raises:
        UserError: another process holds it; its pid and host are named. Or the folder
            cannot be written.
    """

    def __init__(self, directory: str | Path, name: str = ".lock"):
        self.path = Path(directory) / name

    def __enter__(self) -> Lock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+", encoding="utf-8")
        except OSError as error:
            raise unwritable(self.path.parent, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(
                f"{self.path.parent} is in use by {holder}",
                "wait for it to end, or use another MODEL_DIR",
            ) from None
        self._file.truncate(0)
        self._file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        # No other process writes here now: partial files of killed jobs can be removed.
        sweep(self.path.parent)
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.truncate(0)
        self._file.close()


class MetricsLog:
    """``metrics.jsonl``: one JSON object per logged step, flushed line by line.

    Args:
        path: the file.
        upto: records of later steps are dropped: a resumed run writes them again.
        loggers: opens those that are shown each record too, at the first one.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        upto: int,
        loggers: Callable[[], Sequence[Logger]] = tuple,
    ):
        self.path = Path(path)
        self._open_loggers = loggers
        self._loggers: list[Logger] | None = None
        self.records = read_records(self.path, upto)
        with atomic_write(self.path) as out:
            for record in self.records:
                out.write(json.dumps(record) + "\n")
        self._file = self._open()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a record. nan and infinities, which JSON lacks, become null."""
        clean = {name: _plain(value) for name, value in record.items()}
        self.records.append(clean)
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        self._show(clean)

    def amend(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds values to the last record when it is of this step, else writes one."""
        if not self.records or self.records[-1]["step"] != step:
            self.write({"step": step, **values})
            return
        self._file.close()
        clean = {name: _plain(value) for name, value in values.items()}
        self._show({"step": step, **clean})
        last = {**self.records[-1], **clean}
        self.records[-1] = last
        with atomic_write(self.path) as out:
            for record in self.records:
                out.write(json.dumps(record) + "\n")
        self._file = self._open()

    def _open(self) -> IO[str]:
        return open(self.path, "a", encoding="utf-8")

    def _show(self, record: Mapping[str, Any]) -> None:
        if self._loggers is None:
            self._loggers = list(self._open_loggers())
        for logger in self._loggers:
            logger.write(record["step"], finite(record))

    def close(self) -> None:
        self._file.close()
        for logger in self._loggers or ():
            logger.close()


def open_log(
    options: FitOptions, step: int, stack: contextlib.ExitStack
) -> MetricsLog | None:
    """The log of a run and its loggers, closed by ``stack``; the first process's only.

    Args:
        step: updates done.
    """
    if jax.process_index() != 0:
        return None
    directory = Path(options.directory)

    def loggers() -> list[Logger]:
        return open_loggers(options.loggers, directory, options.config, step)

    log = MetricsLog(directory / "metrics.jsonl", upto=step, loggers=loggers)
    stack.callback(log.close)
    return log


def read_records(path: Path, upto: int | None = None) -> list[dict]:
    """The whole records of a log, up to a step; torn and damaged lines are left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        step = record.get("step") if isinstance(record, dict) else None
        if isinstance(step, int) and (upto is None or step <= upto):
            records.append(record)
    return records


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
