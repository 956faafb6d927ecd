"""The last line of defence: an error that nobody foresaw is two lines and a file."""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path

INTERNAL = 70
"""Exit status of an error of the program's own (``EX_SOFTWARE``)."""


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
