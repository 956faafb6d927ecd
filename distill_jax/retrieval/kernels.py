"""Compiled loops over postings. Imported by the function that needs it, not before."""

from __future__ import annotations

import numba
import numpy as np

# Docs whose scores are accumulated together: 64 KiB of float32, so that the
# accumulator stays in the first or second cache level however large the corpus is.
WINDOW = 16384


@numba.njit(inline="always")
def _worse(score_a, rank_a, score_b, rank_b):
    """Whether (score, rank) a comes after b in a run."""
    return score_a < score_b or (score_a == score_b and rank_a < rank_b)


@numba.njit(nogil=True, cache=True)
def _sift_down(scores, ranks, size):
    """Restores the heap (worst entry at the root) after the root was replaced."""
    score, rank = scores[0], ranks[0]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        right = child + 1
        if right < size and _worse(
            scores[right], ranks[right], scores[child], ranks[child]
        ):
            child = right
        if not _worse(scores[child], ranks[child], score, rank):
            break
        scores[at], ranks[at] = scores[child], ranks[child]
        at = child
    scores[at], ranks[at] = score, rank


@numba.njit(nogil=True, cache=True)
def _sift_up(scores, ranks, at):
    """Restores the heap after an entry was appended."""
    score, rank = scores[at], ranks[at]
    while at > 0:
        parent = (at - 1) >> 1
        if not _worse(score, rank, scores[parent], ranks[parent]):
            break
        scores[at], ranks[at] = scores[parent], ranks[parent]
        at = parent
    scores[at], ranks[at] = score, rank


@numba.njit(nogil=True, cache=True)
def search_postings(
    indptr,
    docs,
    weights,
    ranks,
    query_indptr,
    query_terms,
    query_weights,
    first,
    last,
    top_ranks,
    top_scores,
):
    """Fills rows ``first`` to ``last`` of the answer: the best docs of each query.

    Scores are sums of products, accumulated window by window of docs; a bounded heap
    keeps the k best by (score, rank). Windows without postings are never visited.

    Args:
        indptr, docs, weights: postings of each term, docs ascending.
        ranks: int32[N], the place of a doc among all docs, which orders ties.
        query_indptr, query_terms, query_weights: the queries as sparse rows.
        top_ranks, top_scores: [Q, K] outputs; places that stay empty are left alone.
    """
    n = len(ranks)
    k = top_ranks.shape[1]
    accumulator = np.zeros(WINDOW, np.float32)
    heap_scores = np.empty(k, np.float32)
    heap_ranks = np.empty(k, np.int32)
    for query in range(first, last):
        begin, end = query_indptr[query], query_indptr[query + 1]
        cursors = np.empty(end - begin, np.int64)
        following = n
        for i in range(end - begin):
            term = query_terms[begin + i]
            cursors[i] = indptr[term]
            if cursors[i] < indptr[term + 1]:
                following = min(following, docs[cursors[i]])
        size = 0
        threshold = np.float32(0)
        while following < n:
            base = (following // WINDOW) * WINDOW
            stop = min(base + WINDOW, n)
            following = n
            for i in range(end - begin):
                term = query_terms[begin + i]
                weight = query_weights[begin + i]
                limit = indptr[term + 1]
                at = cursors[i]
                while at < limit and docs[at] < stop:
                    accumulator[docs[at] - base] += weight * weights[at]
                    at += 1
                cursors[i] = at
                if at < limit:
                    following = min(following, docs[at])
            for offset in range(stop - base):
                score = accumulator[offset]
                if score > 0 and score >= threshold:
                    rank = ranks[base + offset]
                    if size < k:
                        heap_scores[size], heap_ranks[size] = score, rank
                        _sift_up(heap_scores, heap_ranks, size)
                        size += 1
                        if size == k:
                            threshold = heap_scores[0]
                    elif _worse(heap_scores[0], heap_ranks[0], score, rank):
                        heap_scores[0], heap_ranks[0] = score, rank
                        _sift_down(heap_scores, heap_ranks, k)
                        threshold = heap_scores[0]
            accumulator[: stop - base] = 0
        for place in range(size - 1, -1, -1):
            top_scores[query, place] = heap_scores[0]
            top_ranks[query, place] = heap_ranks[0]
            heap_scores[0], heap_ranks[0] = heap_scores[place], heap_ranks[place]
            _sift_down(heap_scores, heap_ranks, place)
