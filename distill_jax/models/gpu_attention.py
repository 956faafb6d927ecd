"""Attention on a GPU: cuDNN's kernel where it is sure to fit, XLA's form elsewhere.

cuDNN never writes the [B, H, L, L] probabilities, but it refuses many shapes when
traced, and ``jax.nn.dot_product_attention`` does not fall back by itself (its default
is XLA). So the decision is made here, by a function of shapes alone.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax.models import shares
from distill_jax.models.shares import Shares
from distill_jax.runtime.processes import is_deterministic

# cuDNN's flash attention begins with Ampere. Hopper reads heads of 256; 128 is what
# every card from there on does.
CAPABILITY = 8.0
HEAD_DIM = 128


def implementation(
    query: tuple[int, ...],
    key: tuple[int, ...],
    dtype: str,
    *,
    bias: tuple[int, ...] | None = None,
    mask: tuple[int, ...] | None = None,
    capability: float,
    shared: bool = True,
    deterministic: bool = False,
) -> str:
    """ "cudnn" where the kernel takes these shapes, also for gradients; else "xla".

    Args:
        query, key: shapes [B, L, H, D].
        dtype: of query, key and value.
        bias: its shape, None without.
        mask: its shape; [B, Lk] becomes the lengths that the kernel reads.
        capability: compute capability of the card, 0 for no CUDA.
        shared: whether each device can be given its rows and heads, see ``shares``.
            Left to the compiler, the kernel's partitioning raises where the bias is
            sharded otherwise than the heads; XLA never does.
        deterministic: whether every run must give the same bits; the kernel's
            gradients are summed in the order in which its blocks happen to end.
    """
    (_, queries, heads, width), keys = query, key[1]
    fits = (
        capability >= CAPABILITY
        and shared
        and not deterministic
        and dtype in ("bfloat16", "float16")
        and width % 8 == 0
        and width <= HEAD_DIM
        # Self-attention over an even length: a bias has gradients only there, and one
        # query of a decoder is too little work for it.
        and queries == keys
        and queries % 2 == 0
        # A general mask would be written out in full, as a bias per example.
        and (mask is None or len(mask) == 2)
        # Gradients of a bias per example came with later versions.
        and (bias is None or bias == (1, heads, queries, keys))
    )
    return "cudnn" if fits else "xla"


@functools.cache
def cuda_capability() -> float:
    """Compute capability of the default device; 0 if it is not a CUDA card."""
    device = jax.devices()[0]
    if "cuda" not in device.client.platform_version:
        return 0.0
    return float(device.compute_capability)


def attend(
    query: Float[Array, "B Lq H D"],
    key: Float[Array, "B Lk H D"],
    value: Float[Array, "B Lk H D"],
    *,
    scale: float,
    bias: Float[Array, "1 H Lq Lk"] | None = None,
    mask: Bool[Array, "B Lk"] | Bool[Array, "B 1 Lq Lk"] | None = None,
    chosen: str | None = None,
) -> Float[Array, "B Lq H D"]:
    """As ``models.attention.attend``, which calls this on a GPU.

    A mask of two axes is True up to some length. ``chosen``: "cudnn" or "xla"; None
    asks ``implementation``.
    """
    how = shares.shares(query.shape[0], query.shape[2])
    if chosen is None:
        chosen = implementation(
            query.shape,
            key.shape,
            str(query.dtype),
            bias=None if bias is None else bias.shape,
            mask=None if mask is None else mask.shape,
            capability=cuda_capability(),
            shared=how is not None and shares.known(),
            deterministic=is_deterministic(),
        )
    if chosen == "xla":
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None, :]
        return jax.nn.dot_product_attention(
            query, key, value, bias=bias, mask=mask, scale=scale, implementation="xla"
        )
    given = {}
    if bias is not None:
        given["b"] = bias[0].astype(query.dtype)
    if mask is not None:
        # A sequence of padding attends to its first token: finite, and never read.
        given["m"] = jnp.maximum(mask.sum(-1, dtype=jnp.int32), 1)

    def kernel(query: Array, key: Array, value: Array, *others: Array) -> Array:
        found = dict(zip(given, others))
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            bias=found["b"][None] if "b" in found else None,
            key_value_seq_lengths=found.get("m"),
            scale=scale,
            implementation="cudnn",
        )

    read = "rrr" + "".join(given)
    run = shares.on_mesh(kernel, how or Shares(), read, "r")
    return run(query, key, value, *given.values())
