"""A function of rows, applied block by block so that its temporaries stay small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def map_rows(
    function: Callable[..., Any],
    *arrays: Any,
    block_size: int | None = None,
    spread: bool = False,
) -> Any:
    """``function(*arrays)`` over the leading axis, ``block_size`` rows at a time.

    Args:
        function: maps pytrees with leading axis M to a pytree with leading axis M,
            each row on its own.
        arrays: pytrees with a common leading axis M. Rows of zeros complete the last
            block, so ``function`` must not raise on them; what it gives is dropped.
        block_size: None for all at once.
        spread: True if the rows are on several devices. Block j then holds rows
            j, j + blocks, ...: rows stay where they are, and every block keeps all
            devices busy, at the price of a copy of the arrays.

    Only one block's temporaries are alive at a time, in the backward pass too: they
    are computed again there.
    """
    number = jax.tree.leaves(arrays)[0].shape[0]
    if block_size is None or block_size >= number:
        return function(*arrays)
    blocks = -(-number // block_size)
    missing = blocks * block_size - number

    def split(x: jax.Array) -> jax.Array:
        if missing:
            x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
        if spread:
            return x.reshape((block_size, blocks) + x.shape[1:]).swapaxes(0, 1)
        return x.reshape((blocks, block_size) + x.shape[1:])

    def join(x: jax.Array) -> jax.Array:
        x = x.swapaxes(0, 1) if spread else x
        return x.reshape((blocks * block_size,) + x.shape[2:])[:number]

    # prevent_cse=False: inside a scan nothing can be shared with the forward pass.
    body = jax.checkpoint(lambda block: function(*block), prevent_cse=False)
    return jax.tree.map(join, jax.lax.map(body, jax.tree.map(split, arrays)))
