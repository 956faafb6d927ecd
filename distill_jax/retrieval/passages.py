"""Search of documents by their passages: a document ranks by its best one (MaxP)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from distill_jax.runs.run import Run


class PassageIds(Sequence[str]):
    """An id for each passage, in the order of its document's id.

    The document's id and the passage's number stand apart by a character that sorts
    before all others, so that ties of passages break as ties of documents do.

    Args:
        doc_ids: M ids.
        first: int64[M + 1]; document i has passages ``first[i]`` to ``first[i + 1]``.
    """

    def __init__(self, doc_ids: Sequence[str], first: np.ndarray):
        self._doc_ids, self._first = doc_ids, first

    def __len__(self) -> int:
        return int(self._first[-1])

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        doc = int(np.searchsorted(self._first, row, "right")) - 1
        return f"{self._doc_ids[doc]}\0{row - int(self._first[doc]):09d}"

    def __iter__(self) -> Iterator[str]:
        for doc, count in zip(self._doc_ids, np.diff(self._first).tolist()):
            for number in range(count):
                yield f"{doc}\0{number:09d}"


@dataclasses.dataclass(frozen=True, eq=False)
class ByPassages:
    """An index of passages that gives runs of documents.

    With an exact index the run is exact: the passages before a document's best one
    are of documents before it, each of which has ``most`` at most.

    Attributes:
        index: a retriever of passages, whose rows are theirs.
        owner: int64[P], the row of each passage's document.
        doc_ids: M ids.
        most: passages of a document at most.
    """

    index: Any
    owner: np.ndarray
    doc_ids: Sequence[str]
    most: int

    def search(
        self, queries: Any, k: int, query_ids: Sequence[str] | None = None
    ) -> Run:
        """The k documents of the best passages of each query."""
        depth = min(k * self.most, len(self.owner))
        found = self.index.search(queries, depth, query_ids=query_ids)
        rows = np.where(found.where, self.owner[np.maximum(found.rows, 0)], -1)
        order = np.argsort(rows, axis=1, kind="stable")
        ranked = np.take_along_axis(rows, order, 1)
        # Passages come best first: of a document's, the others are left out.
        again = np.zeros(rows.shape, bool)
        np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], 1)
        rows = np.where(again, -1, rows).astype(np.int32)
        scores = np.where(rows >= 0, found.scores, -np.inf).astype(np.float32)
        return Run(found.query_ids, rows, scores, self.doc_ids).top(k)
