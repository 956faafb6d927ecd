"""Hidden states to one vector: the poolings of sentence-transformers.

Each takes hidden states [M, L, D] and the mask [M, L] of the tokens that count, and
computes in float32.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Hidden = Float[Array, "M L D"]
Mask = Bool[Array, "M L"]
Pooled = Float[Array, "M D"]


def mean_pool(hidden: Hidden, mask: Mask) -> Pooled:
    """Mean over the tokens that count; 0 where there are none."""
    weights = mask.astype(jnp.float32)
    return _sum(hidden, weights) / jnp.maximum(weights.sum(-1, keepdims=True), 1.0)


def mean_sqrt_len_pool(hidden: Hidden, mask: Mask) -> Pooled:
    """Sum over the tokens divided by the square root of their number."""
    weights = mask.astype(jnp.float32)
    count = jnp.maximum(weights.sum(-1, keepdims=True), 1.0)
    return _sum(hidden, weights) / jnp.sqrt(count)


def weighted_mean_pool(hidden: Hidden, mask: Mask) -> Pooled:
    """Mean with the weights 1, 2, 3, ... of the positions (SGPT)."""
    places = jnp.arange(1, mask.shape[-1] + 1, dtype=jnp.float32)
    weights = mask.astype(jnp.float32) * places
    return _sum(hidden, weights) / jnp.maximum(weights.sum(-1, keepdims=True), 1.0)


def max_pool(hidden: Hidden, mask: Mask) -> Pooled:
    """The greatest value of each feature; 0 where no token counts."""
    hidden = jnp.where(mask[..., None], hidden.astype(jnp.float32), -jnp.inf)
    return jnp.where(mask.any(-1, keepdims=True), hidden.max(1), 0.0)


def last_pool(hidden: Hidden, mask: Mask) -> Pooled:
    """The hidden state of the last token that counts."""
    last = jnp.maximum(mask.sum(-1) - 1, 0)
    picked = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return picked.astype(jnp.float32)


def _sum(hidden: Hidden, weights: Float[Array, "M L"]) -> Pooled:
    return jnp.einsum("mld,ml->md", hidden, weights, preferred_element_type=jnp.float32)


POOLS = {
    "mean": mean_pool,
    "last": last_pool,
    "max": max_pool,
    "mean_sqrt_len": mean_sqrt_len_pool,
    "weightedmean": weighted_mean_pool,
}
