"""Vectors of a teacher, cached by text.

The key is the text itself and the teacher's name (for an encoder the digest of all that
its vectors depend on), so that a text is encoded or paid for once, whatever collection
or round asks for it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.files import atomic_write, digest

SHARD = 1024  # texts between two points that a kill falls back to


class VectorStore:
    """Append-only files of keys and vectors.

    Args:
        directory: shared by every job that may meet the same texts.
        teacher: what names the teacher among others; each has a folder of its own.
    """

    def __init__(self, directory: str | Path, teacher: str):
        self.directory = Path(directory) / digest("vectors", teacher)
        self._known: dict[bytes, np.ndarray] = {}
        for path in sorted(self.directory.glob("*.npz")):
            with np.load(path, allow_pickle=False) as file:
                self._remember(file["keys"], file["vectors"])

    def __len__(self) -> int:
        return len(self._known)

    def of(
        self,
        texts: Sequence[str],
        make: Callable[[list[str]], np.ndarray],
        progress: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """float32[M, E]: vectors of the texts; missing ones are computed and cached.

        Args:
            make: from some texts to their vectors [m, E], in their order.
            progress: called with how many more texts are there.

        Raises:
            UserError: the teacher gave vectors that are not finite, too few, or of
                another width than before.
        """
        keys = [key_of(text) for text in texts]
        missing = {
            key: text for key, text in zip(keys, texts) if key not in self._known
        }
        progress(len(texts) - len(missing))
        for start in range(0, len(missing), SHARD):
            part = list(missing.items())[start : start + SHARD]
            vectors = checked(make([text for _, text in part]), len(part))
            self._add(np.frombuffer(b"".join(k for k, _ in part), "u1"), vectors)
            progress(len(part))
        if not keys:
            return np.zeros((0, 0), np.float32)
        return np.stack([self._known[key] for key in keys])

    def _add(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        keys = keys.reshape(len(vectors), -1)
        name = hashlib.sha256(keys.tobytes() + vectors.tobytes()).hexdigest()[:24]
        with atomic_write(self.directory / f"{name}.npz", "wb") as file:
            np.savez(file, keys=keys, vectors=vectors)
        self._remember(keys, vectors)

    def _remember(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        widths = {len(v) for v in self._known.values()} | {vectors.shape[1]}
        if len(widths) > 1:
            raise UserError(
                f"the teacher's vectors have {vectors.shape[1]} numbers, and had "
                f"{min(widths - {vectors.shape[1]})} before",
                f"another model answers under the same name; delete {self.directory}",
            )
        for key, vector in zip(keys, vectors):
            self._known[key.tobytes()] = vector


def key_of(text: str) -> bytes:
    """16 bytes of a text."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def checked(vectors: np.ndarray, count: int, source: str = "the teacher") -> np.ndarray:
    """float32[M, E], if they are ``count`` finite vectors of some length.

    Raises:
        UserError: they are not; with the first row that is wrong.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != count or not vectors.shape[-1]:
        raise UserError(
            f"{source} gave vectors of shape {vectors.shape} for {count} texts",
            "one vector a text, all of one length",
        )
    vectors = vectors.astype(np.float32)
    wrong = ~np.isfinite(vectors).all(1) | ~vectors.any(1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{source}: vector {row} is zero or not finite",
            "compute the vectors again; overflow in float16 is a common cause",
        )
    return vectors
