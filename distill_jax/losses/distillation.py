"""Losses against a teacher's distribution, pair probabilities or ranks."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from distill_jax.losses import lists
from distill_jax.ops import masked, pairs


def kl_divergence(
    scores: Float[Array, "*b N"],
    labels: Float[Array, "*b N"],
    *,
    where: Bool[Array, "*b N"] | None = None,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    confidence: float = 0.0,
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""KL divergence of the student's softmax over the list from the teacher's.

    .. math::
        \ell = \sum_i p_i (\log p_i - \log q_i), \quad
        p = \text{softmax}(y / T_t), \; q = \text{softmax}(s / T_s)

    Source: ColBERTv2 and PairDistill (both temperatures 1), Tamber et al. 2025 (0.05
    and 0.3), Intermediate Distillation's second stage. No factor T^2.

    Args:
        scores: [B, N].
        labels: [B, N] teacher logits. A label of -999 or -inf is probability 0.
        where: [B, N]. A masked doc has no mass on either side.
        student_temperature, teacher_temperature: divide scores and labels.
        confidence: each list counts by (1 - H(p) / log n) to this power, with H the
            entropy of the teacher's distribution over its n docs: a teacher that holds
            all alike is believed little. 0 counts all lists alike.
        reduce_fn: over lists [B] of sums; the mean is over lists with a valid doc.
    """
    scores, labels, where = lists.read(scores, labels, where)
    student = masked.log_softmax(scores / student_temperature, where)
    teacher = masked.log_softmax(labels / teacher_temperature, where)
    # Probability 0 has log -1e9 here, not -inf: 0 * log 0 is 0.
    mass = masked.fill(jnp.exp(teacher), where)
    losses = jnp.sum(mass * (teacher - student), -1)
    if confidence:
        most = jnp.log(jnp.maximum(jnp.sum(where, -1), 2).astype(losses.dtype))
        sure = 1.0 + jnp.sum(mass * masked.fill(teacher, where), -1) / most
        losses = losses * jnp.clip(sure, 0.0, 1.0) ** confidence
    return reduce_fn(losses, where=jnp.any(where, -1))


def in_batch_kl(
    similarity: Float[Array, "B B N"],
    doc_ids: Int[Array, "B N"],
    labels: Float[Array, "B N"],
    *,
    where: Bool[Array, "B N"] | None = None,
    labelled: Bool[Array, "B"] | None = None,
    query_rows: Int[Array, "B"] | None = None,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Float[Array, ""]:
    r"""KL divergence from the teacher's list, over all documents of the batch.

    The teacher's mass is on the query's own list; other queries' documents have none,
    and stay in the student's softmax.

    Source: PairDistill's DPR form, whose passages are gathered before the softmax.

    Args:
        similarity: [B, B, N], query i against (query j, doc n).
        doc_ids, labelled, query_rows: not read; all losses across queries get them.
        labels: [B, N] teacher logits of each query's own documents.
        where: [B, N]. A masked doc has no mass on either side.
        student_temperature, teacher_temperature: divide scores and labels.
    """
    del doc_ids, labelled, query_rows
    batch, number = labels.shape
    if where is None:
        where = jnp.ones((batch, number), bool)
    own = jnp.eye(batch, dtype=bool)[:, :, None]
    # The whole batch is one long list whose other documents have probability 0.
    targets = jnp.where(own, labels[:, None, :] / teacher_temperature, -jnp.inf)
    counted = jnp.any(where, -1)
    valid = (
        jnp.broadcast_to(where[None], (batch, batch, number)) & counted[:, None, None]
    )
    return kl_divergence(
        similarity.reshape(batch, -1),
        targets.reshape(batch, -1),
        where=valid.reshape(batch, -1),
        student_temperature=student_temperature,
    )


def pairwise_kl(
    scores: Float[Array, "B N"],
    first: Int[Array, "B P"],
    second: Int[Array, "B P"],
    probability: Float[Array, "B P"],
    *,
    where: Bool[Array, "B P"] | None = None,
    temperature: float = 1.0,
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""KL divergence of the student's pair preference from a pairwise teacher's.

    .. math::
        \ell_{ij} = KL([p, 1 - p] \,\|\, \text{softmax}([s_i, s_j]))
                  = BCE(\sigma(s_i - s_j), p) - H(p)

    Source: PairDistill (Huang and Chen 2024). Its code takes the mean over all pairs,
    which is what its weight of 3 belongs to; its paper sums over a query's pairs.

    Args:
        scores: [B, N].
        first, second: [B, P] positions in the list. Anything where masked.
        probability: [B, P] of first over second, in [0, 1]; both ends are fine.
        where: [B, P] *pairs* that exist. A masked pair is not counted; a pair of a
            masked doc must be masked by the caller.
        temperature: divides the student's scores; cosines need one well below 1.
        reduce_fn: over pairs [B, P]; the mean is over all pairs of the batch.
    """
    scores = masked.at_least_f32(scores)
    p = jax.lax.stop_gradient(jnp.asarray(probability).astype(scores.dtype))
    where = jnp.ones(p.shape, bool) if where is None else jnp.asarray(where, bool)
    p = masked.fill(p, where, 0.5)
    difference = _at(scores, first, where) - _at(scores, second, where)
    difference = masked.fill(difference, where) / temperature
    cross_entropy = jax.nn.softplus(difference) - p * difference
    entropy = -jax.scipy.special.xlogy(p, p) - jax.scipy.special.xlogy(1 - p, 1 - p)
    return reduce_fn(cross_entropy - entropy, where=where)


def _at(scores: Any, positions: Any, where: Any) -> Array:
    positions = jnp.where(where, positions, 0)
    return jnp.take_along_axis(scores, positions, -1)


def adr_mse(
    scores: Float[Array, "*b N"],
    labels: Float[Array, "*b N"],
    *,
    where: Bool[Array, "*b N"] | None = None,
    temperature: float = 1.0,
    discount: Literal["log2", "reciprocal"] | None = "log2",
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""Approximate discounted rank MSE.

    .. math::
        \ell_i = \frac{(\hat\pi_i - r_i)^2}{\log_2(r_i + 1)}, \quad
        \hat\pi_i = 1 + \sum_{j \ne i} \sigma((s_j - s_i) / T)

    Source: Rank-DistiLLM (Schlatt et al. 2025), lightning-ir's ApproxRankMSE with
    ``discount="log2"``. rank_llm's function of the same name ignores the teacher.
    It reaches 0 only as the score gaps grow large beside T.

    Args:
        scores: [B, N].
        labels: [B, N], higher is better; only their order counts, r is the rank within
            the list given. Tied docs share the mean of their places.
        where: [B, N]. A masked doc takes no rank and is not counted.
        temperature: divides the score differences.
        discount: "log2" (above), "reciprocal" (divides by r_i), None (by 1).
        reduce_fn: over docs [B, N]; the mean is over all valid docs of the batch.
    """
    scores, labels, where = lists.read(scores, labels, where)
    ranks = pairs.middle_ranks(labels, where)
    ranks = masked.fill(ranks, where, 1.0)
    errors = jnp.square(pairs.sigmoid_ranks(scores, where, temperature) - ranks)
    if discount == "log2":
        errors = errors / jnp.log2(ranks + 1.0)
    elif discount == "reciprocal":
        errors = errors / ranks
    elif discount is not None:
        raise ValueError(
            f"discount should be 'log2', 'reciprocal' or None; {discount!r} is given."
        )
    return reduce_fn(errors, where=where)
