"""DeBERTa's attention to contents and to distances (He et al. 2021, arXiv 2006.03654).

A logit is the sum of three products: content with content, a query's content with the
distance of the key, and a key's content with the distance of the query (equation 4).
Distances are rows of a table that all layers share; each layer projects them by its
own query and key kernels (``share_att_key``).
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from distill_jax.models.encoder_sizes import BertSizes


class DistanceRows(nnx.Module):
    """The vectors of distances, one for each bucket, and their norm."""

    def __init__(self, sizes: BertSizes, norm: nnx.Module, *, rngs: nnx.Rngs):
        draw = nnx.initializers.normal(sizes.initializer_range)
        self.span = sizes.relative_buckets
        self.max_distance = sizes.relative_max_distance
        shape = (2 * self.span, sizes.d_model)
        self.table = nnx.Param(draw(rngs.params(), shape, jnp.float32))
        self.norm = norm

    def __call__(self, length: int, dtype: str) -> Float[Array, "R D"]:
        """Row r is that of query - key = length - 1 - r; R is 2 * length - 1."""
        distances = np.arange(length - 1, -length, -1)
        buckets = log_buckets(distances, self.span, self.max_distance)
        rows = np.clip(buckets + self.span, 0, 2 * self.span - 1)
        norm: Any = self.norm
        return norm(self.table[...])[rows].astype(dtype)


def log_buckets(distances: np.ndarray, span: int, max_distance: int) -> np.ndarray:
    """Distances near as they are, further ones by their logarithm, below ``span``.

    In float32, as the models were trained; no buckets where ``span`` is
    ``max_distance``.
    """
    if span >= max_distance:
        return distances
    middle = span // 2
    size = np.abs(distances)
    far = np.maximum(size, middle).astype(np.float32) / np.float32(middle)
    whole = np.float32(math.log(np.float32((max_distance - 1) / middle)))
    steps = np.ceil(np.log(far) / whole * np.float32(middle - 1)) + middle
    bucket = np.where(size <= middle, size, steps.astype(np.int64))
    return np.sign(distances) * bucket


def bias(
    query: Float[Array, "B Lq H D"],
    key: Float[Array, "B Lk H D"],
    row_keys: Float[Array, "R H D"],
    row_queries: Float[Array, "R H D"],
) -> Float[Array, "B H Lq Lk"]:
    """Content to distance and distance to content, summed in float32, unscaled.

    Args:
        query, key: of the contents; queries are the first Lq of Lk positions.
        row_keys, row_queries: ``DistanceRows`` of Lk, projected.
    """
    first = key.shape[1] - query.shape[1]
    row_keys, row_queries = row_keys[first:], row_queries[first:]
    how = {"preferred_element_type": jnp.float32}
    to_place = jnp.einsum("bqhd,rhd->bhqr", query, row_keys, **how)
    from_place = jnp.einsum("bkhd,rhd->bhkr", key, row_queries[::-1], **how)
    return _lines(to_place, key.shape[1]) + _lines(from_place, query.shape[1]).swapaxes(
        -1, -2
    )


def _lines(x: Float[Array, "B H N R"], width: int) -> Float[Array, "B H N W"]:
    """out[..., i, j] = x[..., i, j - i + N - 1]: no gather, hence no scatter back.

    A row padded by one falls back by one place per line when the whole is read with
    the unpadded width.
    """
    *lead, number, places = x.shape
    wide = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)])
    flat = wide.reshape(*lead, number * (places + 1))[..., : number * places]
    lines = flat.reshape(*lead, number, places)
    return lines[..., number - 1 : number - 1 + width]
