"""Training lists: what a loss is given for one query, as rectangles of row numbers.

A list names a query, N candidates and their labels; pairs that a pairwise teacher
judged ride along. Nothing here is text: tokens are joined by the feed, so that each
text is tokenised once however many lists it appears in.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.files import digest, room_for
from distill_jax.io.reading import read_record, write_record

FIELDS = (
    "query_rows",
    "doc_rows",
    "labels",
    "labelled",
    "first",
    "second",
    "probability",
)


_AGAIN = "delete the folder and run the job again"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Lists:
    """E lists of N candidates with P judged pairs.

    Attributes:
        query_rows: Int[E], rows of a ``Queries``.
        doc_rows: Int[E N], rows of a ``Collection``; -1 pads.
        labels: Float[E N], higher is better; 0 where padded.
        labelled: Bool[E], True where candidate 0 is a positive to contrast with.
        first, second: Int[E P], positions in the list; -1 pads.
        probability: Float[E P], P(first over second).
    """

    query_rows: np.ndarray
    doc_rows: np.ndarray
    labels: np.ndarray
    labelled: np.ndarray
    first: np.ndarray
    second: np.ndarray
    probability: np.ndarray

    def __post_init__(self) -> None:
        if not np.isfinite(self.labels).all():
            row = int(np.argwhere(~np.isfinite(self.labels))[0][0])
            raise UserError(
                f"list {row} (query row {self.query_rows[row]}) has a label that is "
                "not finite",
                "label those queries again, or drop them",
            )

    def __len__(self) -> int:
        return len(self.query_rows)

    @property
    def where(self) -> np.ndarray:
        return self.doc_rows >= 0

    @functools.cached_property
    def digest(self) -> str:
        return digest(*(np.ascontiguousarray(getattr(self, name)) for name in FIELDS))

    def take(self, rows: np.ndarray) -> Lists:
        return Lists(**{name: getattr(self, name)[rows] for name in FIELDS})

    def save(self, directory: str | Path) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name in FIELDS:
            path = directory / f"{name}.npy"
            with room_for(path):
                np.save(path, getattr(self, name))
        write_record(
            directory / "lists.json", {"lists": len(self), "digest": self.digest}
        )

    @classmethod
    def load(cls, directory: str | Path) -> Lists:
        """Memory-mapped lists, read through once: their digest is compared.

        Raises:
            UserError: a file is missing, cut or altered.
        """
        directory = Path(directory)
        record = read_record(directory / "lists.json", _AGAIN, digest=str)
        fields = {}
        for name in FIELDS:
            path = directory / f"{name}.npy"
            try:
                fields[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise UserError(f"{path}: {error}", _AGAIN) from None
        lists = cls(**fields)
        if lists.digest != record["digest"]:
            raise UserError(f"{directory}: the lists were altered or cut", _AGAIN)
        return lists

    def replace(self, **changes) -> Lists:
        return dataclasses.replace(self, **changes)


def empty_lists(count: int, size: int, pairs: int) -> dict[str, np.ndarray]:
    """The fields of E = ``count`` lists of padding, N = ``size``, P = ``pairs``."""
    return {
        "query_rows": np.zeros(count, np.int32),
        "doc_rows": np.full((count, size), -1, np.int32),
        "labels": np.zeros((count, size), np.float32),
        "labelled": np.zeros(count, bool),
        "first": np.full((count, pairs), -1, np.int32),
        "second": np.full((count, pairs), -1, np.int32),
        "probability": np.zeros((count, pairs), np.float32),
    }


def concatenate(parts: Sequence[Lists]) -> Lists:
    """Lists one after another, padded to the widest list and the most pairs."""
    size = max(part.doc_rows.shape[1] for part in parts)
    pairs = max(part.first.shape[1] for part in parts)
    table = empty_lists(sum(len(part) for part in parts), size, pairs)
    start = 0
    for part in parts:
        stop = start + len(part)
        for name in FIELDS:
            value = getattr(part, name)
            if value.ndim == 1:
                table[name][start:stop] = value
            else:
                table[name][start:stop, : value.shape[1]] = value
        start = stop
    return Lists(**table)
