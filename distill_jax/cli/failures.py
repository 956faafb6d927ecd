"""What a job that failed ends with: a status, and two lines that say why."""

from __future__ import annotations

import signal
import sys
import tempfile
import traceback
from pathlib import Path

from distill_jax.io.errors import UserError
from distill_jax.io.files import is_full, unwritable
from distill_jax.runtime import signals

INTERNAL = 70
"""Exit status of an error of the program's own (``EX_SOFTWARE``)."""


def status(error: BaseException, debug: bool = False) -> int:
    """Says what happened, and returns the exit status.

    Raises:
        BaseException: the error itself, if it is unexpected and ``debug`` is set,
            or where it is an exit.
    """
    if isinstance(error, UserError):
        print(error, file=sys.stderr)
        return error.status
    if isinstance(error, KeyboardInterrupt):
        signals.say()
        return 128 + (signals.heard() or signal.SIGINT)
    if isinstance(error, BrokenPipeError):
        # The pipe that reads --list or --help was closed.
        sys.stdout = None
        return 0
    if isinstance(error, OSError) and is_full(error):
        # Of files that are written line by line, such as logs.
        print(unwritable(Path(error.filename or "a file"), error), file=sys.stderr)
        return 2
    if isinstance(error, Exception):
        return internal_error(error, debug)
    raise error


def internal_error(error: BaseException, debug: bool = False) -> int:
    """Writes the traceback to a file and says where; returns the exit status.

    Raises:
        BaseException: the error itself, where ``debug`` is set.
    """
    if debug:
        raise error
    told = (str(error).strip().splitlines() or [""])[0][:200]
    print(f"internal error: {type(error).__name__}: {told}", file=sys.stderr)
    print(f"please report it with {_report(error)}", file=sys.stderr)
    return INTERNAL


def _report(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="distill_jax-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        return str(Path(file.name))
    except OSError:
        return "what --debug shows (no file could be written)"
