"""Scores that are paid for once: a store of (model, text, text) -> logit.

The key is what the score depends on: the model's digest (weights, architecture,
template, vocabulary) names the folder, and each pair is keyed by the digests of the
very tokens that are read. Ids, runs and collections may change between rounds; a pair
of texts that was scored stays scored.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.files import atomic_write
from distill_jax.text.token_store import TokenStore

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
            found, scores = _read(path)
            keys.append(found)
            values.append(scores)
        self._parts: list[_Sorted] = []
        self.remember(np.concatenate(keys), np.concatenate(values))

    def __len__(self) -> int:
        return sum(len(part.scores) for part in self._parts)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """float32[M]: the cached scores, nan for misses."""
        found = np.full(len(keys), np.nan, np.float32)
        mixed = _mix(keys)
        for part in self._parts:
            place = np.searchsorted(part.mixed, mixed)
            place = np.minimum(place, len(part.mixed) - 1)
            # A pair whose mix is also another's is not found: it is scored again.
            known = part.keys[place] == keys
            found[known] = part.scores[place[known]]
        return found

    def add(self, keys: np.ndarray, scores: np.ndarray) -> None:
        """Stores scores; they are on disk when this returns."""
        self.remember(keys, scores)
        self.save(keys, scores)

    def save(self, keys: np.ndarray, scores: np.ndarray) -> None:
        """Scores to the disk, under a name never reused; from any thread."""
        if not len(keys):
            return
        scores = np.asarray(scores, np.float32)
        path = self.directory / f"{_name(keys, scores)}.npz"
        with atomic_write(path, "wb") as file:
            np.savez(file, keys=keys, scores=scores)

    def remember(self, keys: np.ndarray, scores: np.ndarray) -> None:
        """Adds scores to this process's table."""
        scores = np.asarray(scores, np.float32)
        # Parts at least double in size towards the front, so that a score is sorted
        # a few times only, however many shards there are.
        while self._parts and len(self._parts[-1].scores) < 2 * len(scores):
            part = self._parts.pop()
            keys = np.concatenate([part.keys, keys])
            scores = np.concatenate([part.scores, scores])
        if len(keys):
            mixed, first = np.unique(_mix(keys), return_index=True)
            self._parts.append(_Sorted(mixed, keys[first], scores[first]))


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and scores of a file, whose name is the sum of what it holds.

    Raises:
        UserError: it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, scores = file["keys"].astype(_KEY), file["scores"]
        whole = path.stem == _name(keys, scores)
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, zlib.error):
        whole = False
    if not whole:
        raise UserError(
            f"{path}: damaged, it is not as it was written",
            "delete it: its pairs are scored again",
        )
    return keys, scores


def _name(keys: np.ndarray, scores: np.ndarray) -> str:
    return hashlib.sha256(keys.tobytes() + scores.tobytes()).hexdigest()[:24]


class _Sorted(NamedTuple):
    """mixed: uint64[M], ascending; keys and scores in the same order."""

    mixed: np.ndarray
    keys: np.ndarray
    scores: np.ndarray


def _mix(keys: np.ndarray) -> np.ndarray:
    """One number of a key's three: sorting those is ten times as fast."""
    mixed = np.zeros(len(keys), np.uint64)
    for name in _KEY.names or ():
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + keys[name]
    return mixed


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
