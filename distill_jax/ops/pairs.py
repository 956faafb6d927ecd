"""All pairs of a list: ``[..., N]`` to ``[..., N, N]``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def differences(x: Float[Array, "*b N"]) -> Float[Array, "*b N N"]:
    """``out[i, j] = x[i] - x[j]``."""
    return jnp.expand_dims(x, -1) - jnp.expand_dims(x, -2)


def both(where: Bool[Array, "*b N"]) -> Bool[Array, "*b N N"]:
    """True where both members of the pair are valid."""
    return jnp.expand_dims(where, -1) & jnp.expand_dims(where, -2)


def preferences(
    labels: Float[Array, "*b N"], where: Bool[Array, "*b N"]
) -> Bool[Array, "*b N N"]:
    """True where i is valid and strictly better than a valid j: ties make no pair."""
    better = jnp.expand_dims(labels, -1) > jnp.expand_dims(labels, -2)
    return better & both(where)


def middle_ranks(
    labels: Float[Array, "*b N"], where: Bool[Array, "*b N"]
) -> Float[Array, "*b N"]:
    """Rank from 1 (the highest label) among the valid; tied items share the mean of
    their places, so that no order is invented. Anything where masked."""
    better = jnp.expand_dims(labels, -2) > jnp.expand_dims(labels, -1)
    tied = jnp.expand_dims(labels, -2) == jnp.expand_dims(labels, -1)
    valid = both(where)
    ahead = jnp.sum((better & valid).astype(labels.dtype), -1)
    # An item is tied with itself: half a place that makes ranks start at 1.
    return ahead + jnp.sum((tied & valid).astype(labels.dtype), -1) * 0.5 + 0.5


def sigmoid_ranks(
    scores: Float[Array, "*b N"], where: Bool[Array, "*b N"], temperature: float = 1.0
) -> Float[Array, "*b N"]:
    """Differentiable ranks, 1 + sum_{j != i} sigmoid((s_j - s_i) / T) over the valid j.

    They sum to n (n + 1) / 2 for every n valid items (Qin et al. 2010).
    """
    ahead = jax.nn.sigmoid(-differences(scores) / temperature)
    # The diagonal adds sigmoid(0) = 1/2, hence 1/2 and not 1.
    return 0.5 + jnp.sum(jnp.where(both(where), ahead, jnp.zeros_like(ahead)), -1)
