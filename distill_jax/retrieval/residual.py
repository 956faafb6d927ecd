"""Token vectors in a few bits: the nearest centroid, and coarse residuals (PLAID).

Source: Santhanam et al. 2022, arXiv 2112.01488 and 2205.09707. Each dimension of the
residual falls into one of 2^bits buckets, cut at quantiles of a sample; a bucket is
decoded as its mean. At 128 dimensions 2 bits take 32 bytes a token and the centroid 2
or 4, where float16 takes 256.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError

_ROWS = 8192
_SAMPLE = 1 << 17


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """What is shared by all codes of an index.

    Attributes:
        centroids: float32[C, D].
        cuts: float32[2^bits - 1], between the buckets of a residual, ascending.
        levels: float32[2^bits], what each bucket is decoded as.
    """

    centroids: np.ndarray
    cuts: np.ndarray
    levels: np.ndarray

    @property
    def bits(self) -> int:
        return len(self.levels).bit_length() - 1

    @classmethod
    def train(
        cls,
        vectors: Any,
        *,
        bits: int = 2,
        centroids: int | None = None,
        iterations: int = 6,
        seed: int = 0,
    ) -> Codec:
        """Learns centroids and buckets from a sample of the vectors.

        Args:
            vectors: [T, D], unit length.
            bits: of a dimension's residual: 1, 2, 4 or 8.
            centroids: None takes the power of two below 4 sqrt(T); PLAID takes four
                times as many, which costs as much more to build.
            iterations: of k-means.
            seed: of the sample and the first centroids.

        Raises:
            UserError: bits that do not divide a byte, or no vectors.
        """
        if bits not in (1, 2, 4, 8):
            raise UserError(f"residuals of {bits} bits", "choose 1, 2, 4 or 8")
        count, width = vectors.shape
        if not count:
            raise UserError("compression of a corpus without a token")
        if width * bits % 8:
            raise UserError(
                f"{width} dimensions of {bits} bits do not fill whole bytes",
                "choose more bits",
            )
        random = np.random.Generator(np.random.Philox(seed))
        rows = np.sort(random.permutation(count)[:_SAMPLE])
        sample = np.asarray(vectors[rows], np.float32)
        wanted = centroids or 1 << int(np.log2(4 * count**0.5))
        table = _k_means(sample, min(wanted, len(sample)), iterations, random)
        residuals = sample - table[nearest(sample, table)]
        flat = residuals.reshape(-1)[:: max(1, residuals.size >> 22)]
        buckets = 2**bits
        cuts = np.quantile(flat, np.arange(1, buckets) / buckets).astype(np.float32)
        middles = (np.arange(buckets) + 0.5) / buckets
        levels = np.quantile(flat, middles).astype(np.float32)
        which = np.searchsorted(cuts, flat)
        for bucket in range(buckets):
            if (which == bucket).any():
                levels[bucket] = flat[which == bucket].mean()
        return cls(table, cuts, levels)

    def encode(self, vectors: Any) -> Codes:
        """Codes of vectors [T, D], a block at a time."""
        count, width = vectors.shape
        small = len(self.centroids) <= 1 << 16
        ids = np.empty(count, np.uint16 if small else np.int32)
        packed = np.empty((count, width * self.bits // 8), np.uint8)
        for start in range(0, count, _ROWS):
            block = np.asarray(vectors[start : start + _ROWS], np.float32)
            near = nearest(block, self.centroids)
            ids[start : start + _ROWS] = near
            buckets = np.searchsorted(self.cuts, block - self.centroids[near])
            packed[start : start + _ROWS] = self._pack(buckets.astype(np.uint8))
        return Codes(self, ids, packed)

    def _pack(self, buckets: np.ndarray) -> np.ndarray:
        each = 8 // self.bits
        groups = buckets.reshape(len(buckets), -1, each)
        shifts = np.arange(each, dtype=np.uint8) * self.bits
        return (groups << shifts).sum(-1, dtype=np.uint8)

    @functools.cached_property
    def _decoded_byte(self) -> np.ndarray:
        """float32[256, 8 / bits]: the values of every possible byte."""
        shifts = np.arange(8 // self.bits) * self.bits
        return self.levels[(np.arange(256)[:, None] >> shifts) & (2**self.bits - 1)]

    def decode(self, ids: np.ndarray, packed: np.ndarray) -> np.ndarray:
        """float32[T, D], of unit length as ColBERT's vectors are."""
        vectors = self._decoded_byte[packed].reshape(len(packed), -1)
        vectors += self.centroids[ids]
        norms = np.sqrt(np.einsum("td,td->t", vectors, vectors))
        return vectors / np.maximum(norms, 1e-12)[:, None]


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """Coded vectors that slice to float32 as an array [T, D] would.

    Attributes:
        codec: how they are read.
        ids: uint16[T] or int32[T], centroids.
        packed: uint8[T, D * bits / 8].
    """

    codec: Codec
    ids: np.ndarray
    packed: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.ids), self.codec.centroids.shape[1]

    @property
    def ndim(self) -> int:
        return 2

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.codec.decode(np.asarray(self.ids[rows]), self.packed[rows])


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """int32[T]: the centroid of least Euclidean distance to each vector."""
    found = [
        np.asarray(_nearest()(_padded(vectors[start : start + _ROWS]), centroids))
        for start in range(0, len(vectors), _ROWS)
    ]
    return np.concatenate(found)[: len(vectors)] if found else np.zeros(0, np.int32)


def _padded(block: np.ndarray) -> np.ndarray:
    size = min(_ROWS, 1 << max(3, (len(block) - 1).bit_length()))
    return np.pad(block, [(0, size - len(block)), (0, 0)])


@functools.lru_cache(maxsize=1)
def _nearest() -> Any:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def best(vectors, centroids):
        half_squares = 0.5 * jnp.square(centroids).sum(-1)
        scores = vectors @ centroids.T - half_squares
        return jnp.argmax(scores, -1).astype(jnp.int32)

    return best


def _k_means(
    sample: np.ndarray, count: int, iterations: int, random: np.random.Generator
) -> np.ndarray:
    """Lloyd's k-means; a centroid that loses all its points takes a random one."""
    table = sample[random.permutation(len(sample))[:count]]
    for _ in range(iterations):
        which = nearest(sample, table)
        order = np.argsort(which, kind="stable")
        starts = np.searchsorted(which[order], np.arange(count))
        sizes = np.bincount(which, minlength=count)
        full = sizes > 0
        sums = np.add.reduceat(sample[order], starts[full], axis=0)
        table = sample[random.integers(len(sample), size=count)]
        table[full] = sums / sizes[full, None]
    return np.ascontiguousarray(table, np.float32)
