"""Exact MaxSim over ragged docs, on the device, without padding each doc.

All tokens of a tile of docs lie end to end; one product with the query's tokens, a
maximum over each doc's segment, a sum over the query's tokens.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from distill_jax.ops.similarity import NO_TOKEN
from distill_jax.retrieval.muvera import pad_tokens
from distill_jax.retrieval.token_vectors import TokenVectors

# Tokens of one tile: a few tens of MiB of scores.
_TOKENS = 1 << 16


def pad_queries(queries: TokenVectors) -> tuple[np.ndarray, np.ndarray]:
    """Ragged queries to float32[Q, L, D] and bool[Q, L]."""
    lengths = queries.lengths
    longest = max(int(lengths.max(initial=1)), 1)
    where = np.arange(longest) < lengths[:, None]
    out = np.zeros((len(queries), longest, queries.width), np.float32)
    out[where] = np.asarray(queries.values, np.float32)
    return out, where


def score_lists(
    queries: TokenVectors, docs: TokenVectors, rows: np.ndarray
) -> np.ndarray:
    """MaxSim of each query and its own docs.

    Args:
        queries: Q token sets.
        docs: the corpus.
        rows: int[Q, C] rows of docs, -1 pads.

    Returns:
        float32[Q, C], -inf where padded; a doc without tokens gets ``NO_TOKEN`` for
        every query token.
    """
    padded, where = pad_queries(queries)
    out = np.full(rows.shape, -np.inf, np.float32)
    pending: list[tuple[int, np.ndarray, Any]] = []
    for query in range(len(rows)):
        places = np.flatnonzero(rows[query] >= 0)
        for part in _tiles(docs.lengths[rows[query, places]]):
            at = places[part]
            tokens, owner = docs.take(rows[query, at])
            count = 1 << max(3, (len(at) - 1).bit_length())
            tile = pad_tokens(tokens, owner, count)
            scores = _one()(padded[query], where[query], *tile, count)
            pending.append((query, at, scores))
        # The device works on the next queries while these are fetched.
        if len(pending) > 8:
            _fetch(out, pending)
    _fetch(out, pending)
    return out


def _fetch(out: np.ndarray, pending: list) -> None:
    for query, at, scores in pending:
        out[query, at] = np.asarray(scores)[: len(at)]
    pending.clear()


def score_all(
    queries: tuple[np.ndarray, np.ndarray], docs: TokenVectors, rows: np.ndarray
) -> Any:
    """MaxSim of every query of a tile and docs ``rows``: [Q, len(rows)], on the device.

    Args:
        queries: from ``pad_queries``.
        rows: int[M], docs of one tile (``tiles_of``).
    """
    tokens, owner = docs.take(rows)
    count = 1 << max(3, (len(rows) - 1).bit_length())
    scores = _every()(*queries, *pad_tokens(tokens, owner, count), count)
    return scores[:, : len(rows)]


def tiles_of(docs: TokenVectors) -> list[np.ndarray]:
    """All rows, cut into tiles of about equal numbers of tokens."""
    parts = _tiles(docs.lengths)
    return [np.arange(part.start, part.stop) for part in parts]


def _tiles(lengths: np.ndarray, tokens: int = _TOKENS, docs: int = 4096) -> list[slice]:
    parts, start = [], 0
    ends = np.cumsum(lengths)
    while start < len(lengths):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + tokens, "right"))
        stop = min(max(stop, start + 1), start + docs, len(lengths))
        parts.append(slice(start, stop))
        start = stop
    return parts


@functools.lru_cache(maxsize=1)
def _one() -> Any:
    import jax

    return jax.jit(_score, static_argnums=4)


@functools.lru_cache(maxsize=1)
def _every() -> Any:
    import jax

    def scores(queries, where, tokens, owner, docs):
        def one(pair):
            query, real = pair
            return _score(query, real, tokens, owner, docs)

        return jax.lax.map(one, (queries, where))

    return jax.jit(scores, static_argnums=4)


def _score(query, where, tokens, owner, docs):
    import jax
    import jax.numpy as jnp

    # [T, L]: the segments lie along the leading axis, which is what is reduced.
    scores = jnp.matmul(
        tokens.astype(jnp.float32), query.T, precision=jax.lax.Precision.HIGHEST
    )
    best = jax.ops.segment_max(scores, owner, docs + 1, indices_are_sorted=True)
    best = jnp.where(jnp.isneginf(best), NO_TOKEN, best)[:docs]
    return jnp.where(where, best, 0).sum(-1)
