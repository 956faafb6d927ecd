"""Filters for generated queries, with a table of what each filter removed.

    funnel = Funnel(made)
    funnel.without_duplicates().round_trip(run, depth=20)
    print(funnel.table())
    kept = funnel.made

Source: Tamber et al. 2025, round trip within 20. Its filters by the teacher's
scores are of the lists: ``recipe.examples.FromTeacher``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from distill_jax.collections.collection import Queries
from distill_jax.io.errors import UserError
from distill_jax.runs.run import Run
from distill_jax.synthesis.synthetic import SyntheticQueries
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


def _rows_here(made: SyntheticQueries, lists: Run) -> np.ndarray:
    """The run's rows as rows of ``made.doc_ids``, -1 pads."""
    if lists.doc_ids is made.doc_ids:
        return lists.rows
    place: Mapping[str, int] = {doc: row for row, doc in enumerate(made.doc_ids)}
    used = np.unique(lists.rows[lists.rows >= 0])
    table = np.full(len(lists.doc_ids) + 1, -1, np.int64)
    for row in used.tolist():
        table[row] = place.get(lists.doc_ids[int(row)], -1)
    return table[lists.rows]
