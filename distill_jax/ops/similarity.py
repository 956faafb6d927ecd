"""Unit vectors, and MaxSim of late interaction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax.ops import chunked, masked

NO_TOKEN = -9999.0
"""What ColBERT gives a query token when a document has no token left to match."""


def normalise(x: Float[Array, "*b D"], floor: float = 1e-12) -> Float[Array, "*b D"]:
    """Unit length in f32; a zero vector stays zero, with a zero gradient."""
    x = masked.at_least_f32(x)
    squared = jnp.sum(jnp.square(x), -1, keepdims=True)
    long_enough = squared > floor**2
    scale = jax.lax.rsqrt(jnp.where(long_enough, squared, jnp.ones_like(squared)))
    return jnp.where(long_enough, x * scale, jnp.zeros_like(x))


def maxsim_lists(
    query: Float[Array, "B Lq D"],
    docs: Float[Array, "B N Ld D"],
    doc_where: Bool[Array, "B N Ld"] | None = None,
    query_where: Bool[Array, "B Lq"] | None = None,
    *,
    block_size: int | None = None,
) -> Float[Array, "B N"]:
    r"""Late interaction :math:`\sum_q \max_d \langle q, d \rangle` within each list.

    Source: ColBERT (Khattab and Zaharia 2020). Masked document tokens are *left out* of
    the maximum; multiplying them by 0 instead would let padding beat a negative
    similarity. A document without tokens scores ``NO_TOKEN`` a query token.

    Args:
        query: [B, Lq, D]; docs: [B, N, Ld, D].
        doc_where: tokens that count: no padding, no skipped punctuation.
        query_where: None counts all, as ColBERT does with its [MASK]s.
        block_size: queries at a time; [block_size, N, Lq, Ld] is the largest temporary.
    """
    doc_where = _ones(docs) if doc_where is None else doc_where
    query_where = _ones(query) if query_where is None else query_where

    def block(
        query: jax.Array, docs: jax.Array, doc_where: jax.Array, query_where: jax.Array
    ) -> jax.Array:
        scores = jnp.einsum(
            "bqd,bnkd->bnqk",
            _clear(query, query_where),
            _clear(docs, doc_where),
            preferred_element_type=_wide(query),
        )
        return _reduce(scores, doc_where, query_where[:, None, :])

    return chunked.map_rows(
        block, query, docs, doc_where, query_where, block_size=block_size, spread=True
    )


def maxsim_cross(
    query: Float[Array, "Q Lq D"],
    docs: Float[Array, "M Ld D"],
    doc_where: Bool[Array, "M Ld"] | None = None,
    query_where: Bool[Array, "Q Lq"] | None = None,
    *,
    elements: int = 2**26,
) -> Float[Array, "Q M"]:
    """Late interaction of every query and every doc, in tiles of docs.

    The [Q, M, Lq, Ld] tensor never exists: at most about ``elements`` of it are alive
    at a time (2**26 are 256 MiB in f32), in the backward pass too.
    """
    doc_where = _ones(docs) if doc_where is None else doc_where
    query_where = _ones(query) if query_where is None else query_where
    per_doc = query.shape[0] * query.shape[1] * docs.shape[1]
    block_size = max(1, min(docs.shape[0], elements // max(per_doc, 1)))
    query = _clear(query, query_where)

    def block(docs: jax.Array, doc_where: jax.Array) -> jax.Array:
        scores = jnp.einsum(
            "bqd,mkd->mbqk",
            query,
            _clear(docs, doc_where),
            preferred_element_type=_wide(query),
        )
        return _reduce(scores, doc_where[:, None, :], query_where[None])

    return chunked.map_rows(block, docs, doc_where, block_size=block_size).T


def _reduce(
    scores: jax.Array, doc_where: jax.Array | None, query_where: jax.Array | None
) -> jax.Array:
    """[..., Lq, Ld] to [...]: the best document token, summed over query tokens."""
    if doc_where is not None:
        scores = masked.fill(scores, jnp.expand_dims(doc_where, -2), NO_TOKEN)
    best = jnp.max(scores, -1)
    if query_where is not None:
        best = masked.fill(best, query_where)
    return jnp.sum(best, -1)


def _clear(x: jax.Array, where: jax.Array | None) -> jax.Array:
    # A nan at a masked token would reach the gradients of the others as 0 * nan.
    return x if where is None else masked.fill(x, where[..., None])


def _ones(x: jax.Array) -> jax.Array:
    return jnp.ones(x.shape[:-1], bool)


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
