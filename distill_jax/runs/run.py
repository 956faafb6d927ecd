"""Rankings: a rectangle of document rows and scores, in trec_eval's order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from distill_jax.collections.collection import Collection
from distill_jax.io.errors import UserError, clip, near
from distill_jax.io.files import digest, digest_texts
from distill_jax.io.strings import int_list
from distill_jax.runs.fusion import merge, normalised
from distill_jax.runs.order import Lists, ordered
from distill_jax.runs.trec import read_run, write_run


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """Ranked documents of queries.

    The constructor sorts every list in trec_eval's order: score descending as
    float32, ties by document id descending. Padding comes last, with score -inf.

    Attributes:
        query_ids: Q query ids, all different.
        rows: int32[Q, K], positions in ``doc_ids``, -1 pads.
        scores: float32[Q, K].
        doc_ids: ids that rows index, normally ``collection.ids`` itself, not a copy.

    Raises:
        UserError: a document twice in one list, a score that is NaN, a query twice.
    """

    query_ids: tuple[str, ...]
    rows: np.ndarray
    scores: np.ndarray
    doc_ids: Sequence[str]

    def __post_init__(self):
        query_ids = tuple(self.query_ids)
        rows = np.asarray(self.rows, np.int32)
        scores = np.asarray(self.scores, np.float32)
        if rows.ndim != 2 or rows.shape != scores.shape or len(rows) != len(query_ids):
            raise ValueError(
                f"{len(query_ids)} queries, rows {rows.shape}, scores {scores.shape}"
            )
        if len(set(query_ids)) != len(query_ids):
            twice = next(q for i, q in enumerate(query_ids) if q in query_ids[:i])
            raise UserError(
                f"the run has query {clip(twice)} twice", "join its lists before"
            )
        rows, scores = ordered(query_ids, rows, scores, self.doc_ids)
        object.__setattr__(self, "query_ids", query_ids)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "scores", scores)

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.query_ids)

    def __repr__(self) -> str:
        return f"Run({len(self)} queries, depth {self.depth})"

    @property
    def where(self) -> np.ndarray:
        """bool[Q, K]: which cells hold a document."""
        return self.rows >= 0

    @property
    def depth(self) -> int:
        """K, the longest list."""
        return self.rows.shape[1]

    @functools.cached_property
    def digest(self) -> str:
        """Of the queries, the documents' ids and order, and the scores."""
        used, codes = self._used()
        ids = digest_texts(self.doc_ids[int(row)] for row in used)
        return digest("run", list(self.query_ids), ids, codes, self.scores)

    def _used(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows in use in order of first sight, and the cells as codes into them.

        So two runs with the same lists are the same whatever collection they index.
        """
        flat = self.rows[self.where]
        used, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
        order = np.argsort(first)
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        codes = np.full(self.rows.shape, -1, np.int32)
        codes[self.where] = place[inverse]
        return used[order], codes

    def as_lists(self) -> Lists:
        """The same arrays, for functions that make lists of lists."""
        return Lists(self.query_ids, self.rows, self.scores, self.doc_ids)

    def lists(self) -> dict[str, list[tuple[str, float]]]:
        """``{query id: [(document id, score), ...]}``."""
        return {
            query: [
                (self.doc_ids[row], score)
                for row, score in zip(int_list(rows), scores.tolist())
                if row >= 0
            ]
            for query, rows, scores in zip(self.query_ids, self.rows, self.scores)
        }

    def query(self, query_id: str) -> int:
        """The position of a query.

        Raises:
            UserError: the run does not have it.
        """
        found = self._positions.get(query_id)
        if found is None:
            raise UserError(
                f"the run has no query {clip(query_id)}{near(query_id, self.query_ids)}"
            )
        return found

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        return {query: i for i, query in enumerate(self.query_ids)}

    @classmethod
    def from_lists(
        cls,
        query_ids: Sequence[str],
        lists: Sequence[Iterable[tuple[str, float]]],
        doc_ids: Sequence[str] | None = None,
    ) -> Run:
        """A run from Python lists of (document id, score), in any order.

        Args:
            query_ids: Q ids.
            lists: Q lists.
            doc_ids: ids to index; by default those that occur.

        Raises:
            UserError: a document that is not in ``doc_ids``.
        """
        entries = [list(ranked) for ranked in lists]
        if doc_ids is None:
            occurring = (doc for ranked in entries for doc, _ in ranked)
            doc_ids = list(dict.fromkeys(occurring))
        row_of = {doc: row for row, doc in enumerate(doc_ids)}
        depth = max((len(ranked) for ranked in entries), default=0)
        rows = np.full((len(entries), depth), -1, np.int32)
        scores = np.full((len(entries), depth), -np.inf, np.float32)
        for i, ranked in enumerate(entries):
            for j, (doc, score) in enumerate(ranked):
                if doc not in row_of:
                    raise UserError(
                        f"query {clip(query_ids[i])}: unknown document {clip(doc)}"
                    )
                rows[i, j], scores[i, j] = row_of[doc], score
        return cls(tuple(query_ids), rows, scores, doc_ids)

    @classmethod
    def read(
        cls,
        path: str | Path,
        collection: Collection | None = None,
        limit: int | None = None,
    ) -> Run:
        """Reads a TREC run, or MS MARCO's ``qid<tab>pid<tab>rank``; ``.gz`` too.

        Args:
            path: the file. The rank column of a TREC run is not looked at.
            collection: index its documents; by default those that occur.
            limit: number of best documents kept for each query.

        Raises:
            UserError: with file:line, for a malformed line, a document twice in a
                list, or (with a collection) documents that it does not have.
        """
        lists = read_run(path, collection)
        try:
            run = cls(*lists)  # type: ignore[arg-type]
        except UserError as error:
            raise UserError(f"{path}: {error.what}", error.todo) from None
        return run if limit is None else run.top(limit)

    def write(self, path: str | Path, tag: str = "distill_jax") -> None:
        """Writes a TREC run file atomically, in bounded memory.

        A TREC file cannot hold ids with blanks: they are written
        percent-encoded, and the tag says so (``TAG;ids=percent-encoded``), by which
        ``read`` knows to decode them. Scores are written so that float32 survives.

        Args:
            path: the file, compressed when it ends in ``.gz``.
            tag: the run's name, without blanks.
        """
        write_run(self.as_lists(), path, tag)

    def top(self, k: int) -> Run:
        """The best ``k`` documents of every query."""
        return self._like(self.rows[:, :k], self.scores[:, :k])

    def select(self, query_ids: Iterable[str]) -> Run:
        """The lists of these queries, in their order.

        Raises:
            UserError: the run lacks one of them.
        """
        ids = tuple(query_ids)
        at = np.asarray([self.query(query) for query in ids], np.int64)
        return Run(ids, self.rows[at], self.scores[at], self.doc_ids)

    def on(self, collection: Collection) -> Run:
        """The same run with rows that index a collection.

        Raises:
            UserError: documents that the collection does not have.
        """
        if collection.ids is self.doc_ids:
            return self
        used, codes = self._used()
        new = collection.rows(self.doc_ids[int(row)] for row in used)
        if (new < 0).any():
            missing = self.doc_ids[int(used[int(np.argmax(new < 0))])]
            raise UserError(
                f"{int((new < 0).sum())} documents of the run are not in "
                f"{collection.name or 'the collection'}, e.g. {clip(missing)}",
                "use a run of this collection",
            )
        rows = np.where(codes >= 0, new[codes] if len(new) else -1, -1)
        return Run(self.query_ids, rows, self.scores, collection.ids)

    def _like(self, rows: np.ndarray, scores: np.ndarray) -> Run:
        return Run(self.query_ids, rows, scores, self.doc_ids)

    @classmethod
    def fuse(
        cls,
        runs: Sequence[Run],
        k: float = 60,
        weights: Sequence[float] | None = None,
        depth: int | None = None,
    ) -> Run:
        """Reciprocal rank fusion: sum of ``weight / (k + rank)``, ranks from 1.

        Args:
            runs: runs of the same or different queries; a missing list gives nothing.
            k: the constant of Cormack et al. (SIGIR 2009), 60 there.
            weights: one a run, 1 by default.
            depth: number of documents kept for each query, all by default.
        """

        def gains(run: Run) -> np.ndarray:
            ranks = np.arange(1, run.depth + 1, dtype=np.float64)
            return np.broadcast_to(1.0 / (k + ranks), run.rows.shape)

        lists = [run.as_lists() for run in runs]
        merged = merge(lists, [gains(run) for run in runs], weights)
        fused = cls(*merged)  # type: ignore[arg-type]
        return fused if depth is None else fused.top(depth)

    @classmethod
    def combine(
        cls,
        runs: Sequence[Run],
        weights: Sequence[float] | None = None,
        normalise: str | None = "minmax",
        depth: int | None = None,
    ) -> Run:
        """The weighted sum of scores; a document that a run lacks gets its minimum.

        Args:
            runs: runs of the same or different queries.
            weights: one a run, 1 by default.
            normalise: per list: ``"minmax"`` to [0, 1], ``"zscore"``, or None. A list
                of equal scores becomes 0. Without normalisation a missing document
                counts 0.
            depth: number of documents kept for each query, all by default.

        Raises:
            UserError: an unknown normalisation.
        """
        if normalise not in ("minmax", "zscore", None):
            raise UserError(
                f"unknown normalisation {normalise!r}", "use minmax, zscore or None"
            )
        lists, parts, floors = [run.as_lists() for run in runs], [], []
        for run in lists:
            values, floor = normalised(run, normalise)
            # Lacking a document then means adding nothing.
            parts.append(values - floor[:, None])
            floors.append(dict(zip(run.query_ids, floor.tolist())))
        merged = merge(lists, parts, weights, floors)
        combined = cls(*merged)  # type: ignore[arg-type]
        return combined if depth is None else combined.top(depth)
