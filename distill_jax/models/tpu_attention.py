"""Attention on a TPU: a Pallas kernel that never writes the [B, H, L, L] scores.

Sequences of rerankers and retrievers are short, so all scores of one head and row fit
the chip's own memory and the softmax is taken in one piece. T5's bias is the same for
all rows: a block of it is read once and stays while the rows go by. The backward pass
computes the scores again from query and key; nothing but its inputs is kept.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from distill_jax.models import shares
from distill_jax.models.shares import Shares

LANES = 128
LONGEST = 512  # tokens whose scores fit the chip's memory several times over
TOKENS = 1024  # of all rows of one block, in two bytes a number
MASKED = -1e30  # as in ``models.attention``


def fits(
    query: tuple[int, ...],
    key: tuple[int, ...],
    *,
    bias: tuple[int, ...] | None = None,
    mask: tuple[int, ...] | None = None,
) -> bool:
    """Whether the kernel takes these shapes on the mesh that is traced for.

    Args:
        query, key: shapes [B, L, H, D].
        bias: its shape, None without.
        mask: its shape; a general one would be read per row.
    """
    (rows, length, heads, width), keys = query, key[1]
    return (
        shares.known()
        and length == keys
        and length % 16 == 0
        and length <= LONGEST
        and (LANES % width == 0 or width % LANES == 0)
        and (mask is None or len(mask) == 2)
        and (bias is None or bias == (1, heads, length, keys))
        # Of a bias and of its gradient all heads of a block are held, twice each.
        and (bias is None or LANES // width * length**2 <= 2 * LONGEST**2)
        and _shares(rows, heads, width) is not None
    )


def _shares(rows: int, heads: int, width: int) -> Shares | None:
    return shares.shares(rows, heads, max(1, LANES // width))


def attend(
    query: Float[Array, "B L H D"],
    key: Float[Array, "B L H D"],
    value: Float[Array, "B L H D"],
    *,
    scale: float,
    bias: Float[Array, "1 H L L"] | None = None,
    mask: Bool[Array, "B L"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B L H D"]:
    """As ``models.attention.attend``, for what ``fits``; on each device its share.

    Args:
        interpret: whether the kernel runs as plain operations (on a CPU).
    """
    rows, length, heads, width = query.shape
    if scale != 1.0:
        query = query * jnp.asarray(scale, query.dtype)
    # Features as the projections write them: heads of 64 alone would be padded to 128.
    flat = [x.reshape(rows, length, heads * width) for x in (query, key, value)]
    hidden = jnp.zeros((rows, 1, length), jnp.float32)
    if mask is not None:
        hidden = jnp.where(mask, 0.0, MASKED)[:, None].astype(jnp.float32)
    table = None if bias is None else bias[0].astype(jnp.float32)
    how = _shares(rows, heads, width)
    assert how is not None
    found: Any = _attention(width, how, interpret, *flat, table, hidden)
    return found.reshape(rows, length, heads, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(width, how, interpret, query, key, value, bias, hidden):
    run = functools.partial(_forward, width, interpret)
    if bias is None:
        bare = shares.on_mesh(
            lambda q, k, v, m: run(q, k, v, None, m), how, "rrrm", "r"
        )
        return bare(query, key, value, hidden)
    return shares.on_mesh(run, how, "rrrbm", "r")(query, key, value, bias, hidden)


def _keep(width, how, interpret, *arrays):
    return _attention(width, how, interpret, *arrays), arrays


def _gradients(width, how, interpret, arrays, gradient):
    query, key, value, bias, hidden = arrays
    run = functools.partial(_backward, width, interpret)
    nothing = jnp.zeros_like(hidden)
    if bias is None:
        found = shares.on_mesh(
            lambda q, k, v, m, g: run(q, k, v, None, m, g)[:3], how, "rrrmr", "rrr"
        )(query, key, value, hidden, gradient)
        return (*found, None, nothing)

    def summed(*shares_of_rows: Any) -> tuple:
        *found, of_bias = run(*shares_of_rows)
        axes = how.rows
        return (*found, jax.lax.psum(of_bias, axes) if axes else of_bias)

    whole = shares.on_mesh(summed, how, "rrrbmr", "rrrb")
    return (*whole(query, key, value, bias, hidden, gradient), nothing)


_attention.defvjp(_keep, _gradients)


def _blocks(width: int, x: Array) -> tuple:
    """(grid, heads of a block, specifications of rows, of the bias, of the mask)."""
    rows, length, features = x.shape
    heads = max(1, LANES // width)
    most = max(1, TOKENS * 2 // x.dtype.itemsize // length)
    each = next(n for n in range(most, 0, -1) if rows % n == 0)
    grid = (features // (heads * width), rows // each)
    return (
        grid,
        heads,
        pl.BlockSpec((each, length, heads * width), lambda h, r: (r, 0, h)),
        pl.BlockSpec((heads, length, length), lambda h, r: (h, 0, 0)),
        pl.BlockSpec((each, 1, length), lambda h, r: (r, 0, 0)),
    )


def _how(interpret: bool) -> dict:
    parameters = pltpu.CompilerParams(
        dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=64 << 20
    )
    return {"interpret": interpret, "compiler_params": parameters}


def _forward(width, interpret, query, key, value, bias, hidden):
    grid, heads, row, table, mask = _blocks(width, query)

    def kernel(q_ref, k_ref, v_ref, *refs):
        *tables, mask_ref, out_ref = refs

        def one(r, carry):
            q, k, v = q_ref[r], k_ref[r], v_ref[r]
            out = jnp.zeros(q.shape, jnp.float32)
            for head in range(heads):
                powers, total = _softmax(
                    _of_head(q, head, width),
                    k,
                    tables[0][head] if tables else None,
                    mask_ref[r],
                )
                mixed = _dot(powers.astype(v.dtype), v, 1, 0) / total
                out = out + _of_head(mixed, head, width)
            out_ref[r] = out.astype(out_ref.dtype)
            return carry

        jax.lax.fori_loop(0, q_ref.shape[0], one, 0)

    given = [query, key, value, *([] if bias is None else [bias]), hidden]
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[row] * 3 + ([] if bias is None else [table]) + [mask],
        out_specs=row,
        out_shape=jax.ShapeDtypeStruct(query.shape, value.dtype),
        **_how(interpret),
    )(*given)


def _backward(width, interpret, query, key, value, bias, hidden, gradient):
    grid, heads, row, table, mask = _blocks(width, query)

    def kernel(q_ref, k_ref, v_ref, *refs):
        read = () if bias is None else refs[:1]
        mask_ref, g_ref, dq_ref, dk_ref, dv_ref, *sums = refs[len(read) :]

        @pl.when(pl.program_id(1) == 0)
        def _():
            for total in sums:
                total[...] = jnp.zeros_like(total)

        def one(r, carry):
            q, k, v, g = q_ref[r], k_ref[r], v_ref[r], g_ref[r]
            dq = dk = dv = jnp.zeros(q.shape, jnp.float32)
            for head in range(heads):
                own, given = _of_head(q, head, width), _of_head(g, head, width)
                powers, total = _softmax(
                    own, k, read[0][head] if read else None, mask_ref[r]
                )
                weights = powers / total
                slopes = _dot(given, v, 1, 1)
                mean = jnp.sum(weights * slopes, axis=-1, keepdims=True)
                slopes = weights * (slopes - mean)
                for sum_of in sums:
                    sum_of[head] += slopes
                slopes = slopes.astype(q.dtype)
                dq = dq + _of_head(_dot(slopes, k, 1, 0), head, width)
                dk = dk + _dot(slopes, own, 0, 0)
                dv = dv + _dot(weights.astype(g.dtype), given, 0, 0)
            dq_ref[r] = dq.astype(dq_ref.dtype)
            dk_ref[r] = dk.astype(dk_ref.dtype)
            dv_ref[r] = dv.astype(dv_ref.dtype)
            return carry

        jax.lax.fori_loop(0, q_ref.shape[0], one, 0)

    tables = [] if bias is None else [bias]
    outputs = [query, key, value, *tables]
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[row] * 3 + [table] * len(tables) + [mask, row],
        out_specs=[row] * 3 + [table] * len(tables),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        **_how(interpret),
    )(query, key, value, *tables, hidden, gradient)


def _of_head(x: Array, head: int, width: int) -> Array:
    """``x`` [L, heads * D] with zeros outside of one head.

    A product sums over 128 features whatever is in them, so heads need not be cut
    out.
    """
    if x.shape[1] == width:
        return x
    place = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) // width
    return jnp.where(place == head, x, jnp.zeros_like(x))


def _softmax(query: Array, key: Array, bias: Array | None, hidden: Array) -> tuple:
    """(powers [L, L], their sums [L, 1]) in float32."""
    scores = _dot(query, key, 1, 1)
    if bias is not None:
        scores = scores + bias
    scores = scores + hidden
    powers = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return powers, jnp.sum(powers, axis=-1, keepdims=True)


def _dot(a: Array, b: Array, over_a: int, over_b: int) -> Array:
    return jax.lax.dot_general(
        a, b, (((over_a,), (over_b,)), ((), ())), preferred_element_type=jnp.float32
    )
