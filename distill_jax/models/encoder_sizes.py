"""Sizes of an encoder: the switches that tell the families apart."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from distill_jax.io.errors import UserError, near
from distill_jax.models.linear import DTYPES, activation_dtype

ACTIVATIONS = {
    # As torch computes it; jax.nn.gelu goes by erfc, which costs 2.5 times as much.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * np.float32(0.5**0.5))),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
POSITIONS = ("table", "rotary", "buckets", "disentangled", "none")

# d_model, d_ff, heads, layers, embedding_size
_SIZES: dict[str, tuple[int, int, int, int, int]] = {
    "bert-tiny": (128, 512, 2, 2, 128),
    "bert-mini": (256, 1024, 4, 4, 256),
    "bert-small": (512, 2048, 8, 4, 512),
    "bert-medium": (512, 2048, 8, 8, 512),
    "bert-base": (768, 3072, 12, 12, 768),
    "bert-large": (1024, 4096, 16, 24, 1024),
    "minilm-l6": (384, 1536, 12, 6, 384),
    "minilm-l12": (384, 1536, 12, 12, 384),
    "electra-small": (256, 1024, 4, 12, 128),
    "electra-base": (768, 3072, 12, 12, 768),
    "electra-large": (1024, 4096, 16, 24, 1024),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertSizes:
    """The shape of an encoder. The defaults are BERT's; a family sets the others.

    Attributes:
        d_model, d_ff, heads, layers: widths and depth.
        embedding_size: width of the embeddings; a projection to ``d_model`` follows
            them when it differs (ELECTRA).
        max_positions: rows of the position table, the longest possible input.
        eps: added to the variance in every layer normalisation.
        activation: "gelu" is the exact one by erf; "gelu_tanh" the approximation.
        dropout: of hidden states and embeddings; ``attention_dropout`` of weights.
        dtype: of the matrix products; parameters are float32. "int8" is for inference:
            the layers' products are of 8 bits, and all between them is float32.
        remat: recompute each layer in the backward pass instead of keeping its
            activations: "none", "matmuls" (keep the matrix products), or "full".
        pad_id, sep_id: tokens that the mask and the token types are derived from.
        family: under whose names the weights are written, see ``weights.families``.
        positions: "table", "rotary", "buckets" (a table, and T5's bias of relative
            distances, one for all layers), "disentangled" (DeBERTa's distances), or
            "none".
        type_vocab: 0 has no token types.
        norm: "layer" or "rms"; ``norm_bias`` is of layer norms.
        place: of the norms: "post" the residual, "pre" the block, or on "both" sides
            of the block. The last two end with a norm after the last layer.
        embedding_norm, first_norm: whether there is one after the embeddings, and
            in front of the first layer's attention.
        head_size: of one head; None is ``d_model / heads``.
        kv_heads: heads of keys and values; None is as ``heads``.
        query_scale: of the attention's logits; None is ``head_size ** -0.5``.
        logit_cap: logits of attention are ``cap * tanh(logit / cap)``; None has none.
        head_norm: whether each head's query and key are normalised.
        attention_bias, out_bias, up_bias, down_bias: of the projections of attention
            and feed-forward.
        gated: act(gate x) * (up x) instead of act(up x).
        theta, local_theta: of rotary positions, and of those in windowed layers.
        rope_scaling: see ``attention.rotary_table``; of the layers without a window.
        window: greatest distance of a key in the layers that ``windowed`` marks.
        causal: keys after a query are hidden.
        embedding_scale: factor of the embeddings.
        shared: all layers have the parameters of one (ALBERT).
        head_bias: whether the dense layer of a head has a bias.
    """

    vocab_size: int = 30522
    d_model: int = 768
    d_ff: int = 3072
    heads: int = 12
    layers: int = 12
    embedding_size: int | None = None  # None: as d_model
    max_positions: int = 512
    type_vocab: int = 2
    eps: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02
    dtype: str = "float32"
    remat: str = "none"
    pad_id: int = 0
    sep_id: int = 102
    family: str = "bert"
    positions: str = "table"
    norm: str = "layer"
    norm_bias: bool = True
    place: str = "post"
    embedding_norm: bool = True
    first_norm: bool = True
    head_size: int | None = None
    kv_heads: int | None = None
    query_scale: float | None = None
    logit_cap: float | None = None
    head_norm: bool = False
    attention_bias: bool = True
    out_bias: bool = True
    up_bias: bool = True
    down_bias: bool = True
    gated: bool = False
    theta: float = 10000.0
    local_theta: float | None = None
    rope_scaling: tuple = ()
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    causal: bool = False
    embedding_scale: float = 1.0
    shared: bool = False
    head_bias: bool = True
    relative_buckets: int = 32
    relative_max_distance: int = 128

    def __post_init__(self):
        for name in ("rope_scaling", "windowed"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.head_size is None and self.d_model % self.heads:
            raise UserError(
                f"d_model {self.d_model} is not a multiple of {self.heads} heads",
                "choose heads that divides d_model",
            )
        check_choice("BertSizes.activation", self.activation, tuple(ACTIVATIONS))
        check_choice("BertSizes.remat", self.remat, ("none", "matmuls", "full"))
        check_choice("BertSizes.positions", self.positions, POSITIONS)
        check_choice("BertSizes.norm", self.norm, ("layer", "rms"))
        check_choice("BertSizes.place", self.place, ("post", "pre", "both"))
        check_choice("BertSizes.dtype", self.dtype, DTYPES)

    @property
    def activation_dtype(self) -> str:
        return activation_dtype(self.dtype)

    @property
    def is_static(self) -> bool:
        """Whether the encoder is a table of words alone: no special tokens belong."""
        return self.layers == 0

    @property
    def head_dim(self) -> int:
        return self.head_size or self.d_model // self.heads

    def has_window(self, layer: int, length: int) -> bool:
        """Whether a layer's window hides any token of a text."""
        marked = layer < len(self.windowed) and self.windowed[layer]
        return marked and self.window is not None and length > self.window + 1

    @property
    def width(self) -> int:
        """The width of the embeddings."""
        return self.embedding_size or self.d_model

    def forward_flops(self, length: int) -> float:
        """Matmul FLOPs of one sequence's forward pass; embedding look-ups are free.

        Attention is counted in full, 4 L^2 d per layer.
        """
        d, f, inner = self.d_model, self.d_ff, self.heads * self.head_dim
        shared = (self.kv_heads or self.heads) * self.head_dim
        weights = d * (2 * inner + 2 * shared) + (3 if self.gated else 2) * d * f
        layer = 2 * length * weights + 4 * length * length * inner
        project = 2 * length * self.width * d if self.width != d else 0
        return float(self.layers * layer + project)


def bert_sizes(name: str, **overrides: Any) -> BertSizes:
    """The sizes of a published encoder by its name.

    ``bert_sizes("minilm-l6")``; "base" is short for "bert-base".

    Raises:
        UserError: no such name.
    """
    name = f"bert-{name}" if f"bert-{name}" in _SIZES else name
    if name not in _SIZES:
        raise UserError(
            f"no BERT sizes named {name!r}{near(name, _SIZES)}",
            f"known: {', '.join(_SIZES)}",
        )
    fields = ("d_model", "d_ff", "heads", "layers", "embedding_size")
    family = "electra" if name.startswith("electra") else "bert"
    values = {**dict(zip(fields, _SIZES[name])), "family": family}
    return BertSizes(**{**values, **overrides})


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses a value outside of a closed set."""
    if value not in known:
        raise UserError(
            f"{name} = {value!r} is not known", f"choose one of {', '.join(known)}"
        )
