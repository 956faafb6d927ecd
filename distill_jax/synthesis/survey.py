"""What documents there are to make queries from, and what is odd about the others."""

from __future__ import annotations

import dataclasses
import unicodedata

import numpy as np

from distill_jax.collections.collection import Collection
from distill_jax.lists.dedup import Duplicates

LONG = 20_000
"""Characters from which a document is called very long; only its head is read."""


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """The documents of a collection, looked at once.

    Attributes:
        rows: int64[R], documents that get queries.
        counts: how many documents are of each odd kind.
        notices: the same in sentences, and what the loader had noticed.
    """

    rows: np.ndarray
    counts: dict[str, int]
    notices: tuple[str, ...]


def survey(
    collection: Collection,
    *,
    duplicates: Duplicates | None = None,
    latin_only: bool = False,
) -> Survey:
    """Leaves out documents that are empty, of one word, or duplicates.

    Args:
        collection: the documents.
        duplicates: from ``ir.dedup.near_duplicates``; they get no queries.
        latin_only: also leave out documents without a Latin letter, for generators
            that know no other script. They are counted in any case.
    """
    kinds = ("empty", "one word", "no Latin letter", "very long", "duplicate")
    counts: dict[str, int] = dict.fromkeys(kinds, 0)
    keep = np.ones(len(collection), bool)
    if duplicates is not None:
        keep[duplicates.rows] = False
        counts["duplicate"] = len(duplicates)
    for row in range(len(collection)):
        text = collection.full_text(row)
        kind = _kind(text)
        if kind is not None:
            counts[kind] += 1
        if kind in ("empty", "one word") or (latin_only and kind == "no Latin letter"):
            keep[row] = False
        if len(text) > LONG:
            counts["very long"] += 1
    left_out = "left out" if latin_only else "kept"
    said = {
        "empty": "empty documents left out",
        "one word": "documents of one word left out",
        "no Latin letter": f"documents without a Latin letter {left_out}",
        "very long": f"documents over {LONG:,} characters, of which the head is read",
        "duplicate": "near-duplicate documents left out",
    }
    notices = [
        f"{counts[kind]:,} {what}" for kind, what in said.items() if counts[kind]
    ]
    return Survey(np.flatnonzero(keep), counts, (*collection.notices, *notices))


def _kind(text: str) -> str | None:
    parts = text.split(None, 2)
    if not parts:
        return "empty"
    if not text.isascii():
        head = text[:2000]
        letters = [c for c in head if c.isalpha()]
        if letters and not any(_latin(c) for c in letters):
            return "no Latin letter"
    return "one word" if len(parts) == 1 else None


def _latin(character: str) -> bool:
    return character.isascii() or "LATIN" in unicodedata.name(character, "")
