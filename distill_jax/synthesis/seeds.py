"""Randomness that belongs to a document, not to a machine or an order of work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from distill_jax.io.errors import UserError


def seed_of(seed: int, *parts: object) -> int:
    """A 64-bit seed from a run's seed, a document id, a sample number, ..."""
    state = hashlib.blake2b(digest_size=8)
    for part in (seed, *parts):
        encoded = str(part).encode("utf-8", "surrogatepass")
        state.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(state.digest(), "little")


def generator(seed: int, *parts: object) -> np.random.Generator:
    """A random generator of its own for a document."""
    return np.random.Generator(np.random.PCG64(seed_of(seed, *parts)))


def place_of(doc_id: str, seed: int = 0) -> float:
    """A document's place in [0, 1): the same on every machine and in every order."""
    return seed_of(seed, "split", doc_id) / 2**64


def splits(
    doc_ids: Iterable[str], fractions: Mapping[str, float], seed: int = 0
) -> list[str]:
    """The split of each document id: all queries of a document fall on one side.

    Args:
        doc_ids: source documents, in any order, with repetitions.
        fractions: names and shares, e.g. ``{"train": 0.9, "dev": 0.1}``.

    Raises:
        UserError: the shares do not add up to 1.
    """
    names, shares = list(fractions), np.asarray(list(fractions.values()))
    if not len(names) or (shares < 0).any() or abs(shares.sum() - 1) > 1e-9:
        raise UserError(
            f"split fractions {dict(fractions)} do not add up to 1",
            "e.g. train 0.9 and dev 0.1",
        )
    ends = np.cumsum(shares)[:-1]
    return [
        names[int(np.searchsorted(ends, place_of(doc_id, seed), side="right"))]
        for doc_id in doc_ids
    ]
