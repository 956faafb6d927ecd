"""SIGTERM and SIGINT as a wish to stop, heard between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax

from distill_jax.runtime import signals


class Interrupted(BaseException):
    """Raised inside work that may be cut short anywhere, such as an evaluation."""


class Interrupt:
    """Remembers the first signal; later ones change nothing, so no save is torn.

    With several processes the runtime agrees on a step at which all stop; with one,
    or outside the main thread (where Python hears no signals), it is a flag.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._may_raise = False
        self._before: dict[int, Any] = {}
        self._saving = signals.saving()

    def __enter__(self) -> Interrupt:
        self._saving.__enter__()
        # A signal that arrived before the first step.
        self.signal = signals.heard()
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: Any) -> None:
        self._saving.__exit__(None, None, None)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wanted(self, step: int) -> bool:
        """Whether to save and stop after ``step``."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = signal.SIGTERM
        return self.signal is not None

    @contextlib.contextmanager
    def may_cut(self) -> Iterator[None]:
        """Inside, a signal raises ``Interrupted`` at once."""
        self._may_raise = True
        try:
            if self.signal is not None:
                raise Interrupted
            yield
        finally:
            self._may_raise = False

    def _hear(self, number: int, _: Any) -> None:
        first = self.signal is None
        self.signal = self.signal or number
        if first and self._may_raise:
            raise Interrupted
