"""A stack of equal layers: run one by one, or compiled once and scanned.

Compiling a layer once instead of 12 or 24 times is what an accelerator's compiler
needs; a CPU's is quick, and pays for slicing the stacked weights. The parameters stay
one by one wherever they are kept, as every checkpoint of the ecosystem has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from distill_jax.models.t5_sizes import rematerialised
from distill_jax.runtime import placement

SCANNED = 3
"""So many layers at least are scanned on an accelerator."""


def through(
    layers: Sequence[nnx.Module],
    call: Callable[[Any, jax.Array, Any], jax.Array],
    x: jax.Array,
    keys: Sequence[Any],
    *,
    dtype: str,
    remat: str,
    scan: bool | None = None,
) -> jax.Array:
    """``x`` through the layers in turn: ``x = call(layer, x, key)``.

    Args:
        layers: of one structure; each keeps the shape of ``x``, except that the first
            may change it.
        call: may close over what all layers share (masks, biases).
        keys: one a layer, or as many None.
        dtype: of the products, in which weights are gathered; see ``at_use``.
        remat: policy of each layer; see ``T5Sizes.remat``.
        scan: None decides by the devices that are computed on.
    """

    remat = placement.remat_of(remat)

    def run(layer: Any, x: jax.Array, key: Any) -> jax.Array:
        return placement.rows(call(placement.at_use(layer, dtype), x, key))

    def one_layer(layer: Any, x: jax.Array, key: Any) -> jax.Array:
        once = rematerialised(lambda x, key: run(layer, x, key), remat)
        return once(x, key)

    if scan is None:
        scan = placement.platform() != "cpu"
    if not scan or len(layers) < SCANNED:
        for layer, key in zip(layers, keys):
            x = one_layer(layer, x, key)
        return x
    if jax.eval_shape(run, layers[0], x, keys[0]).shape != x.shape:
        x, layers, keys = one_layer(layers[0], x, keys[0]), layers[1:], keys[1:]
    graphdef, _ = nnx.split(layers[0])
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(_weights(one, dtype) for one in layers)
    )

    def step(x: jax.Array, sliced: tuple[Any, Any]) -> tuple[jax.Array, None]:
        weights, key = sliced
        return run(nnx.merge(graphdef, nnx.State(weights)), x, key), None

    # A loop keeps what each round leaves to the backward pass, probabilities of the
    # attention too (T5-base, 32 x 36 x 192 on 8 chips: 22.8 GB); they are cheap to
    # compute again.
    remat = max(remat, "matmuls", key=placement.REMAT.index)
    keyed = None if keys[0] is None else jnp.stack(list(keys[: len(layers)]))
    return jax.lax.scan(rematerialised(step, remat), x, (stacked, keyed))[0]


def _weights(layer: Any, dtype: str) -> Any:
    """A layer's parameters; matrices in the dtype that they are multiplied in."""

    def cast(leaf: jax.Array) -> jax.Array:
        is_matrix = leaf.ndim > 1 and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if is_matrix else leaf

    return jax.tree.map(cast, nnx.to_pure_dict(nnx.split(layer)[1]))
