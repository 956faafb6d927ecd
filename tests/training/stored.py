"""What a checkpoint holds, read without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from distill_jax.io.errors import UserError
from distill_jax.training.checkpoints import damage, read_meta, steps


def read_params(directory: str | Path, step: int | None = None) -> dict:
    """The parameters of a checkpoint as numpy arrays, without knowing the model.

    Args:
        directory: a run's ``checkpoints`` folder.
        step: None for the best when one was chosen by a measure, else the newest.

    Raises:
        UserError: there is none, or a file of the one asked for is damaged.
    """
    directory = Path(directory).absolute()
    there = steps(directory)
    if not there or (step is not None and step not in there):
        raise UserError(
            f"{directory}: no checkpoint" + (f" of step {step}" if step else ""),
            f"there are {there}" if there else "train first",
        )
    if step is None:
        best = read_meta(directory / str(there[-1])).get("best") or {}
        step = best["step"] if best.get("step") in there else there[-1]
    problem = damage(directory / str(step))
    if problem is not None:
        raise UserError(problem, f"there are {there}")
    with ocp.PyTreeCheckpointer() as reader:
        found = reader.restore(
            directory / str(step) / "params",
            restore_args=jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                reader.metadata(directory / str(step) / "params").item_metadata.tree,
            ),
        )
    return _integers(found)


def _integers(tree: Any) -> Any:
    """Digits among the keys as integers, as the modules' lists have them."""
    if not isinstance(tree, dict):
        return tree
    return {
        int(key) if isinstance(key, str) and key.isdigit() else key: _integers(value)
        for key, value in tree.items()
    }
