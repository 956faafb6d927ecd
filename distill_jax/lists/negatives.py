"""Hard negatives: candidates of a run without those that may be relevant after all.

Everything works on a finished run, so a filter can be changed without
encoding or searching again. What was removed, why, and how near it came to the
positive is kept for the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError, near
from distill_jax.io.files import digest
from distill_jax.runs.run import Run
from distill_jax.text.equality import text_key

REASONS = (
    "known positive",
    "own document",
    "duplicate of a positive",
    "duplicate in the list",
    "absolute margin",
    "relative margin",
    "suspected by the teacher",
)

SAMPLINGS = ("top", "random", "log_random", "stratified")


@dataclasses.dataclass(frozen=True, eq=False)
class Filtered:
    """What a filter left, and what it took.

    Attributes:
        run: the candidates that stay, ranks closed up.
        before: the run that was filtered.
        reason: int8[Q, K] for the cells of ``before``: position in ``REASONS`` of the
            first filter that took it, -1 where it stays (or is padding).
        nearness: float32[Q, K]: score minus the positive's score, by the teacher where
            it judged; nan where there is no positive to compare with.
        without_positive: queries whose margins could not be applied.
    """

    run: Run
    before: Run
    reason: np.ndarray
    nearness: np.ndarray
    without_positive: int

    @property
    def funnel(self) -> dict[str, int]:
        """Candidates at first and after each filter, and queries left with some."""
        left = int(self.before.where.sum())
        counts = {"candidates": left}
        for number, name in enumerate(REASONS):
            left -= int((self.reason == number).sum())
            counts[f"after {name}"] = left
        counts["queries with a negative"] = int(self.run.where.any(1).sum())
        return counts

    def suspects(self, count: int, queries: Any, collection: Any) -> list[dict]:
        """The removed candidates that scored nearest to, or furthest above, a positive.

        Only what margins and the teacher took: those are guesses that a person should
        look at. Texts are cut to 300 characters.
        """
        guessed = self.reason >= REASONS.index("absolute margin")
        value = np.where(guessed & np.isfinite(self.nearness), self.nearness, -np.inf)
        flat = np.argsort(-value, axis=None, kind="stable")[:count]
        found = []
        for place in flat[np.isfinite(value.reshape(-1)[flat])]:
            q, k = np.unravel_index(place, value.shape)
            row, query_id = int(self.before.rows[q, k]), self.before.query_ids[q]
            doc_id = self.before.doc_ids[row]
            found.append(
                {
                    "query_id": query_id,
                    "query": queries.text(queries.row(query_id))[:300],
                    "doc_id": doc_id,
                    "doc": collection.full_text(collection.row(doc_id))[:300],
                    "rank": int(k) + 1,
                    "above_positive": float(value[q, k]),
                    "reason": REASONS[self.reason[q, k]],
                }
            )
        return found


def filter_negatives(
    run: Run,
    *,
    qrels: Any = None,
    level: int = 1,
    collection: Any = None,
    queries: Any = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    positive_scores: np.ndarray | None = None,
    teacher: Any = None,
    teacher_margin: float = 0.0,
    teacher_threshold: float | None = None,
) -> Filtered:
    """Removes candidates that are, or may be, relevant. Filters work together.

    Args:
        run: candidates and their scores.
        qrels: judgements; docs of grade ``level`` or more are known positives.
        collection: with it, a candidate whose text equals that of a known positive
            or of a better candidate (but for case, punctuation, spacing) is removed.
        queries: with it and ``collection``, a doc whose text is the query's is removed.
        absolute_margin: keep what scores at least so much below the positive.
        relative_margin: keep what scores below the positive by this share of the
            positive's absolute value: negative scores are safe.
        positive_scores: float[Q], nan for none. None takes the best known positive's
            score in the run.
        teacher: ``TeacherLabels`` of (some of) the candidates, positives among them.
        teacher_margin: a candidate is suspected that the teacher scores higher than
            the best known positive minus this.
        teacher_threshold: a candidate above this score is a suspect, whatever the
            positive has.

    A doc whose id is the query's id is removed in any case.
    """
    where = run.where
    reason = np.where(where, -1, -2).astype(np.int8)

    def take(name: str, cells: np.ndarray) -> None:
        reason[cells & (reason == -1)] = REASONS.index(name)

    positives = _positive_rows(run, qrels, level)
    known = _member(run.rows, positives)
    take("known positive", known)
    take("own document", _own(run))
    if collection is not None:
        texts = _Texts(run, collection)
        take("duplicate of a positive", texts.equal_to(positives, queries))
        take("duplicate in the list", texts.repeated(reason == -1))
    if positive_scores is None:
        positive_scores = np.where(known, run.scores, -np.inf).max(1, initial=-np.inf)
    positive = np.asarray(positive_scores, np.float64)[:, None]
    positive = np.where(np.isfinite(positive), positive, np.nan)
    nearness = np.where(where, run.scores, np.nan) - positive
    if absolute_margin is not None:
        take("absolute margin", nearness > -absolute_margin)
    if relative_margin is not None:
        take("relative margin", nearness > -relative_margin * np.abs(positive))
    if teacher is not None:
        judged = _teacher_scores(run, teacher)
        best = np.where(known, judged, -np.inf).max(1, initial=-np.inf)[:, None]
        best = np.where(np.isfinite(best), best, np.nan)
        suspected = judged > best - teacher_margin
        if teacher_threshold is not None:
            suspected |= judged > teacher_threshold
        take("suspected by the teacher", suspected)
        nearness = np.where(np.isfinite(judged - best), judged - best, nearness)
    reason[~where] = -1
    rows = np.where(where & (reason == -1), run.rows, -1)
    left = Run(run.query_ids, rows, run.scores, run.doc_ids)
    margins = absolute_margin is not None or relative_margin is not None
    return Filtered(
        run=left,
        before=run,
        reason=reason,
        nearness=nearness.astype(np.float32),
        without_positive=int(np.isnan(positive).sum()) if margins else 0,
    )


def places(
    many: int,
    count: int,
    sampling: str,
    random: np.random.Generator,
    *,
    first: int = 0,
) -> np.ndarray:
    """int[count]: which of ``many`` candidates are drawn, without replacement.

    Args:
        sampling: "top" takes the first; "random" any; "log_random" any, with chances
            that fall as 1 / rank, so that each doubling of rank is drawn alike;
            "stratified" one from each of ``count`` equal parts.
        first: rank of the first of them.

    Raises:
        UserError: an unknown sampling.
    """
    if sampling not in SAMPLINGS:
        raise UserError(
            f"sampling {sampling!r}{near(sampling, SAMPLINGS)}",
            f"choose one of {', '.join(SAMPLINGS)}",
        )
    if sampling == "top":
        return np.arange(min(many, count))
    if sampling == "stratified":
        bounds = np.linspace(0, many, count + 1)
        spots = bounds[:-1] + random.random(count) * np.diff(bounds)
        # Two strata may round to one place; the free ones after it take turns.
        chosen = np.maximum.accumulate(spots.astype(int) - np.arange(count))
        return np.minimum(chosen + np.arange(count), many - count + np.arange(count))
    weight = 1 / (first + 1 + np.arange(many)) if sampling == "log_random" else 1
    # The greatest of exponential races: drawing without replacement.
    return np.argsort(random.exponential(size=many) / weight)[:count]


def _positive_rows(run: Run, qrels: Any, level: int) -> list[np.ndarray]:
    """Rows (of the run's docs) of each query's known positives."""
    if qrels is None:
        return [np.zeros(0, np.int64)] * len(run)
    wanted = [qrels.relevant(query, level) for query in run.query_ids]
    names = {doc for docs in wanted for doc in docs}
    row_of = {doc: row for row, doc in enumerate(run.doc_ids) if doc in names}
    return [
        np.array([row_of[doc] for doc in docs if doc in row_of], np.int64)
        for docs in wanted
    ]


def _member(values: np.ndarray, sets: Sequence[np.ndarray]) -> np.ndarray:
    """bool[Q, K]: whether a value is in its query's set."""
    query = np.repeat(np.arange(len(sets)), [len(part) for part in sets])
    flat = np.concatenate([*sets, np.zeros(0, np.int64)]).astype(np.int64)
    base = np.int64(max(values.max(initial=0), flat.max(initial=0)) + 1)
    cells = np.arange(len(values))[:, None] * base + values
    return np.isin(cells, query * base + flat) & (values >= 0)


def _own(run: Run) -> np.ndarray:
    """Cells whose doc has the query's id."""
    names = set(run.query_ids)
    row_of = {doc: row for row, doc in enumerate(run.doc_ids) if doc in names}
    own = np.array([row_of.get(query, -2) for query in run.query_ids], np.int64)
    return run.rows == own[:, None]


def _teacher_scores(run: Run, teacher: Any) -> np.ndarray:
    """float64[Q, K]: the teacher's higher-is-better scores, nan where it has none."""
    labels = np.asarray(teacher.training_labels(), np.float64)
    out = np.full(run.rows.shape, np.nan)
    place = {query: i for i, query in enumerate(teacher.query_ids)}
    table = None
    if teacher.doc_ids is not run.doc_ids:
        row_of = {doc: row for row, doc in enumerate(run.doc_ids)}
        table = np.array([*(row_of.get(doc, -1) for doc in teacher.doc_ids), -1])
    for query, query_id in enumerate(run.query_ids):
        at = place.get(query_id)
        if at is None or teacher.failed[at]:
            continue
        rows = teacher.rows[at] if table is None else table[teacher.rows[at]]
        good = (rows >= 0) & np.isfinite(labels[at])
        order = np.argsort(rows[good], kind="stable")
        known, values = rows[good][order], labels[at][good][order]
        if len(known):
            spot = np.minimum(np.searchsorted(known, run.rows[query]), len(known) - 1)
            found = known[spot] == run.rows[query]
            out[query, found] = values[spot[found]]
    return out


class _Texts:
    """Docs by the digest of their normalised text; each text is read once."""

    def __init__(self, run: Run, collection: Any):
        self._run = run
        self._collection = collection
        self._codes: dict[str, int] = {}
        used = np.unique(run.rows[run.where])
        self._code_of_row = np.full(len(run.doc_ids) + 1, -1, np.int64)
        self._code_of_row[used] = [self._code_of_doc(row) for row in used.tolist()]
        self._codes_of_cells = self._code_of_row[run.rows]

    def equal_to(self, positives: Sequence[np.ndarray], queries: Any) -> np.ndarray:
        """Cells whose text is that of a positive, or of the query."""
        sets = [
            np.array([self._code_of_doc(int(row)) for row in rows], np.int64)
            for rows in positives
        ]
        if queries is not None:
            for place, query_id in enumerate(self._run.query_ids):
                code = self._codes.get(
                    digest(text_key(queries.text(queries.row(query_id))))
                )
                if code is not None:
                    sets[place] = np.append(sets[place], code)
        return _member(self._codes_of_cells, sets)

    def repeated(self, alive: np.ndarray) -> np.ndarray:
        """Cells whose text a better cell that is alive has already."""
        codes = np.where(alive, self._codes_of_cells, -1)
        out = np.zeros(codes.shape, bool)
        order = np.argsort(codes, axis=1, kind="stable")
        ordered = np.take_along_axis(codes, order, 1)
        again = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        np.put_along_axis(out, order[:, 1:], again, 1)
        return out

    def _code_of_doc(self, row: int) -> int:
        text = self._collection.full_text(
            self._collection.row(self._run.doc_ids[row])
            if self._collection.ids is not self._run.doc_ids
            else row
        )
        return self._codes.setdefault(digest(text_key(text)), len(self._codes))
