"""Argument reading shared by all losses: float32, masked items neutralised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax.ops import masked

Reduce: TypeAlias = Callable[..., Any]
"""``reduce_fn(values, where=valid)``: ``masked.mean``, or its sum or count."""

LABEL_BOUND = 1e9
"""Labels are clipped to +-1e9: a teacher's -inf means 'last', and stays finite."""


def read(
    scores: Any, labels: Any, where: Any
) -> tuple[Float[Array, "*b N"], Float[Array, "*b N"], Bool[Array, "*b N"]]:
    """Scores and labels in f32 (f64 stays), 0 where masked; labels are constants."""
    scores = masked.at_least_f32(scores)
    labels = jax.lax.stop_gradient(jnp.asarray(labels).astype(scores.dtype))
    if where is None:
        where = jnp.ones(scores.shape, bool)
    where = jnp.asarray(where).astype(bool)
    labels = jnp.clip(masked.fill(labels, where), -LABEL_BOUND, LABEL_BOUND)
    return masked.fill(scores, where), labels, where
