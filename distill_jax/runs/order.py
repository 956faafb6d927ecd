"""The order of a run: score descending as float32, ties by document id descending."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distill_jax.io.errors import UserError, clip
from distill_jax.io.strings import int_list

_CHUNK_CELLS = 1 << 22


class Lists(NamedTuple):
    """The lists of a run as arrays, before and inside a ``Run``.

    Attributes:
        query_ids: Q ids.
        rows: int32[Q, K], positions in ``doc_ids``, -1 pads.
        scores: float[Q, K], -inf where padded.
        doc_ids: ids that rows index.
    """

    query_ids: Sequence[str]
    rows: np.ndarray
    scores: np.ndarray
    doc_ids: Sequence[str]

    @property
    def where(self) -> np.ndarray:
        """bool[Q, K]: which cells hold a document."""
        return self.rows >= 0


def padded(
    query_ids: Sequence[str],
    query: np.ndarray,
    rows: np.ndarray,
    scores: np.ndarray,
    doc_ids: Sequence[str],
) -> Lists:
    """Flat entries to padded lists.

    Args:
        query_ids: Q ids.
        query: int[E], position of each entry's query.
        rows: int32[E].
        scores: float[E].
        doc_ids: ids that rows index.
    """
    if len(query) > 1 and (query[1:] < query[:-1]).any():
        order = np.argsort(query, kind="stable")
        query, rows, scores = query[order], rows[order], scores[order]
    counts = np.bincount(query, minlength=len(query_ids)) if len(query) else None
    depth = 0 if counts is None else int(counts.max())
    out_rows = np.full((len(query_ids), depth), -1, np.int32)
    out_scores = np.full((len(query_ids), depth), -np.inf, np.float32)
    if counts is not None:
        starts = np.cumsum(counts) - counts
        column = np.arange(len(query)) - np.repeat(starts, counts)
        out_rows[query, column] = rows
        out_scores[query, column] = scores
    return Lists(query_ids, out_rows, out_scores, doc_ids)


def ordered(
    query_ids: Sequence[str],
    rows: np.ndarray,
    scores: np.ndarray,
    doc_ids: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores in trec_eval's order; the inputs themselves when they are so.

    Args:
        query_ids: Q ids, for messages.
        rows: int32[Q, K], -1 pads.
        scores: float32[Q, K].
        doc_ids: ids that rows index.

    Raises:
        UserError: a document twice in a list, or a score that is NaN.
    """
    if not rows.size:
        return rows, scores
    step = max(1, _CHUNK_CELLS // rows.shape[1])
    copied = False
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        r, s = rows[part], scores[part]
        _check(query_ids, start, r, s, doc_ids)
        new_r, new_s = _order_part(r, s, doc_ids)
        if new_r is not r or new_s is not s:
            if not copied:
                rows, scores, copied = rows.copy(), scores.copy(), True
            rows[part], scores[part] = new_r, new_s
    return rows, scores


def _check(
    query_ids: Sequence[str],
    start: int,
    rows: np.ndarray,
    scores: np.ndarray,
    doc_ids: Sequence[str],
) -> None:
    where = rows >= 0
    nan = where & np.isnan(scores)
    if nan.any():
        i, j = np.argwhere(nan)[0]
        raise UserError(
            f"query {clip(query_ids[start + int(i)])}, document "
            f"{clip(doc_ids[int(rows[i, j])])}: the score is NaN",
            "check the model or index that produced it",
        )
    if rows.max(initial=-1) >= len(doc_ids):
        raise ValueError(f"row {rows.max()} of {len(doc_ids)} documents")
    ordered = np.sort(rows, axis=1)
    same = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if same.any():
        i, j = np.argwhere(same)[0]
        raise UserError(
            f"query {clip(query_ids[start + int(i)])} has document "
            f"{clip(doc_ids[int(ordered[i, j])])} twice in its list",
            "keep one of the two; a file that was appended to is a common cause",
        )


def _order_part(
    rows: np.ndarray, scores: np.ndarray, doc_ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    where = rows >= 0
    if not where.all() and not (scores[~where] == -np.inf).all():
        scores = np.where(where, scores, np.float32(-np.inf))
    falls = (scores[:, :-1] >= scores[:, 1:]) & (where[:, :-1] | ~where[:, 1:])
    if not falls.all():
        # -inf may be a real score: padding still comes last.
        order = np.lexsort((-scores, ~where), axis=1)
        rows = np.take_along_axis(rows, order, 1)
        scores = np.take_along_axis(scores, order, 1)
    tied = (scores[:, :-1] == scores[:, 1:]) & (rows[:, 1:] >= 0)
    lists = np.flatnonzero(tied.any(1))
    if not len(lists):
        return rows, scores
    place = _id_places(rows[lists], tied[lists], doc_ids)
    order = np.lexsort((-place, -scores[lists], rows[lists] < 0), axis=1)
    rows = rows.copy()
    rows[lists] = np.take_along_axis(rows[lists], order, 1)
    return rows, scores


def _id_places(
    rows: np.ndarray, tied: np.ndarray, doc_ids: Sequence[str]
) -> np.ndarray:
    """int64 like rows: places in the order of ids, right among tied documents."""
    member = np.zeros(rows.shape, bool)
    member[:, 1:] |= tied
    member[:, :-1] |= tied
    used = np.unique(rows[member])
    ids = [doc_ids[row] for row in int_list(used)]
    # Code points sort as UTF-8 bytes do, which is what trec_eval compares.
    by_id = np.asarray(sorted(range(len(ids)), key=ids.__getitem__), np.int64)
    place = np.empty(len(ids), np.int64)
    place[by_id] = np.arange(len(ids))
    found = np.clip(np.searchsorted(used, rows), 0, len(used) - 1)
    return np.where(used[found] == rows, place[found], -1)
