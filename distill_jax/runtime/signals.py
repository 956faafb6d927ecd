"""SIGINT and SIGTERM of a whole job: one flag, heard at any moment, and an end.

``listen`` runs before the imports that take seconds, so it imports nothing heavy. A
first signal sets the flag. Loops ask it (``check``) and leave by ``Stop``; a training
saves first (``interrupt.Interrupt``). What does not end in ``_GRACE`` seconds, such as
a compilation, is ended: every job is safe to kill. A second signal ends it at once.

No handler raises: an exception inside a callback of XLA is lost, or ends in an abort.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

_GRACE = 3.0
_SENTENCE = "stopped; the same command goes on from here"

_heard: int | None = None
_working = _saving = _said = False


class Stop(KeyboardInterrupt):
    """Leaves a loop after a signal."""


def listen() -> None:
    """Hears signals from here on; does nothing where they are ignored on purpose."""
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    if threading.current_thread() is not threading.main_thread() or not numbers:
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # Written to by the C handler itself, also while the main thread is inside of XLA.
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, _hear)
    threading.Thread(target=_watch, args=(reader, writer), daemon=True).start()


def heard() -> int | None:
    """The first signal; None where there was none."""
    return _heard


def check() -> None:
    """Raises ``Stop`` after a signal; every long loop calls it, a training does not."""
    if _heard is not None and not _saving:
        raise Stop


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Within the block, a signal leaves time for a clean end; outside it does not."""
    global _working
    _working = True
    try:
        yield
    finally:
        _working = False


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """Within the block, the code that saves decides when to end."""
    global _saving
    _saving = True
    try:
        yield
    finally:
        _saving = False


def say() -> None:
    """The sentence of a job that was stopped, once."""
    global _said
    if not _said:
        _said = True
        with contextlib.suppress(OSError):
            os.write(2, f"{_SENTENCE}\n".encode())


def _hear(number: int, _: object) -> None:
    global _heard
    _heard = _heard or number


def _watch(reader: socket.socket, writer: socket.socket) -> None:
    # The writer is held: closed, it would be no file for signals to be written to.
    assert writer is not None
    ends: float | None = None
    reader.settimeout(0.1)
    while True:
        try:
            data = reader.recv(16)
        except TimeoutError:
            data = b""
        except OSError:
            return
        for number in data:
            if number not in (signal.SIGINT, signal.SIGTERM):
                continue
            if ends is not None and not _saving:
                _end()
            _hear(number, None)
            ends = time.monotonic() + (_GRACE if _working else 0.0)
        if ends is not None and _saving:
            ends = time.monotonic() + _GRACE
        elif ends is not None and time.monotonic() >= ends:
            _end()


def _end() -> None:
    for stream in (sys.stdout, sys.stderr):
        # Flush output so far; do not wait for a thread that holds the stream.
        with contextlib.suppress(Exception):
            stream.flush()
    say()
    os._exit(128 + (_heard or signal.SIGINT))
