"""The k best of many scores, exactly, with ties decided by position.

``jax.lax.top_k`` puts the lower position first among equal scores; everything here
keeps that promise across blocks. A caller with another order of ties (doc ids
descending, as trec_eval has it) lays its documents out in that order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 128


def top_k(
    scores: Float[Array, "Q N"], k: int, *, block: int = BLOCK
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """The k best scores of each row and their positions, best first.

    In two stages where that reads less: the k blocks with the best maxima hold the k
    best scores (each block ahead of a left-out one holds a score ahead of all of its),
    so only k * block columns are sorted. Exact, ties included.

    ``k`` beyond N is filled up with -inf and position -1.
    """
    number = scores.shape[-1]
    if k > number:
        values, positions = top_k(scores, number, block=block)
        missing = [(0, 0), (0, k - number)]
        values = jnp.pad(values, missing, constant_values=-jnp.inf)
        return values, jnp.pad(positions, missing, constant_values=-1)
    if number < 2 * k * block:
        values, positions = jax.lax.top_k(scores, k)
        return values, positions.astype(jnp.int32)
    return _two_stages(scores, k, block)


def _two_stages(scores: jax.Array, k: int, block: int) -> tuple[jax.Array, jax.Array]:
    rows, number = scores.shape
    blocks = -(-number // block)
    missing = blocks * block - number
    scores = jnp.pad(scores, [(0, 0), (0, missing)], constant_values=-jnp.inf)
    scores = scores.reshape(rows, blocks, block)
    _, chosen = jax.lax.top_k(jnp.max(scores, -1), k)
    # Ascending, so that position within the gathered columns orders ties as before.
    chosen = jnp.sort(chosen, -1)
    gathered = jnp.take_along_axis(scores, chosen[:, :, None], 1).reshape(rows, -1)
    values, places = jax.lax.top_k(gathered, k)
    positions = jnp.take_along_axis(chosen, places // block, -1) * block
    return values, (positions + places % block).astype(jnp.int32)
