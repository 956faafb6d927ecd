"""Long documents as passages: a pair becomes one pair per passage of its document.

The score of a document is the greatest of its passages' (MaxP; Dai and Callan 2019,
arXiv 1905.09217). Passages are the windows that fit beside the query, end to end.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.text.features import Features
from distill_jax.text.token_store import TokenStore


def parted(
    features: Features, most: int, rows: Mapping[str, Any], field: str = "document"
) -> tuple[Features, dict[str, np.ndarray], np.ndarray]:
    """Pairs of a query and a passage.

    Args:
        features: of the pairs.
        most: passages of a document at most, from its beginning.
        rows: int[M] for each field.

    Returns:
        features and rows int[P] of the passages' pairs, in the order of the documents,
        and int[M], where each document's first one is. A document that fits whole is
        one passage, and the first passage is what is kept of a document that is cut.

    Raises:
        UserError: the template has byte pairs that merge a document with what follows.
    """
    names = features.template.fields
    at = names.index(field)
    if len(features.tails[at]):
        raise UserError(
            f"passages: the template {features.template.text[:60]!r}... has characters "
            f"after {{{field}}} that merge with it",
            "put a blank or a special token after it, or leave passages out",
        )
    columns = dict(zip(names, features.columns(rows)))
    kept = dict(zip(names, features.field_lengths(rows)))[field]
    store = features.stores[at]
    docs = columns[field]
    there = docs >= 0
    begin = np.asarray(store.offsets[np.where(there, docs, 0)])
    end = np.asarray(store.offsets[np.where(there, docs, 0) + 1])
    width = np.maximum(kept, 1)
    counts = np.where(there, -(-(end - begin) // width), 1)
    # Where the query leaves no room at all, there is one pair as before.
    counts = np.where(kept > 0, np.clip(counts, 1, most), 1)
    first = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(docs)), counts)
    nth = np.arange(len(owner)) - first[owner]
    start = begin[owner] + nth * kept[owner]
    stop = np.minimum(start + kept[owner], end[owner])
    windows = TokenStore(
        store.ids, np.stack([start, stop], 1).reshape(-1), store.digest
    )
    made = copy.copy(features)
    made.replace_store(at, windows)
    passages = np.where(there[owner], 2 * np.arange(len(owner)), -1)
    taken = {name: column[owner] for name, column in columns.items()}
    return made, {**taken, field: passages}, first
