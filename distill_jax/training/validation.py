"""The objective on held-out batches, as a measure to stop by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from distill_jax.ir.errors import UserError
from distill_jax.models import sharding


def validation(
    graphdef: Any, objective: Any, batches: Callable[[], Iterable], mesh: Mesh
) -> Callable[[Any], dict[str, float]]:
    """Makes ``params -> {"loss": ..., part: ...}``, without dropout.

    Args:
        objective: with ``counts`` and ``partial`` the result is the loss of all
            batches as one; without (losses across queries), its mean over batches.
        batches: returns the host batches of the held-out set, each time anew.
    """

    def forward(params: Any, batch: Any, counts: Any) -> Any:
        student = nnx.merge(graphdef, nnx.State(params))
        rep = student.represent(batch, rngs=None)
        if counts is None:
            return objective(student, rep, batch)
        return objective.partial(student, rep, batch, counts)

    jitted = jax.jit(forward)

    def evaluate(params: Any) -> dict[str, float]:
        totals, count = _counts(objective, batches(), mesh), 0
        found: Any = None
        for batch in batches():
            share = jitted(params, sharding.shard_batch(batch, mesh), totals)
            found = share if found is None else jax.tree.map(jnp.add, found, share)
            count += 1
        if found is None:
            raise UserError(
                "there is no held-out batch to evaluate on",
                "hold out more queries, or use a smaller batch",
            )
        # Shares of a known total add up; independent means are averaged.
        scale = 1.0 if totals is not None else 1.0 / count
        loss, parts = jax.device_get(found)
        return {
            "loss": float(loss) * scale,
            **{name: float(part) * scale for name, part in parts.items()},
        }

    return evaluate


def _counts(objective: Any, batches: Iterable, mesh: Mesh) -> Any:
    """The counts of all batches together, or None where they mean nothing."""
    if not hasattr(objective, "partial"):
        return None
    count = jax.jit(objective.counts)
    totals: Any = None
    for batch in batches:
        try:
            counts = count(sharding.shard_batch(batch, mesh))
        except UserError:
            # A loss across queries has no share of a micro-batch.
            return None
        totals = counts if totals is None else jax.tree.map(jnp.add, totals, counts)
    return totals
