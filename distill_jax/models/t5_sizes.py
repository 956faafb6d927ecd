"""The sizes of T5, published and small, and how one computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from distill_jax.io.errors import UserError, near
from distill_jax.models.encoder_sizes import ACTIVATIONS
from distill_jax.models.linear import DTYPES, activation_dtype

_POLICIES = {
    "none": None,
    "matmuls": "dots_with_no_batch_dims_saveable",
    "full": "nothing_saveable",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Sizes:
    """The sizes of a T5, and how it computes.

    Attributes:
        decoder_layers: 0 builds an encoder only.
        gated: the GELU-gated feed-forward of T5 1.1 and Flan; False is 1.0's ReLU.
        tied: the output head is the embedding table (T5 1.0).
        scale_logits: whether the decoder's output is scaled by ``d_model ** -0.5``
            before the head. None means as ``tied`` says, which holds for every
            published T5.
        activation: of the feed-forward, see ``encoder_sizes.ACTIVATIONS``; None is
            "gelu_tanh" where it is gated, else "relu".
        layer_bias: each layer has a relative bias of its own (UMT5).
        dropout: rate in training; inference has none.
        dtype: of the matrix products: "float32", "bfloat16", or for inference "int8",
            with float32 between the layers' products. float16 is refused.
        remat: recompute each layer in the backward pass instead of keeping its
            activations: "none", "matmuls" (keep the matrix products), or "full".
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_ff: int = 2048
    heads: int = 8
    d_kv: int = 64
    encoder_layers: int = 6
    decoder_layers: int = 6
    gated: bool = False
    tied: bool = True
    scale_logits: bool | None = None
    activation: str | None = None
    layer_bias: bool = False
    relative_buckets: int = 32
    relative_max_distance: int = 128
    dropout: float = 0.1
    eps: float = 1e-6
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise UserError(
                f"T5 cannot compute in {self.dtype}: it overflows",
                'set dtype to "bfloat16" or "float32"',
            )
        if self.activation not in (None, *ACTIVATIONS):
            raise UserError(
                f"T5Sizes.activation = {self.activation!r} is not known",
                f"choose one of {', '.join(ACTIVATIONS)}",
            )
        if self.remat not in _POLICIES:
            raise UserError(
                f"remat={self.remat!r} is not known{near(self.remat, _POLICIES)}",
                f"set it to one of {', '.join(_POLICIES)}",
            )

    @property
    def feed_forward_activation(self) -> str:
        """A name of ``encoder_sizes.ACTIVATIONS``."""
        return self.activation or ("gelu_tanh" if self.gated else "relu")

    @property
    def activation_dtype(self) -> str:
        return activation_dtype(self.dtype)

    def forward_flops(self, length: int, *, absorbed: bool = True) -> float:
        """Matmul FLOPs to encode ``length`` tokens and decode one step.

        Attention is counted in full; look-ups and the head's few rows are free.

        Args:
            absorbed: as computed here; False is with keys and values of all source
                tokens projected in every decoder layer.
        """
        d, inner = self.d_model, self.heads * self.d_kv
        ffn = (3 if self.gated else 2) * d * self.d_ff
        encoder = 2 * length * (4 * d * inner + ffn) + 4 * length * length * inner
        # Self-attention over one token is value and out only.
        once = 2 * (2 * d * inner + 2 * d * inner + ffn)
        if absorbed:
            cross = 2 * (2 * d * inner) + 4 * length * d * self.heads
        else:
            cross = 2 * length * (2 * d * inner) + 4 * length * inner
        return float(
            self.encoder_layers * encoder + self.decoder_layers * (once + cross)
        )

    def replace(self, **changes: Any) -> T5Sizes:
        return dataclasses.replace(self, **changes)


def _sizes(d_model, d_ff, heads, layers, d_kv=64, **more) -> T5Sizes:
    return T5Sizes(
        d_model=d_model,
        d_ff=d_ff,
        heads=heads,
        d_kv=d_kv,
        encoder_layers=layers,
        decoder_layers=more.pop("decoder_layers", layers),
        **more,
    )


_V1_1 = {"gated": True, "tied": False}
SIZES: dict[str, T5Sizes] = {
    # For two CPU cores: real in everything but size.
    "tiny": _sizes(128, 512, 4, 2, d_kv=32, decoder_layers=1),
    "mini": _sizes(256, 1024, 4, 4, decoder_layers=1),
    "small": _sizes(512, 2048, 8, 6),
    "base": _sizes(768, 3072, 12, 12),
    "large": _sizes(1024, 4096, 16, 24),
    "3b": _sizes(1024, 16384, 32, 24, d_kv=128),
    "11b": _sizes(1024, 65536, 128, 24, d_kv=128),
    # T5 1.1; Flan-T5 has the same shapes.
    "v1_1_small": _sizes(512, 1024, 6, 8, **_V1_1),
    "v1_1_base": _sizes(768, 2048, 12, 12, **_V1_1),
    "v1_1_large": _sizes(1024, 2816, 16, 24, **_V1_1),
    "v1_1_xl": _sizes(2048, 5120, 32, 24, **_V1_1),
    "v1_1_xxl": _sizes(4096, 10240, 64, 24, **_V1_1),
}


def sizes(name: str = "small", **changes: Any) -> T5Sizes:
    """The sizes of a published T5 by name, with changes: ``sizes("base", remat=...)``.

    Raises:
        UserError: no such size.
    """
    if name not in SIZES:
        raise UserError(
            f"no T5 size {name!r}{near(name, SIZES)}", f"one of {', '.join(SIZES)}"
        )
    return dataclasses.replace(SIZES[name], **changes)


def rematerialised(function: Callable, policy: str) -> Callable:
    """``function`` under ``jax.checkpoint`` with the spec's policy."""
    if policy == "none":
        return function
    return jax.checkpoint(
        function, policy=getattr(jax.checkpoint_policies, _POLICIES[policy])
    )
