"""Losses: scores and labels of lists to one number.

``loss(scores, labels, *, where=None) -> scalar`` with scores and labels [B, N], higher
is better, logs in nats. A masked doc changes neither loss nor gradient, whatever its
score. Every loss ends in ``reduce_fn(values, where=valid)``; ``masked.mean`` unless
gradient accumulation asks for sums and counts.

>>> import jax.numpy as jnp
>>> float(ranknet(jnp.array([[0.4, 0.0]]), jnp.array([[2.0, 1.0]]))) < 0.6931
True
"""

from distill_jax.losses.contrastive import in_batch_contrastive, no_contrast
from distill_jax.losses.distillation import (
    adr_mse,
    in_batch_kl,
    kl_divergence,
    pairwise_kl,
)
from distill_jax.losses.embeddings import embedding_distance, similarity_matrix
from distill_jax.losses.listwise import (
    approx_ndcg,
    listmle,
    p_listmle,
    softmax_cross_entropy,
)
from distill_jax.losses.mixture import Listwise, Mixture, Term
from distill_jax.losses.pairwise import lambda_loss, margin_mse, ranknet
from distill_jax.losses.pointwise import (
    mean_squared_error,
    pointwise_cross_entropy,
    query_likelihood,
)

__all__ = [
    "Listwise",
    "Mixture",
    "Term",
    "adr_mse",
    "approx_ndcg",
    "embedding_distance",
    "in_batch_contrastive",
    "in_batch_kl",
    "kl_divergence",
    "lambda_loss",
    "listmle",
    "margin_mse",
    "mean_squared_error",
    "no_contrast",
    "p_listmle",
    "pairwise_kl",
    "pointwise_cross_entropy",
    "query_likelihood",
    "ranknet",
    "similarity_matrix",
    "softmax_cross_entropy",
]
