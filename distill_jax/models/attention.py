"""Multi-head attention, masking and dropout: one implementation for every model.

T5 attends without scaling and adds a bias that is learned per relative distance; BERT
scales by ``head_dim ** -0.5`` and has biases on its projections. Both are
``MultiHeadAttention`` with other arguments. The softmax is computed in float32 always.

On a GPU ``gpu_attention`` takes cuDNN's kernel where it fits, on a TPU
``tpu_attention`` has one; neither writes the [B, H, L, L] probabilities. XLA for CPUs
has no such kernel; there the products are laid out by hand and the softmax divides
after the second one (measured on two CPU cores at 16 x 256 tokens: a quarter of the
CPU time of the generic form, 0.8 with gradient).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from distill_jax.models import disentangled, gpu_attention, tpu_attention
from distill_jax.models.linear import Linear
from distill_jax.runtime.placement import platform

# Large enough that exp gives 0, small enough that sums of two stay finite in bfloat16.
MASKED = -1e30


def dropout(
    x: Array, rate: float, key: Array | None, *, broadcast: Sequence[int] = ()
) -> Array:
    """Zeroes entries with probability ``rate`` and rescales the others.

    Args:
        x: anything.
        rate: probability of a zero.
        key: None means inference: ``x`` is returned as it is.
        broadcast: axes that share one mask. T5 shares it along the tokens (T5X's
            ``broadcast_dims=(-2,)``), which also makes the random bits nearly free.
    """
    if key is None or rate == 0.0:
        return x
    shape = list(x.shape)
    for axis in broadcast:
        shape[axis] = 1
    # 16 bits a number: half of the generator's work, and a rate exact to 2 ** -17.
    dropped = round(rate * 2**16)
    keep = jax.random.bits(key, shape, jnp.uint16) >= dropped
    scale = jnp.asarray(1.0 / (1.0 - dropped / 2**16), x.dtype)
    return x * jnp.where(keep, scale, jnp.zeros_like(scale))


def split_key(key: Array | None, number: int) -> Sequence[Array | None]:
    """``number`` independent keys, or as many ``None`` in inference."""
    if key is None:
        return (None,) * number
    return tuple(jax.random.split(key, number))


def dropout_key(rngs: nnx.Rngs | None) -> Array | None:
    """The key of one call. Layers split it further, so rematerialising is safe:
    a stream that counts could not be drawn from inside ``jax.checkpoint``.
    """
    return None if rngs is None else rngs.dropout()


def attend(
    query: Float[Array, "B Lq H D"],
    key: Float[Array, "B Lk H D"],
    value: Float[Array, "B Lk H D"],
    *,
    scale: float = 1.0,
    bias: Float[Array, "#B H Lq Lk"] | None = None,
    mask: Bool[Array, "B Lk"] | Bool[Array, "B 1 Lq Lk"] | None = None,
    rate: float = 0.0,
    dropout_key: Array | None = None,
    cap: float | None = None,
) -> Float[Array, "B Lq H D"]:
    """softmax(scale * query key + bias) value over the keys where ``mask`` is True.

    Args:
        bias: added to the logits, as they are scaled; may be shared by the batch.
        mask: [B, Lk] hides padded keys, which come last; [B, 1, Lq, Lk] is general
            (causal).
        rate, dropout_key: dropout of the probabilities, one mask for all queries.
        cap: scaled logits become ``cap * tanh(logit / cap)`` before the bias (Gemma 2);
            no device's kernel does that.

    Returns:
        the context in the dtype of ``value``. A row without any valid key gets the
        mean of the values, finite on purpose.
    """
    # One mask for all queries of a head: dropping a probability is dropping the value
    # it multiplies, and of those there are L times fewer.
    value = dropout(value, rate, dropout_key, broadcast=(-1,))
    if platform() == "gpu" and cap is None:
        return gpu_attention.attend(
            query, key, value, scale=scale, bias=bias, mask=mask
        )
    tpu = platform() == "tpu" and cap is None
    if tpu and tpu_attention.fits(
        query.shape,
        key.shape,
        bias=None if bias is None else bias.shape,
        mask=None if mask is None else mask.shape,
    ):
        return tpu_attention.attend(
            query, key, value, scale=scale, bias=bias, mask=mask
        )
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    if scale != 1.0:
        query = query * jnp.asarray(scale, query.dtype)
    # Both products as [m, k] @ [k, n] with operands stored so: XLA for CPUs has no
    # other fast form, and transposing [L, D] costs next to nothing beside [L, L].
    logits = _product(query.transpose(0, 2, 1, 3), key.transpose(0, 2, 3, 1))
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    if mask is not None:
        logits = logits + jnp.where(mask, 0.0, MASKED)
    # softmax(x) v = (exp(x) v) / sum(exp(x)): dividing D numbers per query, not Lk.
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    powers = jnp.exp(logits - highest)
    total = jnp.sum(powers, axis=-1, keepdims=True)
    context = _product(powers.astype(value.dtype), value.transpose(0, 2, 1, 3)) / total
    return context.astype(value.dtype).transpose(0, 2, 1, 3)


def _product(a: Float[Array, "B H M K"], b: Float[Array, "B H K N"]) -> Array:
    """Batched a @ b, summed in float32."""
    return jnp.einsum("bhmk,bhkn->bhmn", a, b, preferred_element_type=jnp.float32)


class MultiHeadAttention(nnx.Module):
    """Projections to heads, attention, projection back.

    Attributes:
        query, key, value: kernels [features, heads * head_dim].
        out: kernel [heads * head_dim, features].
    """

    def __init__(
        self,
        features: int,
        heads: int,
        head_dim: int,
        *,
        scale: float = 1.0,
        use_bias: bool = False,
        rate: float = 0.0,
        dtype: str = "float32",
        stddevs: tuple[float, float, float, float] | None = None,
        kv_heads: int | None = None,
        out_bias: bool | None = None,
        norm: Callable[[int], nnx.Module] | None = None,
        cap: float | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the four projections.

        Args:
            stddevs: of the normal initialisers of query, key, value and out.
            kv_heads: heads of keys and values, each shared by several query heads.
            out_bias: of the last projection; None is as ``use_bias``.
            norm: makes the normalisation of each head's query and key; None has none.
            cap: of the logits, see ``attend``.
        """
        inner = heads * head_dim
        shared = (kv_heads or heads) * head_dim
        if stddevs is None:
            stddevs = (features**-0.5,) * 3 + (inner**-0.5,)
        self.heads, self.head_dim = heads, head_dim
        self.scale, self.rate, self.cap = scale, rate, cap

        def linear(size_in, size_out, stddev, use_bias=use_bias):
            return Linear(
                size_in,
                size_out,
                use_bias=use_bias,
                dtype=jnp.dtype(dtype),
                kernel_init=nnx.initializers.normal(stddev),
                rngs=rngs,
            )

        self.query = linear(features, inner, stddevs[0])
        self.key = linear(features, shared, stddevs[1])
        self.value = linear(features, shared, stddevs[2])
        has_bias = use_bias if out_bias is None else out_bias
        self.out = linear(inner, features, stddevs[3], has_bias)
        self.query_norm = None if norm is None else norm(head_dim)
        self.key_norm = None if norm is None else norm(head_dim)

    def __call__(
        self,
        x: Float[Array, "B Lq E"],
        *,
        context: Float[Array, "B Lk E"] | None = None,
        bias: Float[Array, "1 H Lq Lk"] | None = None,
        mask: Array | None = None,
        key: Array | None = None,
        rotary: tuple[np.ndarray, np.ndarray] | None = None,
        distances: Float[Array, "R E"] | None = None,
    ) -> Float[Array, "B Lq E"]:
        """Attends from ``x`` to ``context`` (to itself when None).

        ``rotary``: cosines and sines [Lk, D] of the positions, see ``rotary_table``.
        ``distances``: of all positions, see ``disentangled.DistanceRows``.

        Where only the first position is read, give ``x[:, :1]`` and the whole sequence
        as ``context``: keys and values for all tokens, everything else for one.
        """
        grouped = self.key.out_features != self.query.out_features
        context = x if context is None else context
        query, keys, values = self.query(x), self.key(context), self.value(context)
        query, keys, values = map(self.split, (query, keys, values))
        if self.query_norm is not None and self.key_norm is not None:
            query, keys = self.query_norm(query), self.key_norm(keys)
        if rotary is not None:
            query, keys = rotated(query, rotary), rotated(keys, rotary)
        if distances is not None:
            rows = self.split(self.key(distances)), self.split(self.query(distances))
            bias = self.scale * disentangled.bias(query, keys, *rows)
        if grouped:
            times = self.heads // keys.shape[2]
            keys, values = (jnp.repeat(x, times, axis=2) for x in (keys, values))
        mixed = attend(
            query,
            keys,
            values,
            scale=self.scale,
            bias=bias,
            mask=mask,
            rate=self.rate,
            dropout_key=key,
            cap=self.cap,
        )
        return self.out(mixed.reshape(*mixed.shape[:2], -1))

    def split(self, x: Float[Array, "*B L HD"]) -> Float[Array, "*B L H D"]:
        """The features as heads."""
        return x.reshape(*x.shape[:-1], -1, self.head_dim)


def rotary_table(
    length: int, width: int, theta: float, scaling: tuple = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [length, width] of rotary positions (Su et al. 2021).

    Args:
        width: of a head.
        theta: base of the wavelengths.
        scaling: () or ("linear", factor), or Llama 3's ("llama3", factor, low, high,
            original length): wavelengths longer than the trained context grow.
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    if scaling and scaling[0] == "linear":
        frequencies = frequencies / np.float32(scaling[1])
    elif scaling and scaling[0] == "llama3":
        factor, low, high, original = scaling[1:]
        waves = 2 * np.pi / frequencies
        smooth = (original / waves - low) / (high - low)
        between = (1 - smooth) * frequencies / factor + smooth * frequencies
        slow = np.where(waves > original / low, frequencies / factor, frequencies)
        middle = (waves <= original / low) & (waves >= original / high)
        frequencies = np.where(middle, between, slow).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
    angles = np.concatenate([angles, angles], axis=-1)
    return np.cos(angles), np.sin(angles)


def rotated(
    x: Float[Array, "B L H D"], rotary: tuple[np.ndarray, np.ndarray]
) -> Float[Array, "B L H D"]:
    """``x`` turned by its positions: the halves of a head are the two axes."""
    length, half = x.shape[1], x.shape[-1] // 2
    cos, sin = (jnp.asarray(table[:length, None], x.dtype) for table in rotary)
    turned = jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * cos + turned * sin


class RelativeBias(nnx.Module):
    """T5's bias: one number per head and bucket of the distance key - query."""

    def __init__(
        self,
        heads: int,
        *,
        buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool,
        stddev: float,
        rngs: nnx.Rngs,
    ):
        self.buckets, self.max_distance = buckets, max_distance
        self.bidirectional = bidirectional
        init = nnx.initializers.normal(stddev)
        self.embedding = nnx.Param(init(rngs.params(), (buckets, heads)))

    def __call__(
        self, length: int, key_length: int | None = None
    ) -> Float[Array, "1 H Lq Lk"]:
        """The bias of ``length`` queries on ``key_length`` keys, both counted from 0.

        The distances are known when tracing, and few: one row per distance is looked up
        by a product with one-hot rows, and the rectangle is cut from it by shifting.
        No gather, hence no scatter in the gradient.
        """
        keys = key_length or length
        distances = np.arange(-(length - 1), keys)
        buckets = relative_buckets(
            distances, self.buckets, self.max_distance, self.bidirectional
        )
        one_hot = np.eye(self.buckets, dtype=np.float32)[buckets]
        rows = jnp.einsum(
            "nb,bh->hn",
            one_hot,
            self.embedding[...].astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        return shifted(rows, length, keys)[None]

    def at(self, position: Int[Array, ""], keys: int) -> Float[Array, "1 H 1 Lk"]:
        """The row of one query position that is a traced value (decoding)."""
        table = relative_buckets(
            np.arange(-(keys - 1), keys),
            self.buckets,
            self.max_distance,
            self.bidirectional,
        )
        distance = jnp.arange(keys) - position + (keys - 1)
        rows = self.embedding[...].astype(jnp.float32)[jnp.asarray(table)[distance]]
        return rows.T[None, :, None, :]


def shifted(
    rows: Float[Array, "H R"], length: int, keys: int
) -> Float[Array, "H Lq Lk"]:
    """A Toeplitz rectangle: out[:, i, j] = rows[:, j - i + length - 1].

    One row, padded by one and repeated, falls back by one place per line when it is
    read with its unpadded width.
    """
    heads, width = rows.shape
    wide = jnp.pad(rows, ((0, 0), (0, 1)))
    repeated = jnp.broadcast_to(wide[:, None, :], (heads, length, width + 1))
    flat = repeated.reshape(heads, length * (width + 1))[:, : length * width]
    skewed = flat.reshape(heads, length, width)  # skewed[:, i, c] = rows[:, c - i]
    return skewed[:, :, length - 1 : length - 1 + keys]


@functools.lru_cache(maxsize=256)
def _buckets(
    first: int, last: int, buckets: int, max_distance: int, bidirectional: bool
) -> np.ndarray:
    distance = np.arange(first, last + 1)
    result = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        result += (distance > 0) * buckets
        distance = np.abs(distance)
    else:
        distance = -np.minimum(distance, 0)
    exact = buckets // 2
    safe = np.maximum(distance, 1).astype(np.float32)
    # float32, as the models were trained: float64 moves a border by one position.
    ratio = np.log(safe / np.float32(exact)) / np.float32(
        math.log(max_distance / exact)
    )
    large = exact + (ratio * np.float32(buckets - exact)).astype(np.int64)
    result += np.where(distance < exact, distance, np.minimum(large, buckets - 1))
    result.setflags(write=False)
    return result


def relative_buckets(
    distances: np.ndarray, buckets: int, max_distance: int, bidirectional: bool
) -> np.ndarray:
    """T5's bucket of each distance (key position - query position), contiguous.

    Half of the buckets are exact small distances, the others grow logarithmically up
    to ``max_distance``. Bidirectional attention splits them between both signs.
    """
    return _buckets(
        int(distances[0]), int(distances[-1]), buckets, max_distance, bidirectional
    )
