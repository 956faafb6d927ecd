"""Ties are broken by doc id, descending, as trec_eval does and ``Run`` promises."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill_jax.io.strings import arrow_strings


def tie_ranks(doc_ids: Sequence[str]) -> np.ndarray:
    """The place of each doc when ids are sorted ascending: int32[N].

    Of two docs with equal scores the one with the *larger* rank comes first. Python
    orders strings by code point, which is also the order of their UTF-8 bytes, by
    which arrow sorts: seconds for millions of ids.
    """
    import pyarrow.compute as pc

    order = pc.array_sort_indices(arrow_strings(doc_ids))  # type: ignore[attr-defined]
    ranks = np.empty(len(doc_ids), np.int32)
    ranks[order.to_numpy()] = np.arange(len(doc_ids), dtype=np.int32)
    return ranks


def rows_of(ranks: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Tie ranks that a search found back to rows; -1 stays -1."""
    row_of_rank = np.empty(len(ranks) + 1, np.int32)
    row_of_rank[ranks] = np.arange(len(ranks), dtype=np.int32)
    row_of_rank[-1] = -1
    return row_of_rank[found]
