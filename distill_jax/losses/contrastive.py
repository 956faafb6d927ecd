"""Losses of a query against the documents of the whole batch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from distill_jax.losses import lists
from distill_jax.ops import chunked, masked


def no_contrast(
    doc_ids: Int[Array, "B N"],
    labels: Float[Array, "B N"],
    *,
    where: Bool[Array, "B N"] | None = None,
    false_negative_threshold: float | None = None,
) -> Bool[Array, "B N"]:
    """The docs of a query's own list that are not negatives of it, wherever they occur.

    These are its positive (doc 0), every doc with the positive's id and, with a
    threshold, every doc whose label is *more* than ``p - (1 - threshold) |p|`` for the
    positive's label p: threshold times p where p >= 0, and still below p where p < 0.
    Source: Tamber et al. 2025 (threshold 0.6 on labels normalised to [0, 1]).
    """
    _, labels, where = lists.read(labels, labels, where)
    alike = jnp.asarray(doc_ids) == jnp.asarray(doc_ids)[:, :1]
    if false_negative_threshold is not None:
        positive, share = labels[:, :1], false_negative_threshold
        # As a product in both cases: p - (1 - share) * p would round otherwise.
        alike = alike | (labels > jnp.where(positive < 0, 2 - share, share) * positive)
    return alike & where


def in_batch_contrastive(
    similarity: Float[Array, "B B N"],
    doc_ids: Int[Array, "B N"],
    labels: Float[Array, "B N"],
    *,
    where: Bool[Array, "B N"] | None = None,
    labelled: Bool[Array, "B"] | None = None,
    query_rows: Int[Array, "B"] | None = None,
    temperature: float = 0.01,
    false_negative_threshold: float | None = None,
    own_negatives: bool = True,
    block_size: int | None = None,
    reduce_fn: lists.Reduce = masked.mean,
) -> Float[Array, ""]:
    r"""InfoNCE of each query's positive against all documents of the batch.

    .. math::
        \ell_i = -\log \frac{e^{s_{i,i0} / T}}
        {e^{s_{i,i0} / T} + \sum_{(j,n) \ne (i,0)} m_{i,jn} \, e^{s_{i,jn} / T}}

    where :math:`m_{i,jn} = 0` for masked docs and for docs whose id is in
    ``no_contrast(i)``, or in that of another counted list of the same query, in
    whichever list they stand.

    Source: Tamber et al. 2025 (T = 0.01, threshold 0.6, batch 4096). With
    ``temperature=1, own_negatives=False``: ColBERTv2's and PairDistill's in-batch loss,
    where a query's own other docs are left to the distillation loss.

    Args:
        similarity: [B, B, N], query i against (query j, doc n).
        doc_ids: [B, N] numbers of the docs in their collection; doc 0 is the positive.
        labels: [B, N] teacher scores, read only with a threshold.
        where: [B, N]. A masked doc is never a negative; a query whose doc 0 is masked
            is not counted.
        labelled: [B] queries whose doc 0 is a judged positive; the others are not
            counted, their docs remain negatives. None counts all.
        query_rows: [B] numbers of the queries, -1 where unknown: what one list of a
            query treats as relevant is not a negative of its other lists. None takes
            every list for another query's.
        temperature: divides the similarities.
        false_negative_threshold: see ``no_contrast``; None masks no others.
        own_negatives: False leaves out the other docs of the query's own list.
        block_size: queries at a time, on one device; the same numbers. Temporaries
            beside ``similarity`` and its gradient (1.25 GiB each at B = 4096, N = 20):
            2.8 GiB with None, 0.12 GiB with 64.
        reduce_fn: over queries [B]; the mean is over the queries counted.
    """
    doc_ids = jnp.asarray(doc_ids)
    batch, number = doc_ids.shape
    if where is None:
        where = jnp.ones((batch, number), bool)
    counted = where[:, 0] if labelled is None else where[:, 0] & labelled
    blocked = no_contrast(
        doc_ids,
        labels,
        where=where,
        false_negative_threshold=false_negative_threshold,
    )
    others = None
    if query_rows is not None:
        others = functools.partial(
            _of_other_lists,
            following=_following(jnp.asarray(query_rows)),
            ids=doc_ids,
            blocked=blocked & counted[:, None],
        )
    row = functools.partial(
        _losses,
        where=where,
        ids=doc_ids,
        others=others,
        own=own_negatives,
        temperature=temperature,
    )
    losses = chunked.map_rows(
        row,
        similarity,
        jnp.arange(batch),
        doc_ids,
        blocked,
        counted,
        block_size=block_size,
    )
    return reduce_fn(losses, where=counted)


def _losses(
    similarity: Float[Array, "b B N"],
    query: Int[Array, "b"],
    own_ids: Int[Array, "b N"],
    blocked: Bool[Array, "b N"],
    counted: Bool[Array, "b"],
    *,
    where: Bool[Array, "B N"],
    ids: Int[Array, "B N"],
    others: Callable[[Int[Array, "b"]], Bool[Array, "b B N"]] | None,
    own: bool,
    temperature: float,
) -> Float[Array, "b"]:
    excluded = _among(ids, own_ids, blocked)
    if others is not None:
        excluded = excluded | others(query)
    same_list = query[:, None, None] == jnp.arange(ids.shape[0])[None, :, None]
    positive = same_list & (jnp.arange(ids.shape[1]) == 0)[None, None, :]
    kept = where[None] & ~excluded
    if not own:
        kept = kept & ~same_list
    kept = (kept | positive) & counted[:, None, None]

    scores = masked.fill(masked.at_least_f32(similarity), kept)
    own_score = jnp.sum(masked.fill(scores, positive), (1, 2))
    # Subtract before dividing: at T = 0.01 that saves two digits of an f32.
    logits = (scores - own_score[:, None, None]) / temperature
    flat = (logits.shape[0], -1)
    return masked.logsumexp(logits.reshape(flat), kept.reshape(flat))


def _among(
    ids: Int[Array, "B N"], some: Int[Array, "b N"], there: Bool[Array, "b N"]
) -> Bool[Array, "b B N"]:
    """Which docs of the batch occur in ``some``, where ``there`` is True."""
    # [b, B, N, N] compares fuse into the reduction: that array is never written.
    return jnp.any(
        (ids[None, :, :, None] == some[:, None, None, :]) & there[:, None, None, :],
        axis=-1,
    )


def _following(query_rows: Int[Array, "B"]) -> Int[Array, "B"]:
    """Index of the next list with the same query: cyclic, itself if it is alone."""
    places = jnp.arange(query_rows.shape[0])
    rows = jnp.where(query_rows < 0, -1 - places, query_rows)
    steps = (places[None, :] - places[:, None] - 1) % places.shape[0]
    return jnp.argmin(
        jnp.where(rows[:, None] == rows[None, :], steps, places.shape[0]), axis=1
    )


def _of_other_lists(
    query: Int[Array, "b"],
    *,
    following: Int[Array, "B"],
    ids: Int[Array, "B N"],
    blocked: Bool[Array, "B N"],
) -> Bool[Array, "b B N"]:
    """Which docs of the batch another list of the same query blocks.

    As many turns as the most frequent query has other lists: none in most batches.
    """

    def unfinished(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(state[0] != query)

    def turn(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        place, found = state
        there = blocked[place] & (place != query)[:, None]
        # A finished cycle stays where it is while longer cycles go on.
        after = jnp.where(place == query, place, following[place])
        return after, found | _among(ids, ids[place], there)

    found = jnp.zeros((query.shape[0], *ids.shape), bool)
    return jax.lax.while_loop(unfinished, turn, (following[query], found))[1]
