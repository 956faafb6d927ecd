r"""Token sets as single vectors whose inner product approximates MaxSim (MUVERA).

Source: Dhulipala et al. 2024, arXiv 2405.19504. Random hyperplanes put the tokens into
2^bits buckets; a query sums its tokens of a bucket, a doc averages them, and a doc's
empty bucket takes the token nearest to it in Hamming distance. Each bucket's vector is
projected to fewer dimensions by random signs, and the whole is repeated with other
hyperplanes: the result has ``repetitions * 2^bits * projection`` dimensions.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from distill_jax.retrieval.token_vectors import TokenVectors

_DOCS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedDimensional:
    """A fixed-dimensional encoding: the same for a seed on every machine.

    Attributes:
        width: D of the tokens.
        repetitions: independent partitions of the sphere.
        bits: hyperplanes of each; 2^bits buckets.
        projection: dimensions of a bucket; None keeps D.
        seed: of the hyperplanes and projections.
    """

    width: int
    repetitions: int = 20
    bits: int = 4
    projection: int | None = 16
    seed: int = 0

    @property
    def dimension(self) -> int:
        """Dimensions of an encoding."""
        return self.repetitions * 2**self.bits * (self.projection or self.width)

    @functools.cached_property
    def _random(self) -> tuple[np.ndarray, np.ndarray]:
        """Hyperplanes [R, D, bits] and projections [R, D, P]."""
        random = np.random.Generator(np.random.Philox(self.seed))
        shape = (self.repetitions, self.width)
        planes = random.standard_normal((*shape, self.bits)).astype(np.float32)
        if self.projection is None:
            eye = np.eye(self.width, dtype=np.float32)
            return planes, np.broadcast_to(eye, (*shape, self.width))
        signs = random.choice(np.array([-1.0, 1.0]), (*shape, self.projection))
        return planes, (signs / np.sqrt(self.projection)).astype(np.float32)

    def encode(self, texts: TokenVectors, side: str) -> np.ndarray:
        """float32[N, dimension] of N token sets; zeros for an empty one.

        Args:
            texts: ragged token vectors.
            side: "query" or "doc".
        """
        out = np.zeros((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), _DOCS):
            rows = np.arange(start, min(start + _DOCS, len(texts)))
            tokens, owner = texts.take(rows)
            if len(tokens):
                padded = pad_tokens(np.asarray(tokens, np.float32), owner, _DOCS)
                encoded = _encode(side == "doc", self.bits)(*padded, *self._random)
                out[rows] = np.asarray(encoded)[: len(rows)]
        return out


def pad_tokens(
    tokens: np.ndarray, owner: np.ndarray, nobody: int, least: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and owners padded to a few lengths; padding belongs to ``nobody``."""
    length = least
    while length < len(tokens):
        # Steps of a quarter: at most a fifth is padding, for few compiled shapes.
        power = 1 << (length.bit_length() - 1)
        length += power // 4
    missing = length - len(tokens)
    return (
        np.pad(tokens, [(0, missing)] + [(0, 0)] * (tokens.ndim - 1)),
        np.pad(owner.astype(np.int32), (0, missing), constant_values=nobody),
    )


@functools.lru_cache(maxsize=8)
def _encode(doc: bool, bits: int) -> Any:
    import jax
    import jax.numpy as jnp

    buckets = 2**bits
    codes = jnp.arange(buckets)
    highest = jax.lax.Precision.HIGHEST

    def once(tokens, owner, planes, signs):
        """One repetition: [docs, buckets, P]."""
        powers = 2 ** jnp.arange(bits)
        code = ((tokens @ planes > 0) * powers).sum(-1)
        values = jnp.matmul(tokens, signs, precision=highest)
        # One more doc for the padding; it is cut off below.
        place = owner * buckets + code
        total = (_DOCS + 1) * buckets
        sums = jax.ops.segment_sum(values, place, total)
        if not doc:
            return sums.reshape(_DOCS + 1, buckets, -1)[:_DOCS]
        counts = jax.ops.segment_sum(jnp.ones(len(tokens)), place, total)
        means = sums / jnp.maximum(counts, 1)[:, None]
        distance = jax.lax.population_count(code[:, None] ^ codes[None])
        nearest = jax.ops.segment_min(
            distance * len(tokens) + jnp.arange(len(tokens))[:, None],
            owner,
            _DOCS + 1,
            indices_are_sorted=True,
        )
        exists = jax.ops.segment_sum(jnp.ones(len(tokens)), owner, _DOCS + 1) > 0
        filler = values[jnp.where(exists[:, None], nearest % len(tokens), 0)]
        filler = jnp.where(exists[:, None, None], filler, 0)
        empty = (counts == 0).reshape(_DOCS + 1, buckets, 1)
        means = means.reshape(_DOCS + 1, buckets, -1)
        return jnp.where(empty, filler, means)[:_DOCS]

    @jax.jit
    def encode(tokens, owner, planes, signs):
        def body(pair):
            return once(tokens, owner, *pair)

        every = jax.lax.map(body, (planes, signs))  # [R, docs, buckets, P]
        return jnp.moveaxis(every, 0, 1).reshape(_DOCS, -1)

    return encode
