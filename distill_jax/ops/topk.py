"""The k best of many scores, exactly, with ties decided by position.

``jax.lax.top_k`` puts the lower position first among equal scores; everything here
keeps that promise across blocks. A caller with another order of ties (doc ids
descending, as trec_eval has it) lays its documents out in that order, or asks for
``ties="highest"``.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Ties = Literal["lowest", "highest"]
BLOCK = 128


def top_k(
    scores: Float[Array, "Q N"], k: int, *, ties: Ties = "lowest", block: int = BLOCK
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """The k best scores of each row and their positions, best first.

    In two stages where that reads less: the k blocks with the best maxima hold the k
    best scores (each block ahead of a left-out one holds a score ahead of all of its),
    so only k * block columns are sorted. Exact, ties included.

    ``k`` beyond N is filled up with -inf and position -1.
    """
    if ties == "highest":
        values, positions = top_k(jnp.flip(scores, -1), k, block=block)
        last = scores.shape[-1] - 1
        return values, jnp.where(positions < 0, -1, last - positions)
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


def _two_stages(scores, k, block):
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


def merge(
    values: Float[Array, "Q k"],
    positions: Int[Array, "Q k"],
    new_values: Float[Array, "Q j"],
    new_positions: Int[Array, "Q j"],
    *,
    ties: Ties = "lowest",
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """Running top k: merges the best so far with those of a *later* block.

    Both sides are sorted as ``top_k`` leaves them, and every new position is greater
    than every old one; then the order of concatenation decides ties.
    """
    k = values.shape[-1]
    sides = [(values, positions), (new_values, new_positions)]
    if ties == "highest":
        sides.reverse()
    all_values = jnp.concatenate([side[0] for side in sides], -1)
    all_positions = jnp.concatenate([side[1] for side in sides], -1)
    values, places = jax.lax.top_k(all_values, k)
    return values, jnp.take_along_axis(all_positions, places, -1)


def search(
    queries: Float[Array, "Q D"],
    docs: Float[Array, "N D"],
    k: int,
    *,
    block_size: int = 2**16,
    ties: Ties = "lowest",
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """The k docs of greatest dot product of each query; [Q, N] is never written.

    Docs are read ``block_size`` at a time and merged. Scores are summed in f32.
    """
    number = docs.shape[0]
    wide = jnp.promote_types(queries.dtype, jnp.float32)
    blocks = -(-number // block_size)
    block_size = -(-number // blocks)

    def step(best, start):
        # The last block is moved back to fit; what was seen before is masked.
        begin = jnp.minimum(start, number - block_size)
        block = jax.lax.dynamic_slice_in_dim(docs, begin, block_size)
        scores = jnp.einsum("qd,nd->qn", queries, block, preferred_element_type=wide)
        seen = (begin + jnp.arange(block_size) < start)[None]
        scores = jnp.where(seen, jnp.asarray(-jnp.inf, wide), scores)
        values, positions = top_k(scores, k, ties=ties)
        positions = jnp.where(jnp.isneginf(values), -1, positions + begin)
        return merge(best[0], best[1], values, positions, ties=ties), None

    shape = (queries.shape[0], k)
    empty = jnp.full(shape, -jnp.inf, wide), jnp.full(shape, -1, jnp.int32)
    starts = jnp.arange(blocks, dtype=jnp.int32) * block_size
    return jax.lax.scan(step, empty, starts)[0]
