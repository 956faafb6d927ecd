"""The one home of ``where``: arithmetic in which a masked item cannot be felt.

Every function here is safe in its value *and* in its gradient when masked entries
hold inf or nan: masked entries are replaced before the arithmetic, because
``0 * nan`` is nan, and so is the gradient of ``where(mask, f(nan), 0)``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

LOWEST = -1e30
"""Stands for -inf where arithmetic must stay finite: exp(LOWEST - x) is 0."""


def token_mask(tokens: Int[Array, "*b L"], pad_id: int) -> Bool[Array, "*b L"]:
    """True up to the last token that is not padding, also where ``pad_id`` occurs
    inside the text."""
    places = jnp.arange(1, tokens.shape[-1] + 1)
    lengths = jnp.max(jnp.where(tokens != pad_id, places, 0), axis=-1, keepdims=True)
    return places <= lengths


def at_least_f32(x: Any) -> Array:
    """bf16, f16 and integers become float32; float64 stays."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def fill(
    x: Shaped[Array, "..."], where: Bool[Array, "..."], value: float = 0.0
) -> Shaped[Array, "..."]:
    """``x`` where valid, else ``value``; no gradient flows through the others."""
    return jnp.where(where, x, jnp.asarray(value, x.dtype))


def sum_and_count(
    values: Float[Array, "..."], where: Bool[Array, "..."] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The two numbers from which means of several parts merge exactly."""
    if where is None:
        where = jnp.ones(values.shape, bool)
    where = jnp.broadcast_to(where, values.shape)
    return jnp.sum(fill(values, where)), jnp.sum(where.astype(values.dtype))


def mean(
    values: Float[Array, "..."], where: Bool[Array, "..."] | None = None
) -> Float[Array, ""]:
    """Mean over the valid values of the whole array; 0 when there are none."""
    total, number = sum_and_count(values, where)
    return total / jnp.maximum(number, 1.0)


def total(
    values: Float[Array, "..."], where: Bool[Array, "..."] | None = None
) -> Float[Array, ""]:
    """Sum over the valid values."""
    return sum_and_count(values, where)[0]


def count(
    values: Float[Array, "..."], where: Bool[Array, "..."] | None = None
) -> Float[Array, ""]:
    """How many values are valid: what ``mean`` divides by. No gradient."""
    return jax.lax.stop_gradient(sum_and_count(values, where)[1])


def logsumexp(
    x: Float[Array, "..."], where: Bool[Array, "..."], axis: int = -1
) -> Float[Array, "..."]:
    """log(sum(exp(x))) over the valid entries; ``LOWEST`` when there are none."""
    x = fill(x, where, LOWEST)
    top = jax.lax.stop_gradient(jnp.max(x, axis, keepdims=True))
    weights = fill(jnp.exp(x - top), where)
    mass = jnp.sum(weights, axis)
    empty = mass == 0
    log_mass = jnp.log(jnp.where(empty, jnp.ones_like(mass), mass))
    return jnp.where(empty, jnp.full_like(mass, LOWEST), log_mass + top.squeeze(axis))


def log_softmax(
    x: Float[Array, "..."], where: Bool[Array, "..."], axis: int = -1
) -> Float[Array, "..."]:
    """Log of the softmax over the valid entries; 0 (not -inf) at the others."""
    x = fill(x, where)
    normaliser = jnp.expand_dims(logsumexp(x, where, axis), axis)
    return fill(x - normaliser, where)


def softmax(
    x: Float[Array, "..."], where: Bool[Array, "..."], axis: int = -1
) -> Float[Array, "..."]:
    """Softmax over the valid entries; 0 at the others."""
    return fill(jnp.exp(log_softmax(x, where, axis)), where)
