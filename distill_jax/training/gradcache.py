"""Exact gradients of large batches: the expensive half in chunks of queries.

GradCache (Gao et al. 2021): (1) represent every chunk without keeping activations,
(2) the loss and its gradient with respect to the representations of the *whole*
batch, (3) represent each chunk again and pull its part of that gradient back. A
student's ``represent`` is chunked over B whatever it returns, so this serves dual
encoders, ColBERT, SPLADE and rerankers with any loss. It costs one more forward pass.

Dropout bits belong to the *query row*, not to the chunk: each row has its own key and
``represent`` runs under ``jax.vmap`` over rows. Whatever the chunk, the micro-batch or
the mesh, a row drops the same units, so the chunked gradient equals the plain one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from distill_jax.io.errors import UserError
from distill_jax.models import lora
from distill_jax.runtime import placement
from distill_jax.training.trainable import joined

# (trained parameters, batch, keys, the other parameters) -> ((loss, numbers), gradient)
Gradient = Callable[..., tuple[tuple[Any, dict], Any]]


def student_of(graphdef: Any, params: dict, rest: Any = None) -> Any:
    """The student's module with these parameters, and those that are not trained."""
    return nnx.merge(graphdef, nnx.State(lora.merged(joined(params, rest))))


def represent(student: Any, batch: Any, keys: Any | None) -> Any:
    """A batch to representations; ``keys`` [B] turn dropout on, row by row."""
    if keys is None:
        return student.represent(batch, rngs=None)

    def one(row: Any, key: Any) -> Any:
        rep = student.represent(
            jax.tree.map(lambda leaf: leaf[None], row), rngs=nnx.Rngs(dropout=key)
        )
        return jax.tree.map(lambda leaf: leaf[0], rep)

    return placement.over_rows(one, keys.shape[0])(batch, keys)


def cached_gradient(
    graphdef: Any, loss: Callable, chunk: int, rows: NamedSharding | None = None
) -> Gradient:
    """Makes a ``Gradient``, chunked.

    Args:
        graphdef: the static half of the student.
        loss: ``(student, rep, batch) -> (loss, numbers)`` over the whole batch.
        chunk: queries that are represented at once, over all devices together.
        rows: sharding of the query axis.
    """

    def gradient(params: Any, batch: Any, keys: Any, rest: Any = None) -> Any:
        def merge(params: Any) -> Any:
            return student_of(graphdef, params, rest)

        pieces = split((batch, keys), chunk, rows)
        reps = jax.lax.map(lambda piece: represent(merge(params), *piece), pieces)
        floats, others = _part(join(reps, rows))

        def of_representations(params: Any, floats: Any) -> Any:
            return loss(merge(params), _whole(floats, others), batch)

        value, (direct, cotangents) = jax.value_and_grad(
            of_representations, argnums=(0, 1), has_aux=True
        )(params, floats)

        def pull(total: Any, piece: Any) -> tuple[Any, None]:
            (batch, keys), cotangent = piece
            _, back = jax.vjp(
                lambda p: _part(represent(merge(p), batch, keys))[0], params
            )
            return jax.tree.map(jnp.add, total, back(cotangent)[0]), None

        # A loss may read parameters besides the representations (``direct``).
        grads, _ = jax.lax.scan(pull, direct, (pieces, split(cotangents, chunk, rows)))
        return value, grads

    return gradient


def split(tree: Any, size: int, rows: NamedSharding | None = None) -> Any:
    """[B, ...] leaves to [B / size, size, ...], interleaved.

    Piece j holds rows j, j + B/size, ...: every piece is spread over all devices, and
    no row moves to another device, when the devices of the data axis divide ``size``.
    """

    def one(leaf: Any) -> Any:
        if leaf.shape[0] % size:
            raise UserError(
                f"{leaf.shape[0]} queries a batch are not a multiple of a chunk of "
                f"{size}",
                "choose a chunk that divides the batch size",
            )
        out = leaf.reshape(size, leaf.shape[0] // size, *leaf.shape[1:]).swapaxes(0, 1)
        return _constrain(out, rows, (None,))

    return jax.tree.map(one, tree)


def join(tree: Any, rows: NamedSharding | None = None) -> Any:
    """The inverse of ``split``."""

    def one(leaf: Any) -> Any:
        out = leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])
        return _constrain(out, rows, ())

    return jax.tree.map(one, tree)


def _constrain(leaf: Any, rows: NamedSharding | None, before: tuple) -> Any:
    if rows is None:
        return leaf
    spec = PartitionSpec(*before, *rows.spec)
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(rows.mesh, spec))


def _part(rep: Any) -> tuple[list, list]:
    """Leaves that have gradients, and the rest (masks, ids)."""
    leaves, treedef = jax.tree.flatten(rep)
    float_at = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    floats = [leaf if is_float else None for leaf, is_float in zip(leaves, float_at)]
    others = [None if is_float else leaf for leaf, is_float in zip(leaves, float_at)]
    return floats, [treedef, *others]


def _whole(floats: list, others: list) -> Any:
    treedef, *rest = others
    leaves = [a if a is not None else b for a, b in zip(floats, rest)]
    return jax.tree.unflatten(treedef, leaves)
