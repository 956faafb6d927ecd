"""What reads BERT's and ELECTRA's hidden states: classifiers and vocabulary heads.

Each is the formula of one ``transformers`` class, so that its weights carry over.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from distill_jax.models.attention import dropout, dropout_key
from distill_jax.models.bert import ACTIVATIONS, linear, norm_of
from distill_jax.models.encoder_sizes import BertSizes


class BertClassifier(nnx.Module):
    """transformers' BertForSequenceClassification: pooler with tanh, then linear."""

    def __init__(self, sizes: BertSizes, *, rngs: nnx.Rngs, num_labels: int = 1):
        self.pooler = linear(sizes.d_model, sizes.d_model, sizes, rngs)
        self.classifier = linear(sizes.d_model, num_labels, sizes, rngs)
        self.rate = sizes.dropout

    def __call__(
        self, first: Float[Array, "M D"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "M C"]:
        x = jnp.tanh(self.pooler(first))
        return _logits(self.classifier, dropout(x, self.rate, dropout_key(rngs)))


class DenseClassifier(nnx.Module):
    """A dense layer, an activation, perhaps a norm, and the output.

    The heads of ELECTRA (gelu), DistilBERT (relu) and ModernBERT (gelu and norm).
    """

    activation = "gelu"
    has_norm = False

    def __init__(self, sizes: BertSizes, *, rngs: nnx.Rngs, num_labels: int = 1):
        bias = sizes.head_bias
        self.dense = linear(sizes.d_model, sizes.d_model, sizes, rngs, bias)
        self.norm = norm_of(sizes) if self.has_norm else None
        self.out_proj = linear(sizes.d_model, num_labels, sizes, rngs)
        self.rate = sizes.dropout

    def __call__(
        self, first: Float[Array, "M D"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "M C"]:
        x = self.dense(dropout(first, self.rate, dropout_key(rngs)))
        x = ACTIVATIONS[self.activation](x)
        x = x if self.norm is None else self.norm(x)
        return _logits(self.out_proj, dropout(x, self.rate, dropout_key(rngs)))


class ElectraClassifier(DenseClassifier):
    """transformers' ElectraForSequenceClassification: dense, gelu, linear."""


class DistilBertClassifier(DenseClassifier):
    """transformers' DistilBertForSequenceClassification: dense, relu, linear."""

    activation = "relu"


class ModernBertClassifier(DenseClassifier):
    """transformers' ModernBertForSequenceClassification: dense, gelu, norm, linear."""

    has_norm = True


class LinearClassifier(nnx.Module):
    """[CLS] to one score without pooler or bias, as monoELECTRA has it."""

    def __init__(self, sizes: BertSizes, *, rngs: nnx.Rngs, num_labels: int = 1):
        self.linear = linear(sizes.d_model, num_labels, sizes, rngs, use_bias=False)

    def __call__(
        self, first: Float[Array, "M D"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "M C"]:
        return _logits(self.linear, first)


CLASSIFIERS = {
    "bert_classifier": BertClassifier,
    "electra_classifier": ElectraClassifier,
    "distilbert_classifier": DistilBertClassifier,
    "modernbert_classifier": ModernBertClassifier,
    "linear": LinearClassifier,
}


class VocabularyHead(nnx.Module):
    """Hidden states to logits over the vocabulary, tied to the word embeddings.

    The masked language model heads of BERT (transform and decoder) and ELECTRA
    (generator predictions and head) are this one formula; ELECTRA's goes down to
    the width of its embeddings, and its activation is always the exact gelu.
    """

    def __init__(self, sizes: BertSizes, *, rngs: nnx.Rngs, activation: str = "gelu"):
        self.project = linear(sizes.d_model, sizes.width, sizes, rngs, sizes.head_bias)
        self.norm = norm_of(sizes, sizes.width)
        self.bias = nnx.Param(jnp.zeros((sizes.vocab_size,), jnp.float32))
        self.activation = activation

    def transform(self, hidden: Float[Array, "*any D"]) -> Float[Array, "*any E"]:
        """What is multiplied with the embedding table."""
        return self.norm(ACTIVATIONS[self.activation](self.project(hidden)))

    def __call__(
        self, hidden: Float[Array, "*any D"], table: Float[Array, "V E"]
    ) -> Float[Array, "*any V"]:
        x = self.transform(hidden)
        logits = jnp.einsum(
            "...e,ve->...v",
            x,
            table.astype(x.dtype),
            preferred_element_type=jnp.float32,
        )
        return logits + self.bias[...]


def _logits(last: nnx.Linear, x: Float[Array, "M D"]) -> Float[Array, "M C"]:
    """The last product in float32: scores are compared, so they are not rounded."""
    y = x.astype(jnp.float32) @ last.kernel[...]
    return y if last.bias is None else y + last.bias[...]
