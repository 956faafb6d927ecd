"""Losses of a whole list against an order or grades."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax.losses import lists
from distill_jax.ops import masked


def softmax_cross_entropy(
    scores: Float[Array, "*b N"],
    labels: Float[Array, "*b N"],
    *,
    where: Bool[Array, "*b N"] | None = None,
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""Cross-entropy between labels and the softmax of the scores over the list.

    .. math:: \ell = -\sum_i y_i \log \frac{e^{s_i}}{\sum_j e^{s_j}}

    Source: RankT5 (Zhuang et al. 2023); labels are used as they are, not normalised.
    With a one-hot label this is LCE (Gao et al. 2021), InfoNCE over the list.

    Args:
        scores: [B, N].
        labels: [B, N], not negative.
        where: [B, N]. A masked doc is neither in the sum nor in the normaliser.
        reduce_fn: over lists [B]; the mean is over lists with a valid doc.
    """
    scores, labels, where = lists.read(scores, labels, where)
    losses = -jnp.sum(labels * masked.log_softmax(scores, where), -1)
    return reduce_fn(losses, where=jnp.any(where, -1))


def listmle(
    scores: Float[Array, "*b N"],
    labels: Float[Array, "*b N"],
    *,
    where: Bool[Array, "*b N"] | None = None,
    on: Literal["logits", "probabilities"] = "logits",
    temperature: float = 1.0,
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""Negative log-likelihood of the labels' order under Plackett-Luce.

    .. math:: \ell = \sum_j \log \sum_{m \ge j} e^{x_{\pi_m}} - x_{\pi_j}

    with :math:`\pi` the docs by descending label and :math:`x = s / T`, or
    :math:`x = \text{softmax}(s / T)` with ``on="probabilities"``.

    Source: Xia et al. 2008. ``on="probabilities"`` is Intermediate Distillation's
    equation 2 read literally (Li et al. 2024): since x lies in [0, 1] it cannot reach 0
    (its floor is 4.08 for 5 docs, of 4.79 at equal scores). Use it to replicate.

    Args:
        scores: [B, N].
        labels: [B, N], higher is better: of rank numbers give N - rank + 1. Equal
            labels are taken in the order of their positions.
        where: [B, N]. A masked doc is neither a term nor in a normaliser.
        on: "logits" or "probabilities".
        temperature: divides the scores.
        reduce_fn: over lists [B] of sums over positions; the mean is over lists with a
            valid doc.
    """
    scores, labels, where = lists.read(scores, labels, where)
    values = scores / temperature
    if on == "probabilities":
        values = masked.softmax(values, where)
    elif on != "logits":
        raise ValueError(f"on should be 'logits' or 'probabilities'; {on!r} is given.")
    order = jnp.argsort(-masked.fill(labels, where, masked.LOWEST), -1, stable=True)
    values = jnp.take_along_axis(values, order, -1)
    valid = jnp.take_along_axis(where, order, -1)
    # Padding sorts last; LOWEST gives it no mass, and unlike -inf no nan gradient.
    rest = jax.lax.cumlogsumexp(
        masked.fill(values, valid, masked.LOWEST), axis=values.ndim - 1, reverse=True
    )
    losses = jnp.sum(masked.fill(rest - values, valid), -1)
    return reduce_fn(losses, where=jnp.any(where, -1))
