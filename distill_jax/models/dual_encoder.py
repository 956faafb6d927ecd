"""Dual encoders: a query vector, a document vector, and their inner product.

DPR, GTR / Sentence-T5 / t5x_retrieval, Contriever, BGE and MiniLM are all this module
with other pooling, projection and normalisation. Vectors and scores are float32.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from distill_jax.batches import DualBatch, VectorBatch
from distill_jax.io.errors import UserError
from distill_jax.models.encoder_sizes import check_choice
from distill_jax.models.encoder_spec import EncoderSpec, build_encoder, pad_id
from distill_jax.models.pooling import POOLS
from distill_jax.ops.masked import token_mask
from distill_jax.ops.similarity import normalise
from distill_jax.ops.vector_form import VectorForm

POOLINGS = ("cls", *POOLS)
SIMILARITIES = ("dot", "cosine")
ACTIVATIONS = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
}

# Scores are divided by temperatures down to 0.01: an accelerator's bfloat16 or tf32
# products would be felt, and the product is small beside the encoders.
PRECISION = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualEncoderSpec(EncoderSpec):
    """A dual encoder. Backbone, prefixes and lengths: see ``EncoderSpec``.

    Attributes:
        tied: one tower for queries and documents.
        pooling: "cls" reads position 0, "last" the last token, the others all tokens:
            "mean", "max", "mean_sqrt_len" and "weightedmean" (see ``pooling``).
        projection: width of a linear layer after the pooling; None adds none.
        projection_bias, projection_activation: of that layer.
        more_projections: (width, bias, activation) of each layer after it.
        truncate_dim: number of leading features kept (Matryoshka); None keeps all.
        normalise: whether vectors are scaled to unit length.
        similarity: "dot", or "cosine" which normalises for scoring in any case.
    """

    kind: ClassVar[str] = "dual_encoder"
    vectors: ClassVar[VectorForm] = VectorForm.ONE

    tied: bool = True
    pooling: str = "mean"
    projection: int | None = None
    projection_bias: bool = False
    projection_activation: str = "identity"
    more_projections: tuple[tuple[int, bool, str], ...] = ()
    truncate_dim: int | None = None
    normalise: bool = True
    similarity: str = "dot"

    def __post_init__(self):
        super().__post_init__()
        check_choice("DualEncoderSpec.pooling", self.pooling, POOLINGS)
        check_choice("DualEncoderSpec.similarity", self.similarity, SIMILARITIES)
        check_choice(
            "DualEncoderSpec.projection_activation",
            self.projection_activation,
            tuple(ACTIVATIONS),
        )
        more = tuple((int(w), bool(b), str(a)) for w, b, a in self.more_projections)
        object.__setattr__(self, "more_projections", more)
        for _, _, activation in more:
            check_choice(
                "DualEncoderSpec.more_projections", activation, tuple(ACTIVATIONS)
            )
        if getattr(self.backbone, "is_static", False) and self.pooling != "mean":
            raise UserError(
                f"static embeddings with pooling={self.pooling!r}",
                'their pooling is "mean"',
            )
        if more and self.projection is None:
            raise UserError("more_projections without a projection", "set projection")

    @property
    def width(self) -> int:
        """D, the number of features of a vector."""
        whole = self.projection or self.backbone.d_model
        whole = self.more_projections[-1][0] if self.more_projections else whole
        return min(self.truncate_dim or whole, whole)

    def build(self, rngs: nnx.Rngs) -> DualEncoder:
        return DualEncoder(self, rngs=rngs)


def without_last(spec: DualEncoderSpec, tower: dict) -> tuple[Any, dict, dict]:
    """A spec and a tower's parameters without the last linear layer, and that layer.

    Args:
        spec: with a projection.
    """
    tower = dict(tower)
    if not spec.more_projections:
        layer = tower.pop("projection")
        none = {"projection_bias": False, "projection_activation": "identity"}
        return dataclasses.replace(spec, projection=None, **none), tower, layer
    more = spec.more_projections[:-1]
    layers = dict(tower.pop("project"))
    layer = layers.pop(f"dense_{len(more)}")
    if more:
        tower["project"] = layers
    return dataclasses.replace(spec, more_projections=more), tower, layer


def without_identity(spec: DualEncoderSpec, tower: dict) -> tuple[Any, dict]:
    """A spec and a tower's parameters without a last layer that changes nothing."""
    if spec.projection is None:
        return spec, tower
    shorter, rest, layer = without_last(spec, tower)
    activation = spec.projection_activation
    if spec.more_projections:
        activation = spec.more_projections[-1][2]
    kernel = np.asarray(layer["kernel"])
    same = activation == "identity" and not np.any(layer.get("bias", 0))
    if same and np.array_equal(kernel, np.eye(*kernel.shape, dtype=kernel.dtype)):
        return shorter, rest
    return spec, tower


class Projections(nnx.Module):
    """The linear layers after the first projection, ``dense_0`` onwards."""

    def __init__(self, spec: DualEncoderSpec, *, rngs: nnx.Rngs):
        assert spec.projection is not None  # the spec's own check
        width = spec.projection
        self.activations = [activation for _, _, activation in spec.more_projections]
        for i, (features, bias, _) in enumerate(spec.more_projections):
            setattr(
                self,
                f"dense_{i}",
                nnx.Linear(
                    width, features, use_bias=bias, precision=PRECISION, rngs=rngs
                ),
            )
            width = features

    def __call__(self, x: Float[Array, "M D"]) -> Float[Array, "M E"]:
        for i, activation in enumerate(self.activations):
            x = ACTIVATIONS[activation](getattr(self, f"dense_{i}")(x))
        return x


class Tower(nnx.Module):
    """Tokens to one float32 vector."""

    def __init__(self, spec: DualEncoderSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        self.encoder = build_encoder(spec.backbone, rngs)
        if spec.projection is None:
            self.projection = None
        else:
            self.projection = nnx.Linear(
                spec.backbone.d_model,
                spec.projection,
                use_bias=spec.projection_bias,
                precision=PRECISION,
                kernel_init=nnx.initializers.lecun_normal(),
                rngs=rngs,
            )
        more = Projections(spec, rngs=rngs) if spec.more_projections else None
        self.project = more

    def __call__(
        self, tokens: Int[Array, "M L"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "M D"]:
        x = self.embed(tokens, rngs=rngs)
        unit = self.spec.normalise and self.spec.truncate_dim is None
        needed = self.spec.similarity == "cosine" and not unit
        return normalise(x) if needed else x

    def embed(
        self, tokens: Int[Array, "M L"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "M D"]:
        """The vector before the normalisation that only the cosine asks for."""
        spec = self.spec
        mask = token_mask(tokens, pad_id(spec.backbone))
        if spec.pooling == "cls":
            x = self.encoder(tokens, mask=mask, positions=1, rngs=rngs)[:, 0]
            x = x.astype(jnp.float32)
        else:
            hidden = self.encoder(tokens, mask=mask, rngs=rngs)
            x = POOLS[spec.pooling](hidden, mask)
        if self.projection is not None:
            x = ACTIVATIONS[spec.projection_activation](self.projection(x))
        if self.project is not None:
            x = self.project(x)
        x = normalise(x) if spec.normalise else x
        # Truncated after the norm, as sentence-transformers does.
        return x[:, : spec.width]


class TwoTowers(nnx.Module):
    """Queries and documents to vectors apart; the score is their inner product."""

    def __init__(self, spec: Any, *, rngs: nnx.Rngs):
        self.spec = spec
        if spec.tied:
            self.tower = self.build_tower(spec, rngs)
        else:
            self.query_tower = self.build_tower(spec, rngs)
            self.doc_tower = self.build_tower(spec, rngs)

    @abc.abstractmethod
    def build_tower(self, spec: Any, rngs: nnx.Rngs) -> Any:
        """A module that maps tokens [M, L] to what this kind compares."""

    def encode_queries(
        self, tokens: Int[Array, "M L"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "M D"]:
        """Vectors whose inner product with ``encode_docs`` is the score."""
        tower = self.tower if self.spec.tied else self.query_tower
        return tower(tokens, rngs=rngs)

    def encode_docs(
        self, tokens: Int[Array, "M L"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "M D"]:
        """As ``encode_queries``, for documents."""
        tower = self.tower if self.spec.tied else self.doc_tower
        return tower(tokens, rngs=rngs)

    def represent(
        self, batch: DualBatch | VectorBatch, *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Array]:
        """``q`` [B, D] and ``d`` [B, N, D], float32, ready for the inner product."""
        queries = self.encode_queries(batch.query_tokens, rngs=rngs)
        if isinstance(batch, VectorBatch):
            docs = jax.lax.stop_gradient(batch.doc_vectors)
            cosine = self.spec.similarity == "cosine"
            return {"q": queries, "d": normalise(docs) if cosine else docs}
        b, n, length = batch.doc_tokens.shape
        docs = self.encode_docs(batch.doc_tokens.reshape(b * n, length), rngs=rngs)
        return {"q": queries, "d": docs.reshape(b, n, -1)}

    def scores(self, rep: dict[str, Array], batch: Any = None) -> Float[Array, "B N"]:
        """Each query against its own documents."""
        return jnp.einsum("bd,bnd->bn", rep["q"], rep["d"], precision=PRECISION)

    def cross_scores(
        self, rep: dict[str, Array], batch: Any = None
    ) -> Float[Array, "B B N"]:
        """Query i against document n of query j."""
        return jnp.einsum("id,jnd->ijn", rep["q"], rep["d"], precision=PRECISION)

    def __call__(
        self, batch: DualBatch, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B N"]:
        return self.scores(self.represent(batch, rngs=rngs), batch)


class DualEncoder(TwoTowers):
    """One vector for a text."""

    def build_tower(self, spec: DualEncoderSpec, rngs: nnx.Rngs) -> Tower:
        return Tower(spec, rngs=rngs)
