"""Losses that look at one document at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax.losses import lists
from distill_jax.ops import masked


def pointwise_cross_entropy(
    scores: Float[Array, "*b N"],
    labels: Float[Array, "*b N"],
    *,
    where: Bool[Array, "*b N"] | None = None,
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""Binary cross-entropy on logits.

    .. math:: \ell_i = -y_i \log\sigma(s_i) - (1 - y_i) \log(1 - \sigma(s_i))

    Source: monoT5 (Nogueira et al. 2020). With ``s = z_true - z_false`` this *is* the
    two-way softmax over the answer words "true" and "false".

    Args:
        scores: [B, N] logits.
        labels: [B, N] in [0, 1]; between them for soft targets.
        where: [B, N]. A masked doc is not counted.
        reduce_fn: over docs [B, N]; the mean is over all valid docs of the batch.
    """
    scores, labels, where = lists.read(scores, labels, where)
    return reduce_fn(jax.nn.softplus(scores) - labels * scores, where=where)


def query_likelihood(
    scores: Float[Array, "*b N"],
    labels: Float[Array, "*b N"],
    *,
    where: Bool[Array, "*b N"] | None = None,
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""Negative log-likelihood of the query, for students that generate it.

    .. math:: \ell_i = -s_i \quad \text{for } y_i > 0

    with :math:`s_i` the (mean) log-probability of the query's tokens given doc i.
    Source: docT5query (Nogueira and Lin 2019), sequence-to-sequence cross-entropy.

    Args:
        scores: [B, N] log-probabilities.
        labels: [B, N]; a doc counts if its label is above 0.
        where: [B, N]. A masked doc is not counted.
        reduce_fn: over docs [B, N]; the mean is over the docs that count.
    """
    scores, labels, where = lists.read(scores, labels, where)
    return reduce_fn(-scores, where=where & (labels > 0))


def mean_squared_error(
    scores: Float[Array, "*b N"],
    labels: Float[Array, "*b N"],
    *,
    where: Bool[Array, "*b N"] | None = None,
    scale: float = 1.0,
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""Squared difference of the student's score and the teacher's, doc by doc.

    .. math:: \ell_i = (c\,s_i - y_i)^2

    Source: Hinton et al. 2015 on logits; the rerankers of ettin were trained so, on the
    teacher's *raw* logits (a sigmoid would press most of them together).

    Args:
        scores: [B, N].
        labels: [B, N] teacher logits.
        where: [B, N]. A masked doc is not counted.
        scale: c, what a score is multiplied by: a cosine cannot reach a logit of 8.
        reduce_fn: over docs [B, N]; the mean is over all valid docs of the batch.
    """
    scores, labels, where = lists.read(scores, labels, where)
    return reduce_fn(jnp.square(scale * scores - labels), where=where)
