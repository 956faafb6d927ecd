"""Imports C++ libraries that write to the console despite their settings."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Holds back what is written to standard error, by C++ too.

    It is shown after all where an exception leaves the block: it may say why.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        try:
            os.dup2(held.fileno(), 2)
            yield
        except BaseException:
            os.dup2(saved, 2)
            held.seek(0)
            with open(os.dup(saved), "wb") as shown:
                shutil.copyfileobj(held, shown)
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
