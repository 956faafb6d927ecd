"""Scores that are paid for once: a store of (model, text, text) -> logit.

The key is what the score depends on: the model's digest (weights, architecture,
template, vocabulary) names the folder, and each pair is keyed by the digests of the
very tokens that are read. Ids, runs and collections may change between rounds; a pair
of texts that was scored stays scored.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from distill_jax.ir.files import atomic_write
from distill_jax.ir.tokens import TokenStore

_KEY = np.dtype([("first", "<u8"), ("second", "<u8"), ("third", "<u8")])


class ScoreCache:
    """Append-only files of keys and scores, sorted in memory for look-ups.

    Args:
        directory: shared by every job that may meet the same pairs.
        model_digest: of the teacher; each has a folder of its own.
    """

    def __init__(self, directory: str | Path, model_digest: str):
        self.directory = Path(directory) / model_digest
        keys, values = [np.zeros(0, _KEY)], [np.zeros(0, np.float32)]
        for path in sorted(self.directory.glob("*.npz")):
            with np.load(path, allow_pickle=False) as file:
                keys.append(file["keys"].astype(_KEY))
                values.append(file["scores"])
        self.keys, self.scores = np.concatenate(keys), np.concatenate(values)
        self._sort()

    def _sort(self) -> None:
        self.keys, first = np.unique(self.keys, return_index=True)
        self.scores = self.scores[first]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """float32[M]: the known scores, nan where there is none."""
        found = np.full(len(keys), np.nan, np.float32)
        if len(self.keys):
            place = np.searchsorted(self.keys, keys)
            place = np.minimum(place, len(self.keys) - 1)
            known = self.keys[place] == keys
            found[known] = self.scores[place[known]]
        return found

    def add(self, keys: np.ndarray, scores: np.ndarray) -> None:
        """Keeps scores: on the disk when this returns, under a name never reused."""
        if not len(keys):
            return
        scores = np.asarray(scores, np.float32)
        name = hashlib.sha256(keys.tobytes() + scores.tobytes()).hexdigest()[:24]
        with atomic_write(self.directory / f"{name}.npz", "wb") as file:
            np.savez(file, keys=keys, scores=scores)
        self.keys = np.concatenate([self.keys, keys])
        self.scores = np.concatenate([self.scores, scores])
        self._sort()


def pair_keys(*texts: tuple[TokenStore, np.ndarray]) -> np.ndarray:
    """Keys of M pairs or triples of texts, given as stores and rows of them."""
    columns = [_token_digests(store, rows) for store, rows in texts]
    keys = np.zeros(len(texts[0][1]), _KEY)
    for name, column in zip(_KEY.names or (), columns):
        keys[name] = column
    return keys


def _token_digests(store: TokenStore, rows: np.ndarray) -> np.ndarray:
    used, at = np.unique(rows, return_inverse=True)
    digests = np.zeros(len(used), "<u8")
    for i, row in enumerate(used):
        tokens = np.ascontiguousarray(store[int(row)], np.int32).tobytes()
        digests[i] = int.from_bytes(
            hashlib.blake2b(tokens, digest_size=8).digest(), "little"
        )
    return digests[at]
