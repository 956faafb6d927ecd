"""Queries cropped from documents: a sentence is a query for its own document.

Source: DRAGON's and TWOLAR's sentence cropping (Lin et al. 2023, Baldelli et al. 2024).
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from distill_jax.collections.collection import Collection
from distill_jax.io import engine
from distill_jax.synthesis import seeds
from distill_jax.synthesis.sentences import sentences, words
from distill_jax.synthesis.survey import LONG
from distill_jax.synthesis.synthetic import SyntheticQueries

_SHARD = 1024  # documents


def crop(
    collection: Collection,
    rows: Any = None,
    *,
    per_doc: int = 1,
    min_words: int = 4,
    max_words: int = 64,
    sample: int | None = None,
    seed: int = 0,
) -> SyntheticQueries:
    """At most ``per_doc`` different sentences of each document, chosen by its id.

    Args:
        collection: the documents; titles are not cropped.
        rows: int[R], documents to crop; all by default.
        per_doc: most sentences of a document.
        min_words, max_words: bounds on a sentence. A longer one is cut to its head; a
            shorter one is not taken.
        sample: crop this many documents only, chosen by their ids.
        seed: another seed chooses other sentences. What is chosen from a document
            depends on nothing but the seed, its id and its text.
    """
    rows = np.arange(len(collection)) if rows is None else np.asarray(rows)
    if sample is not None:
        rows = sampled(collection, rows, sample, seed)
    shards = (
        [(row, str(collection.ids[row]), collection.text(row)[:LONG]) for row in part]
        for part in engine.shards_of(rows.tolist(), _SHARD)
    )
    work = functools.partial(_cropped, per_doc, min_words, max_words, seed)
    dropped: collections.Counter[str] = collections.Counter()
    records = []
    for found, lost in engine.over_shards(work, shards):
        records += found
        dropped.update(lost)
    return SyntheticQueries.of(records, collection.ids, dropped)


def _cropped(
    per_doc: int,
    min_words: int,
    max_words: int,
    seed: int,
    docs: Sequence[tuple[int, str, str]],
) -> tuple[list[tuple[int, str, int, str]], dict[str, int]]:
    """Records of documents (row, id, text), and what was dropped, by reason."""
    dropped: collections.Counter[str] = collections.Counter()
    records = []
    for row, doc_id, text in docs:
        found: dict[str, None] = {}
        for sentence in sentences(text):
            if words(sentence) < min_words:
                dropped["crop: sentence too short"] += 1
                continue
            if words(sentence) > max_words:
                sentence = _head(sentence, max_words)
            found.setdefault(sentence)
        if not found:
            dropped["crop: document without a sentence to take"] += 1
            continue
        choices = list(found)
        random = seeds.generator(seed, "crop", doc_id)
        chosen = random.permutation(len(choices))[:per_doc]
        for number, place in enumerate(chosen.tolist()):
            records.append((row, "crop", number, choices[place]))
    return records, dict(dropped)


def sampled(
    collection: Collection,
    rows: np.ndarray,
    number: int,
    seed: int,
    draw: str = "sample",
) -> np.ndarray:
    """``number`` of the rows, chosen by document id: the same in any order.

    Args:
        draw: another word draws independently of the rest.
    """
    if number >= len(rows):
        return rows
    places = [seeds.seed_of(seed, draw, collection.ids[row]) for row in rows.tolist()]
    order = np.argsort(np.asarray(places, np.uint64), kind="stable")
    return np.sort(rows[order[:number]])


def _head(sentence: str, most: int) -> str:
    parts = sentence.split()
    if len(parts) >= most:
        return " ".join(parts[:most])
    return sentence[: 2 * most]  # unspaced script: two characters count as a word
