"""The linear layer that all models share, in floats or for inference in 8 bits.

W8A8 (Dettmers et al. 2022, arXiv 2208.07339, without the outliers' own product): a
weight has one scale a column, found once; an activation one a row, found in each call.
A row is a token, so a token with great values does not make the others coarse. Great
features of all tokens are another matter: the layers that read the residual stream
have small weights for them, and gains move one into the other (Xiao et al. 2023,
arXiv 2211.10438, here from the weights alone).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8

DTYPES = ("float32", "bfloat16", "int8")
LIMIT = 127


def activation_dtype(dtype: str) -> str:
    """The dtype between the products: 8 bits hold only what is multiplied."""
    return "float32" if dtype == "int8" else dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised:
    """A kernel [I, O] as ``codes * scales * gains``; replaces a float kernel.

    Attributes:
        codes: in -127..127.
        scales: of each column, the greatest magnitude / 127.
        gains: of each row, what an input is multiplied with before it is rounded.
    """

    codes: Int8[Array, "I O"]
    scales: Float[Array, "O"]
    gains: Float[Array, "I"] | None = None

    def whole(self) -> Float[Array, "I O"]:
        kernel = self.codes.astype(jnp.float32) * self.scales
        return kernel if self.gains is None else kernel * self.gains[:, None]


def rounded(
    x: Float[Array, "*any"], axis: int
) -> tuple[Int8[Array, "*any"], Float[Array, "*any"]]:
    """Codes of ``x`` and the scales along ``axis``, kept as a dimension of one."""
    greatest = jnp.max(jnp.abs(x), axis, keepdims=True)
    scales = jnp.where(greatest > 0, greatest, 1.0) / LIMIT
    return jnp.round(x / scales).astype(jnp.int8), scales


def quantised(kernel: Float[Array, "I O"], *, balanced: bool = False) -> Quantised:
    """A float kernel in 8 bits; each weight is off by half a step at most.

    Args:
        balanced: rows are scaled to one size first, and inputs multiplied with what
            theirs was: a great feature that is read by small weights counts for what
            it adds. For kernels that read the residual stream. (MiniLM, value: a
            25th of the error of its vectors; it makes the feed-forward's second
            product worse, whose great inputs are the ones that matter.)
    """
    kernel = jnp.asarray(kernel, jnp.float32)
    gains = None
    if balanced:
        size = jnp.sqrt(jnp.mean(jnp.square(kernel), 1))
        gains = jnp.where(size > 0, size, 1.0)
        kernel = kernel / gains[:, None]
    codes, scales = rounded(kernel, 0)
    return Quantised(codes, scales[0], gains)


def product(x: Float[Array, "*any I"], kernel: Quantised) -> Float[Array, "*any O"]:
    """``x @ kernel``, float32; the sums are exact in int32 up to I = 133,000."""
    x = x.astype(jnp.float32)
    codes, scales = rounded(x if kernel.gains is None else x * kernel.gains, -1)
    sums = jax.lax.dot_general(
        codes,
        kernel.codes,
        (((x.ndim - 1,), (0,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    return sums.astype(jnp.float32) * scales * kernel.scales


class Linear(nnx.Linear):
    """``x @ kernel + bias``; in 8 bits where the kernel is ``Quantised``."""

    def __call__(self, inputs: Array, out_sharding: None = None) -> Array:
        kernel = self.kernel.get_value()
        if not isinstance(kernel, Quantised):
            return super().__call__(inputs, out_sharding)
        y = product(inputs, kernel)
        y = y if self.bias is None else y + self.bias[...]
        return y.astype(self.dtype)

    def weights(self) -> Float[Array, "I O"]:
        """The kernel in floats, whatever its storage."""
        kernel = self.kernel.get_value()
        return kernel.whole() if isinstance(kernel, Quantised) else kernel
