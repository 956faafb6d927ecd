"""The objective on held-out batches, as a measure to stop by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from distill_jax.batches import batch_size
from distill_jax.inference.forward import default_tokens_per_batch
from distill_jax.io.errors import UserError
from distill_jax.runtime import placement, sharding
from distill_jax.training.gradcache import join, represent, split
from distill_jax.training.programs import padded_tokens


def validation(
    graphdef: Any,
    objective: Any,
    batches: Callable[[], Iterable],
    mesh: Mesh,
    *,
    at_once: int | None = None,
) -> Callable[[Any], dict[str, float]]:
    """Makes ``params -> {"loss": ..., part: ...}``, without dropout.

    A batch is represented in pieces, as in training: the same loss in less memory.

    Args:
        objective: with ``counts`` and ``partial`` the result is the loss of all
            batches as one. Without (losses across queries) it is the mean over
            batches, each weighted by its lists that have a doc: a short last batch
            counts for what it holds. Such a loss depends on the size of the batches,
            so compare it among evaluations on the same ones.
        batches: returns the host batches of the held-out set on every call; with
            several processes each its own rows.
        at_once: maximum number of queries at a time, as of training's chunk or
            micro-batch; never more than inference would take, which holds no
            activations either.
    """

    def forward(params: Any, batch: Any, counts: Any) -> Any:
        with placement.computing_on(mesh):
            return traced(params, batch, counts)

    def traced(params: Any, batch: Any, counts: Any) -> Any:
        size = _at_once(batch, at_once, mesh)
        even = mesh.size > 1 and size % sharding.data_devices(mesh) == 0
        rows = NamedSharding(mesh, sharding.BATCH) if even else None

        def of(piece: Any) -> Any:
            student = nnx.merge(graphdef, nnx.State(params))
            rep = represent(student, piece, None)
            if counts is None:
                return rep
            return objective.partial(student, rep, piece, counts)

        found = jax.lax.map(of, split(batch, size, rows))
        if counts is not None:
            return jax.tree.map(lambda share: share.sum(0), found)
        student = nnx.merge(graphdef, nnx.State(params))
        found = objective(student, join(found, rows), batch)
        lists = jnp.any(batch.targets.where, axis=-1).sum()
        return jax.tree.map(lambda mean: mean * lists, found), lists

    jitted = jax.jit(forward)

    def evaluate(params: Any) -> dict[str, float]:
        totals = _counts(objective, batches(), mesh)
        found: Any = None
        for batch in batches():
            share = jitted(params, sharding.shard_batch(batch, mesh), totals)
            found = share if found is None else jax.tree.map(jnp.add, found, share)
        if found is None:
            raise UserError(
                "there is no held-out batch to evaluate on",
                "hold out more queries, or use a smaller batch",
            )
        found = jax.device_get(found)
        lists = 1
        if totals is None:
            found, lists = found
        loss, parts = jax.tree.map(lambda total: float(total) / max(lists, 1), found)
        return {"loss": loss, **parts}

    return evaluate


def _at_once(batch: Any, most: int | None, mesh: Mesh) -> int:
    """Queries of a batch that are represented at a time.

    They divide the batch, and each device gets a share of them where it gets one of
    the batch.
    """
    rows, ways = batch_size(batch), sharding.data_devices(mesh)
    least = ways if rows % ways == 0 else 1
    tokens = default_tokens_per_batch(mesh) * ways
    most = min(most or rows, tokens * rows // max(1, padded_tokens(batch)), rows)
    sizes = (n for n in range(most, least, -1) if rows % n == 0 and n % least == 0)
    return next(sizes, least)


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
