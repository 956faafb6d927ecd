"""Training as one call: the same call on the same directory goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from distill_jax.io.errors import UserError
from distill_jax.runtime.interrupt import Interrupt
from distill_jax.runtime.processes import loss_told
from distill_jax.training.failures import OutOfMemory
from distill_jax.training.options import Evaluate, FitOptions, FitResult
from distill_jax.training.run import Run
from distill_jax.training.runfiles import Lock

_log = logging.getLogger(__name__)

__all__ = ["Fit", "FitResult", "use_compile_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fit(FitOptions):
    """Trains a student; see ``FitOptions`` for the settings."""

    def __call__(
        self,
        graphdef: Any,
        params: Any,
        objective: Any,
        feed: Callable[[int], Iterator],
        evaluate: Evaluate | None = None,
    ) -> FitResult:
        """Trains until ``steps``, ``patience`` or a signal.

        Args:
            graphdef: the static half of the student.
            params: its initial parameters; not used when there is a checkpoint.
            objective: ``(student, rep, batch) -> (loss, parts)``.
            feed: ``feed(s)`` yields the host batches of steps s, s + 1, ...
            evaluate: ``(params on the mesh, step) -> {measure: value}``.

        Raises:
            OutOfMemory: a step of one query a device does not fit.
            UserError: a loss that is not finite, a checkpoint of another
                configuration, a directory in use, a save that failed.
        """
        self.check(evaluate)
        if self.compile_cache is not None:
            use_compile_cache(self.compile_cache)
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                stack.enter_context(Lock(self.directory))
            interrupt = stack.enter_context(Interrupt())
            at_once: int | None = None
            while True:
                try:
                    with contextlib.ExitStack() as files:
                        files.enter_context(loss_told())
                        run = Run(self, interrupt, files, params, evaluate, at_once)
                        return run.fit(graphdef, objective, feed)
                except OutOfMemory as error:
                    # Other processes wait in a step that this one cannot take again.
                    if error.at_once is None or jax.process_count() > 1:
                        raise
                    _log.warning("%s", error)
                    at_once = error.at_once
                # A failed step takes its state along: the run goes on from the disk.
                # What is left of it on the devices goes first.
                run = None
                gc.collect()


def use_compile_cache(folder: str, least_seconds: float = 0.5) -> None:
    """Keeps compiled programs in a folder that only its owner can write.

    Args:
        least_seconds: programs that compile faster are not kept.

    Raises:
        UserError: others can write it: a compiled program is code.
    """
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UserError(
            f"{path}: others can write to this cache of compiled programs",
            f"chmod 700 {path}, or choose another folder",
        )
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
