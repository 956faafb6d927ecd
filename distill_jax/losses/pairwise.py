"""Losses over the pairs (i, j) of a list that a teacher or a judge orders i over j."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax.losses import lists
from distill_jax.ops import masked, pairs


def ranknet(
    scores: Float[Array, "*b N"],
    labels: Float[Array, "*b N"],
    *,
    where: Bool[Array, "*b N"] | None = None,
    temperature: float = 1.0,
    weight: Literal["difference", "squared"] | None = None,
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""RankNet: logistic loss on the score difference of every ordered pair.

    .. math:: \ell_{ij} = \log(1 + e^{(s_j - s_i) / T}) \quad \text{for } y_i > y_j

    Source: Burges et al. 2005; the loss of TWOLAR and Rank-DistiLLM. TWOLAR's equation
    2 prints the difference the other way round; its code, RankGPT's and lightning-ir's
    compute this one and take the mean over pairs.

    Args:
        scores: [B, N].
        labels: [B, N], higher is better. Ties make no pair.
        where: [B, N]. A masked doc is in no pair.
        temperature: divides the scores (lightning-ir's option multiplies them).
        weight: multiplies each pair by y_i - y_j ("difference") or by y_i^2 - y_j^2
            ("squared"), as RankGPT's options do; the mean still divides by the number
            of pairs.
        reduce_fn: over pairs [B, N, N]; the mean is over all pairs of the batch, so a
            longer list weighs more. 0 when there is no pair.
    """
    scores, labels, where = lists.read(scores, labels, where)
    losses = jax.nn.softplus(-pairs.differences(scores) / temperature)
    if weight == "difference":
        losses = losses * pairs.differences(labels)
    elif weight == "squared":
        losses = losses * pairs.differences(labels**2)
    elif weight is not None:
        raise ValueError(
            f"weight should be 'difference', 'squared' or None; {weight!r} is given."
        )
    return reduce_fn(losses, where=pairs.preferences(labels, where))


def margin_mse(
    scores: Float[Array, "*b N"],
    labels: Float[Array, "*b N"],
    *,
    where: Bool[Array, "*b N"] | None = None,
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""Squared difference between the student's margin and the teacher's.

    .. math:: \ell_{ij} = ((s_i - s_j) - (y_i - y_j))^2 \quad \text{for } y_i > y_j

    Source: Hofstaetter et al. 2020 (one positive, one negative); here over all pairs of
    a list, as lightning-ir's SupervisedMarginMSE. Labels must be the teacher's *raw*
    logits: after a sigmoid all margins lie in (-1, 1).

    Args:
        scores: [B, N].
        labels: [B, N], higher is better. Ties make no pair.
        where: [B, N]. A masked doc is in no pair.
        reduce_fn: over pairs [B, N, N]; the mean is over all pairs of the batch.
    """
    scores, labels, where = lists.read(scores, labels, where)
    losses = jnp.square(pairs.differences(scores) - pairs.differences(labels))
    return reduce_fn(losses, where=pairs.preferences(labels, where))


def lambda_loss(
    scores: Float[Array, "*b N"],
    labels: Float[Array, "*b N"],
    *,
    where: Bool[Array, "*b N"] | None = None,
    k: int | None = None,
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""LambdaLoss with the nDCG-2 weighting.

    .. math::
        \ell = \sum_{y_i > y_j} \mu_{ij} \, |G_i - G_j| \,
               \left|\tfrac{1}{D(|r_i - r_j|)} - \tfrac{1}{D(|r_i - r_j| + 1)}\right|
               \log(1 + e^{s_j - s_i})

    with gains :math:`G = (2^y - 1) / \text{maxDCG}`, discounts
    :math:`D(r) = \log_2(1 + r)` and :math:`r` the ranks by the current scores (no
    gradient flows through them).

    Source: Wang et al. 2018. With ``k``: Jagerman et al. 2022, LambdaLoss@K, where
    :math:`\mu_{ij} = 1 / (1 - 1 / D(\max(r_i, r_j)))` if one of the two is ranked below
    k and 1 otherwise, and maxDCG is cut at k.

    Args:
        scores: [B, N]. Equal scores are ranked by position.
        labels: [B, N] grades (0 .. 4, say): the gain is exponential, so raw teacher
            logits or rank numbers do not belong here.
        where: [B, N]. A masked doc is in no pair and takes no rank.
        k: the cut-off of the nDCG that is optimised; None for the whole list.
        reduce_fn: over lists [B]; the mean is over lists with a valid doc.
    """
    scores, labels, where = lists.read(scores, labels, where)
    ranks = _ranks(jax.lax.stop_gradient(scores), where)
    gains = jnp.exp2(labels) - 1.0
    ideal_ranks = _ranks(labels, where)
    counted = where if k is None else where & (ideal_ranks <= k)
    ideal = jnp.sum(masked.fill(gains * _discount(ideal_ranks), counted), -1)
    gains = gains / jnp.expand_dims(
        jnp.where(ideal > 0, ideal, jnp.ones_like(ideal)), -1
    )

    valid = pairs.preferences(labels, where)
    apart = jnp.where(valid, jnp.abs(pairs.differences(ranks)), 1.0)
    weights = jnp.abs(pairs.differences(gains)) * (
        _discount(apart) - _discount(apart + 1.0)
    )
    if k is not None:
        lower = jnp.maximum(jnp.expand_dims(ranks, -1), jnp.expand_dims(ranks, -2))
        lower = jnp.where(valid, lower, 2.0)
        below = lower > k
        weights = jnp.where(below, weights / (1.0 - _discount(lower)), weights)
    losses = weights * jax.nn.softplus(-pairs.differences(scores))
    return reduce_fn(
        jnp.sum(masked.fill(losses, valid), (-2, -1)), where=jnp.any(where, -1)
    )


def _discount(ranks: Array) -> Array:
    return 1.0 / jnp.log2(1.0 + ranks)


def _ranks(values: Array, where: Array) -> Array:
    """Places 1 .. N by descending value, ties by position, masked items last."""
    order = jnp.argsort(
        -masked.fill(values, where, masked.LOWEST), axis=-1, stable=True
    )
    return (jnp.argsort(order, axis=-1) + 1).astype(values.dtype)
