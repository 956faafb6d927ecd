"""Teacher labels for lists of docs, with their provenance.

A label is worth money: it is stored raw (logits, never squashed), in float32, with its
provenance, and a failure is stored as a failure. How the
files look is in ``store``; foreign formats are in ``readers``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.labels.ragged import first_twice, rectangle, rows_of, translate
from distill_jax.labels.shards import id_column, list_column
from distill_jax.labels.store import read_lists, write_all
from distill_jax.runs.run import Run

Kind = Literal["score", "rank"]


@dataclass(frozen=True, eq=False)
class TeacherLabels:
    """A teacher's scores or ranks of Q lists of at most N docs.

    Attributes:
      query_ids: Q ids, each once.
      rows: int32[Q, N], positions in ``doc_ids``; -1 pads.
      scores: float32[Q, N]; nan where padded, and in the whole of a failed list.
        Kind "rank" holds the ranks 1..n of each list, 1 for the best.
      doc_ids: what rows index, normally a collection's ids (shared, not copied).
      kind: "score" (higher is better) or "rank" (lower is better).
      failed: bool[Q], the lists for which the teacher gave nothing that can be used.
      provenance: who labelled what, from which candidates; JSON-able.
    """

    query_ids: tuple[str, ...]
    rows: np.ndarray
    scores: np.ndarray
    doc_ids: Sequence[str]
    kind: Kind = "score"
    failed: np.ndarray = field(default=None)  # type: ignore[assignment]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        set_ = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        set_("query_ids", tuple(self.query_ids))
        set_("rows", np.asarray(self.rows, np.int32))
        set_("scores", np.asarray(self.scores, np.float32))
        failed = self.failed
        if failed is None:
            failed = np.zeros(len(self.query_ids), bool)
        set_("failed", np.asarray(failed, bool))
        if self.kind not in ("score", "rank"):
            raise UserError(f"labels of kind {self.kind!r}", 'use "score" or "rank"')
        queries = len(self.query_ids)
        if (
            self.rows.ndim != 2
            or self.rows.shape[0] != queries
            or self.scores.shape != self.rows.shape
            or self.failed.shape != (queries,)
        ):
            raise UserError(
                f"labels of {queries} queries with rows {self.rows.shape}, scores"
                f" {self.scores.shape} and failed {self.failed.shape}",
                "rows and scores are [Q, N], failed is [Q]",
            )

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def where(self) -> np.ndarray:
        """bool[Q, N]: a doc is there and the teacher has labelled it."""
        return (self.rows >= 0) & ~self.failed[:, None]

    def lengths(self) -> np.ndarray:
        """int32[Q]: docs in each list, labelled or not."""
        return (self.rows >= 0).sum(axis=1, dtype=np.int32)

    def training_labels(self, depth: int | None = None) -> np.ndarray:
        """float32[Q, N], higher is better; nan outside ``where``.

        Scores stay as they are. Ranks become ``depth - rank + 1``; without ``depth``
        the list's own length is taken, so that the last doc of any list has 1.
        """
        labels = self.scores
        if self.kind == "rank":
            n = self.lengths()[:, None] if depth is None else depth
            labels = (n + 1 - labels).astype(np.float32)
        return np.where(self.where, labels, np.float32(np.nan))

    def select(self, query_ids: Iterable[str]) -> TeacherLabels:
        """The lists of these queries, in this order."""
        place = {query_id: i for i, query_id in enumerate(self.query_ids)}
        query_ids = tuple(query_ids)
        missing = [query_id for query_id in query_ids if query_id not in place]
        if missing:
            raise UserError(
                f"{len(missing)} queries have no labels, the first is {missing[0]!r}",
                "label them first, or leave them out",
            )
        at = np.array([place[query_id] for query_id in query_ids], np.int64)
        return replace(
            self,
            query_ids=query_ids,
            rows=self.rows[at],
            scores=self.scores[at],
            failed=self.failed[at],
        )

    def on(self, collection: Any, unknown: str = "refuse") -> TeacherLabels:
        """The same labels with the rows of another collection."""
        if self.doc_ids is collection.ids:
            return self
        rows, doc_ids = translate(self.rows, self.doc_ids, collection, unknown)
        labels = replace(self, rows=rows, doc_ids=doc_ids)
        dropped = (rows < 0).sum() > (self.rows < 0).sum()
        return labels.keep(rows >= 0) if dropped else labels

    def usable(self) -> TeacherLabels:
        """Without the failed lists."""
        return self.select(
            q for q, failed in zip(self.query_ids, self.failed) if not failed
        )

    def keep(self, where: np.ndarray) -> TeacherLabels:
        """Only the docs where bool[Q, N] is True; ranks are renumbered.

        Rank-DistiLLM's sub-sampling of a deep LLM order is this, with the docs of the
        first stage's top k.
        """
        where = np.asarray(where, bool) & (self.rows >= 0)
        # A stable sort moves what is kept to the front and leaves its order alone.
        order = np.argsort(~where, axis=1, kind="stable")
        width = max(int(where.sum(axis=1).max(initial=0)), 1)
        order, kept = order[:, :width], np.take_along_axis(where, order, 1)[:, :width]
        rows = np.where(kept, np.take_along_axis(self.rows, order, 1), -1)
        scores = np.where(kept, np.take_along_axis(self.scores, order, 1), np.nan)
        if self.kind == "rank":
            scores = np.where(
                np.isfinite(scores), _ranks_of(scores), np.float32(np.nan)
            )
        return replace(self, rows=rows, scores=scores.astype(np.float32))

    def to_run(self) -> Run:
        """The teacher's order as a Run (failed lists are left out)."""
        labels, lists = self.training_labels(), {}
        for i, query_id in enumerate(self.query_ids):
            if self.failed[i]:
                continue
            at = np.flatnonzero(self.rows[i] >= 0)
            lists[query_id] = [
                (self.doc_ids[int(self.rows[i, j])], float(labels[i, j])) for j in at
            ]
        return Run.from_lists(tuple(lists), list(lists.values()), doc_ids=self.doc_ids)

    def lists(self) -> dict[str, list[tuple[str, float]]]:
        """{query id: [(doc id, stored score or rank), ...]}; nan when failed."""
        return {
            query_id: [
                (self.doc_ids[int(row)], float(score))
                for row, score in zip(rows, scores)
                if row >= 0
            ]
            for query_id, rows, scores in zip(self.query_ids, self.rows, self.scores)
        }

    @classmethod
    def from_lists(
        cls,
        query_ids: Iterable[str],
        lists: Iterable[Sequence[tuple[str, float]]],
        *,
        kind: Kind = "score",
        provenance: Mapping[str, Any] | None = None,
        collection: Any = None,
        unknown: str = "refuse",
        failed: Sequence[bool] | None = None,
    ) -> TeacherLabels:
        """Ragged lists of (doc id, score or rank) to a rectangle.

        Args:
          collection: a Collection whose rows are used; without it ``doc_ids`` are the
            ids met, in the order in which they are met.
          unknown: "refuse" a doc that the collection does not have, or "drop" it.
        """
        query_ids, lists = tuple(query_ids), [list(docs) for docs in lists]
        flat = [doc_id for docs in lists for doc_id, _ in docs]
        rows, doc_ids = rows_of(flat, collection, unknown)
        labels = cls(
            query_ids,
            rectangle(rows, [len(docs) for docs in lists], -1, np.int32),
            rectangle(
                [score for docs in lists for _, score in docs],
                [len(docs) for docs in lists],
                np.nan,
                np.float32,
            ),
            doc_ids,
            kind,
            failed,  # type: ignore[arg-type]
            dict(provenance or {}),
        )
        labels.scores[labels.failed] = np.nan
        # Docs that were dropped leave holes (-1 with a score): close them.
        labels = labels.keep(labels.rows >= 0) if (rows < 0).any() else labels
        labels.check()
        return labels

    def check(self, place: str = "labels") -> None:
        """Raises UserError on the first label that is invalid for training."""
        if len(set(self.query_ids)) != len(self.query_ids):
            twice = first_twice(self.query_ids)
            raise UserError(
                f"{place}: query {twice!r} occurs twice", "keep one list of it"
            )
        there = self.rows >= 0
        bad = there & ~np.isfinite(self.scores) & ~self.failed[:, None]
        if bad.any():
            i, j = np.argwhere(bad)[0]
            doc_id = self.doc_ids[int(self.rows[i, j])]
            raise UserError(
                f"{place}: query {self.query_ids[i]!r}, doc {doc_id!r} has the score"
                f" {self.scores[i, j]}",
                "a teacher that failed is stored as failed, not as a number",
            )
        if self.rows.size and int(self.rows.max()) >= len(self.doc_ids):
            raise UserError(
                f"{place}: row {int(self.rows.max())} of {len(self.doc_ids)} docs",
                "the labels belong to another collection",
            )
        ordered = np.sort(self.rows, axis=1)
        same = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if same.any():
            i, j = np.argwhere(same)[0]
            raise UserError(
                f"{place}: query {self.query_ids[i]!r} lists doc"
                f" {self.doc_ids[int(ordered[i, j])]!r} twice",
                "keep one label of it",
            )
        if self.kind == "rank":
            ranks = np.sort(np.where(self.where, self.scores, np.inf), axis=1)
            expected = np.arange(1, ranks.shape[1] + 1, dtype=np.float32)
            wrong = (np.isfinite(ranks) & (ranks != expected)).any(axis=1)
            if wrong.any():
                raise UserError(
                    f"{place}: the ranks of query"
                    f" {self.query_ids[int(wrong.argmax())]!r} are not 1, 2, 3, ...",
                    'scores are stored with kind "score"',
                )

    def write(self, directory: str | Path) -> Path:
        """Replaces what ``directory`` holds by these labels, as one finished folder."""
        return write_all(directory, self)

    @classmethod
    def read(
        cls,
        directory: str | Path,
        collection: Any = None,
        expect: Mapping[str, Any] | None = None,
        unknown: str = "refuse",
    ) -> TeacherLabels:
        """Reads a folder of shards.

        Args:
          collection: gives the rows; without it ``doc_ids`` are the ids met.
          expect: provenance entries that must hold, such as
            ``{"candidates": run.digest}``.
          unknown: "refuse" docs that the collection does not have, or "drop" them.

        Raises:
          UserError: a shard is missing, cut or altered; shards or ``expect`` disagree
            on the provenance; scores are not finite, lengths differ, ids are unknown.
        """
        labels = cls(**read_lists(directory, collection, expect, unknown))
        there = labels.rows >= 0
        # Dropped docs leave holes before the end of a list: close them.
        if (there[:, :-1] < there[:, 1:]).any() or (
            ~there & np.isfinite(labels.scores)
        ).any():
            labels = labels.keep(there)
        labels.check(str(directory))
        return labels

    def columns(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The Arrow columns of a shard, one line a query, and no metadata."""
        import pyarrow as pa

        there = self.rows >= 0
        scored = there & ~self.failed[:, None]
        columns = {
            "query_id": pa.array(self.query_ids, pa.string()),
            "doc_ids": list_column(
                id_column(self.doc_ids, self.rows[there]), there.sum(axis=1)
            ),
            "scores": list_column(
                pa.array(self.scores[scored], pa.float32()), scored.sum(axis=1)
            ),
            "kind": pa.array([self.kind] * len(self), pa.string()),
            "failed": pa.array(self.failed, pa.bool_()),
        }
        return columns, {}


def _ranks_of(ranks: np.ndarray) -> np.ndarray:
    """1 for the smallest of each line, nan last."""
    return np.argsort(np.argsort(ranks, axis=1, kind="stable"), axis=1) + 1
