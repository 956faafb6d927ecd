"""The token vectors of docs, ragged: flat vectors and where each doc begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class TokenVectors:
    """Vectors of all tokens end to end.

    Attributes:
        values: [T, D], any float type, possibly a memory map.
        offsets: int64[N + 1]; doc i is ``values[offsets[i]:offsets[i + 1]]``.
    """

    values: Any
    offsets: np.ndarray

    @classmethod
    def of(cls, docs: Any) -> TokenVectors:
        """From ``TokenVectors``, (flat, offsets), or a list of [T_i, D] arrays.

        Raises:
            UserError: the docs have different D, or offsets do not fit.
        """
        if isinstance(docs, cls):
            return docs
        if hasattr(docs, "values") and hasattr(docs, "offsets"):
            return cls(docs.values, np.asarray(docs.offsets, np.int64)).checked()
        if isinstance(docs, tuple) and len(docs) == 2 and np.ndim(docs[1]) == 1:
            return cls(docs[0], np.asarray(docs[1], np.int64)).checked()
        return cls._joined(docs)

    @classmethod
    def _joined(cls, docs: Sequence[np.ndarray]) -> TokenVectors:
        widths = {np.shape(doc)[1] for doc in docs if np.ndim(doc) == 2}
        if len(widths) > 1 or any(np.ndim(doc) != 2 for doc in docs):
            raise UserError(
                f"token vectors of dimensions {sorted(widths)} in one list",
                "give [tokens, D] arrays of one D",
            )
        lengths = [len(doc) for doc in docs]
        flat = np.concatenate(list(docs)) if lengths else np.zeros((0, 1), np.float32)
        return cls(flat, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    def checked(self, docs: int | None = None) -> TokenVectors:
        """Itself, if offsets and values fit together.

        Raises:
            UserError: they do not.
        """
        ends = self.offsets
        if (
            np.ndim(self.values) != 2
            or not len(ends)
            or ends[0] != 0
            or ends[-1] != len(self.values)
            or np.any(np.diff(ends) < 0)
            or (docs is not None and len(self) != docs)
        ):
            raise UserError(
                f"token vectors of shape {np.shape(self.values)} with {len(ends)} "
                "offsets that do not fit them",
                "give flat [T, D] vectors and N + 1 ascending offsets from 0 to T",
            )
        return self

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def width(self) -> int:
        """D."""
        return self.values.shape[1]

    @property
    def lengths(self) -> np.ndarray:
        """int64[N]: tokens of each doc."""
        return np.diff(self.offsets)

    def __getitem__(self, row: int) -> np.ndarray:
        begin, end = int(self.offsets[row]), int(self.offsets[row + 1])
        return np.asarray(self.values[begin:end])

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of docs int[M] end to end, and the place (0 to M-1) of each."""
        lengths = self.lengths[rows]
        owner = np.repeat(np.arange(len(rows)), lengths)
        within = np.arange(len(owner)) - np.repeat(
            np.cumsum(lengths) - lengths, lengths
        )
        return self.values[np.repeat(self.offsets[rows], lengths) + within], owner
