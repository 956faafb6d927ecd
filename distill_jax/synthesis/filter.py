"""Filters for generated queries, with a table of what each filter removed.

    funnel = Funnel(made)
    funnel.without_duplicates().round_trip(run, depth=20).first_by_teacher(labels)
    print(funnel.table())
    kept = funnel.made

Source: Tamber et al. 2025 (round trip within 20, then first by the teacher, then the
25th percentile); docT5query's and InPars' filters are special cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from distill_jax.collections.collection import Queries
from distill_jax.io.errors import UserError
from distill_jax.labels.labels import TeacherLabels
from distill_jax.runs.run import Run
from distill_jax.synthesis.made import SyntheticQueries
from distill_jax.text.equality import text_key


class Funnel:
    """Filters applied one after the other; each step is counted.

    Attributes:
        made: the queries that are left.
        steps: (name, dropped, kept) of each step, the first one the making itself.
    """

    def __init__(self, made: SyntheticQueries):
        self.made = made
        lost = sum(made.dropped.values())
        self.steps: list[tuple[str, int, int]] = [("made", lost, len(made))]

    def keep(self, name: str, where: Any) -> Funnel:
        """Keeps the queries where bool[Q] is True."""
        where = np.asarray(where, bool)
        self.made = self.made.select(where)
        self.steps.append((name, int((~where).sum()), int(where.sum())))
        return self

    def without_duplicates(self) -> Funnel:
        """Of queries alike but for case, blanks and punctuation, the first stays."""
        seen: set[str] = set()
        where = []
        for text in self.made.texts:
            form = text_key(text)
            where.append(form not in seen)
            seen.add(form)
        return self.keep("asked before", where)

    def without(self, held_out: Queries | Iterable[str], name: str = "") -> Funnel:
        """Drops queries that are also among held-out ones (contamination)."""
        texts = held_out.texts if isinstance(held_out, Queries) else held_out
        forms = {text_key(text) for text in texts}
        where = [text_key(text) not in forms for text in self.made.texts]
        return self.keep(f"among held-out queries{f' ({name})' if name else ''}", where)

    def round_trip(self, run: Run, depth: int = 20) -> Funnel:
        """Keeps a query if a retriever finds its document among the first ``depth``.

        Raises:
            UserError: the run lacks a query or is of other documents.
        """
        ranks = source_ranks(self.made, run)
        where = (ranks > 0) & (ranks <= depth)
        return self.keep(f"document not within the first {depth}", where)

    def first_by_teacher(self, labels: TeacherLabels, min_docs: int = 1) -> Funnel:
        """Keeps a query if the teacher puts its document first of ``min_docs`` or more.

        An equal score further down the list does no harm; a failed list does.
        """
        scores, sources = self._scores(labels)
        own = _own(scores, sources)
        best = np.where(np.isnan(scores), -np.inf, scores).max(1, initial=-np.inf)
        enough = (~np.isnan(scores)).sum(1) >= min_docs
        return self.keep("document not first by the teacher", enough & (own >= best))

    def above_percentile(
        self, labels: TeacherLabels, percent: float = 25.0, by_kind: bool = True
    ) -> Funnel:
        """Drops queries whose own document scores below a percentile of *all* scores.

        Args:
            labels: the teacher's scores, raw.
            percent: 25 as in the code of Tamber et al. 2025.
            by_kind: percentiles of each kind of query on its own.
        """
        scores, sources = self._scores(labels)
        own = _own(scores, sources)
        kinds = np.asarray(self.made.kinds if by_kind else [""] * len(self.made))
        where = np.zeros(len(self.made), bool)
        for kind in dict.fromkeys(kinds.tolist()):
            here = kinds == kind
            pool = scores[here]
            pool = pool[~np.isnan(pool)]
            if len(pool):
                where |= here & (own >= np.percentile(pool.astype(np.float64), percent))
        return self.keep(f"document below the {percent:g}th percentile", where)

    def table(self) -> str:
        """A printable table: generated, dropped by each filter, kept."""
        width = max(len(name) for name, *_ in self.steps) + 2
        width = max([width, *(len(reason) + 4 for reason in self.made.dropped)])
        lines = [f"{'':{width}}{'dropped':>10}{'kept':>10}"]
        for name, dropped, kept in self.steps:
            lines.append(f"{name:{width}}{dropped:>10,}{kept:>10,}")
            if name == "made":
                lines += [
                    f"{'  ' + reason:{width}}{number:>10,}"
                    for reason, number in sorted(self.made.dropped.items())
                ]
        return "\n".join(lines)

    def to_json(self) -> list[dict[str, Any]]:
        """The same for a report; the first step names the reasons."""
        steps: list[dict[str, Any]] = [
            {"step": name, "dropped": dropped, "kept": kept}
            for name, dropped, kept in self.steps
        ]
        steps[0]["reasons"] = dict(self.made.dropped)
        return steps

    def _scores(self, labels: TeacherLabels) -> tuple[np.ndarray, np.ndarray]:
        """float32[Q, N] with nan where there is none; bool[Q, N] own document."""
        mine = labels.select(self.made.ids)
        scores = mine.training_labels()
        own = self.made.sources[:, None] == _rows_here(self.made, mine)
        return scores, own & ~np.isnan(scores)


def source_ranks(made: SyntheticQueries, run: Run) -> np.ndarray:
    """int64[Q]: the rank of each query's document in a run, 0 where it is absent."""
    there = set(run.query_ids)
    missing = [query_id for query_id in made.ids if query_id not in there]
    if missing:
        raise UserError(
            f"the run lacks {len(missing)} of {len(made)} queries, the first is "
            f"{missing[0]!r}",
            "search with exactly the generated queries",
        )
    mine = run.select(made.ids)
    own = made.sources[:, None] == _rows_here(made, mine)
    first = own.argmax(1) if own.shape[1] else np.zeros(len(own), np.int64)
    return np.where(own.any(1), first + 1, 0)


def _own(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """float[Q]: the score of each query's own document, nan where it has none."""
    found = np.where(own, scores, np.nan)
    return np.where(own.any(1), np.nan_to_num(found, nan=0.0).sum(1), np.nan)


def _rows_here(made: SyntheticQueries, lists: Run | TeacherLabels) -> np.ndarray:
    """The lists' rows as rows of ``made.doc_ids``, -1 pads."""
    if lists.doc_ids is made.doc_ids:
        return lists.rows
    place: Mapping[str, int] = {doc: row for row, doc in enumerate(made.doc_ids)}
    used = np.unique(lists.rows[lists.rows >= 0])
    table = np.full(len(lists.doc_ids) + 1, -1, np.int64)
    for row in used.tolist():
        table[row] = place.get(lists.doc_ids[int(row)], -1)
    return table[lists.rows]
