"""Losses of a whole list against an order or grades."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax.losses import lists
from distill_jax.ops import masked, pairs


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
    losses = jnp.sum(_plackett_luce(values, labels, where)[0], -1)
    return reduce_fn(losses, where=jnp.any(where, -1))


def p_listmle(
    scores: Float[Array, "*b N"],
    labels: Float[Array, "*b N"],
    *,
    where: Bool[Array, "*b N"] | None = None,
    temperature: float = 1.0,
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""ListMLE whose first positions weigh most.

    .. math::
        \ell = \sum_j w_j \left(\log \sum_{m \ge j} e^{x_{\pi_m}} - x_{\pi_j}\right),
        \quad w_j = \frac{2^{n-j} - 1}{2^{n-1} - 1}

    Source: Lan et al. 2014, p-ListMLE; their weight :math:`2^{n-j} - 1` divided by that
    of the first position, which overflows at lists of hundreds. A list of one has no
    loss.

    Args:
        scores: [B, N].
        labels: [B, N], higher is better; equal ones in the order of their positions.
        where: [B, N]. A masked doc is neither a term nor in a normaliser.
        temperature: divides the scores.
        reduce_fn: over lists [B] of weighted sums; the mean is over lists with a valid
            doc.
    """
    scores, labels, where = lists.read(scores, labels, where)
    terms, valid = _plackett_luce(scores / temperature, labels, where)
    count = jnp.sum(valid, -1, keepdims=True).astype(terms.dtype)
    place = _places(terms)
    last = jnp.exp2(1.0 - count)
    weights = (jnp.exp2(1.0 - place) - last) / jnp.where(count > 1, 1.0 - last, 1.0)
    losses = jnp.sum(masked.fill(weights * terms, valid), -1)
    return reduce_fn(losses, where=jnp.any(where, -1))


def approx_ndcg(
    scores: Float[Array, "*b N"],
    labels: Float[Array, "*b N"],
    *,
    where: Bool[Array, "*b N"] | None = None,
    temperature: float = 0.1,
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""One minus an nDCG whose ranks are sums of sigmoids.

    .. math::
        \ell = 1 - \frac{1}{\text{maxDCG}} \sum_i \frac{2^{y_i} - 1}
        {\log_2(1 + \hat\pi_i)}, \quad
        \hat\pi_i = 1 + \sum_{j \ne i} \sigma((s_j - s_i) / T)

    Source: Qin et al. 2010; Bruch et al. 2019 for T = 0.1.

    Args:
        scores: [B, N].
        labels: [B, N] grades (0 .. 4, say): the gain is exponential, so raw teacher
            logits do not belong here.
        where: [B, N]. A masked doc takes no rank and has no gain.
        temperature: divides the score differences.
        reduce_fn: over lists [B]; the mean is over lists with a gain.
    """
    scores, labels, where = lists.read(scores, labels, where)
    gains = masked.fill(jnp.exp2(labels) - 1.0, where)
    ranks = pairs.sigmoid_ranks(scores, where, temperature)
    best = -jnp.sort(-gains, -1)
    ideal = jnp.sum(best / jnp.log2(1.0 + _places(best)), -1)
    found = jnp.sum(gains / jnp.log2(1.0 + masked.fill(ranks, where, 1.0)), -1)
    counted = ideal > 0
    losses = 1.0 - found / jnp.where(counted, ideal, 1.0)
    return reduce_fn(losses, where=counted)


def _plackett_luce(
    values: Float[Array, "*b N"],
    labels: Float[Array, "*b N"],
    where: Bool[Array, "*b N"],
) -> tuple[Float[Array, "*b N"], Bool[Array, "*b N"]]:
    """Each position's negative log-likelihood by descending label, and where it is."""
    order = jnp.argsort(-masked.fill(labels, where, masked.LOWEST), -1, stable=True)
    values = jnp.take_along_axis(values, order, -1)
    valid = jnp.take_along_axis(where, order, -1)
    # Padding sorts last; LOWEST gives it no mass, and unlike -inf no nan gradient.
    rest = jax.lax.cumlogsumexp(
        masked.fill(values, valid, masked.LOWEST), axis=values.ndim - 1, reverse=True
    )
    return masked.fill(rest - values, valid), valid


def _places(like: Float[Array, "*b N"]) -> Float[Array, "*b N"]:
    """1 .. N along the last axis."""
    places = jnp.arange(1, like.shape[-1] + 1, dtype=like.dtype)
    return jnp.broadcast_to(places, like.shape)
