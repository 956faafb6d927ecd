"""Failures of training, reported so that a user can act on them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.runtime.compiled import is_out_of_memory
from distill_jax.training.prefetch import HostBatch

_log = logging.getLogger(__name__)


def not_finite(
    fed: HostBatch,
    numbers: dict[str, float],
    directory: Path,
    query_names: Callable[[np.ndarray], list[str]] | None,
) -> UserError:
    """Saves the batch, and makes the error that names its step and its queries.

    Args:
        numbers: of the step that was not applied.
        query_names: query rows to ids; None shows the rows.
    """
    path = directory / f"not_finite_step_{fed.step + 1}.npz"
    leaves = jax.tree_util.tree_leaves_with_path(fed.host)
    arrays = {jax.tree_util.keystr(k).strip("."): np.asarray(v) for k, v in leaves}
    np.savez(path, allow_pickle=False, **arrays)
    rows = fed.host.targets.query_rows
    names: list[str] = []
    if rows is not None:
        rows = np.asarray(rows)[np.asarray(rows) >= 0]
        names = query_names(rows) if query_names else [f"row {row}" for row in rows]
    shown = ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
    return UserError(
        f"step {fed.step + 1}: the loss is {numbers['loss']} and the gradient's norm "
        f"{numbers['gradient_norm']}; queries {shown or 'unknown'}; batch in {path}",
        "look for labels that are not numbers; lower the learning rate or use float32",
    )


class OutOfMemory(UserError):
    """A step does not fit on a device.

    Attributes:
        at_once: queries at a time to try next, or None when there is nothing smaller.
    """

    def __init__(self, what: str, todo: str, *, at_once: int | None):
        super().__init__(what, todo)
        self.at_once = at_once


def evaluation_out_of_memory(step: int) -> OutOfMemory:
    """The error if an evaluation does not fit; no other training step helps."""
    return OutOfMemory(
        f"the evaluation at step {step} does not fit on a device",
        "set --gin.CHUNK or --gin.MICRO_BATCH lower (the same result in less memory), "
        "or spread the model: --gin.MESH='fsdp=...'",
        at_once=None,
    )


@contextlib.contextmanager
def translate_out_of_memory(made: Callable[[], OutOfMemory]) -> Iterator[None]:
    """Turns an exhausted device into what to change."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise made() from error


class CollapseWatch:
    """Warns once when all docs of every list get the same score for some steps.

    Args:
        after: how many steps in a row.
    """

    def __init__(self, after: int):
        self.after = after
        self.steps = 0

    def see(self, step: int, spread: float) -> None:
        """Takes the ``score_spread`` of a step; nan (no list of two) does not count."""
        self.steps = self.steps + 1 if spread < 1e-6 else 0
        if self.steps == self.after:
            _log.warning(
                "step %d: for %d steps all scores of every list are equal: "
                "the student has collapsed",
                step,
                self.steps,
            )
