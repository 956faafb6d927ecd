"""Measures with trec_eval's semantics, by ``ir_measures``; ties and their effect."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distill_jax.collections.qrels import Qrels
from distill_jax.io.errors import UserError, near
from distill_jax.io.strings import int_list
from distill_jax.runs.run import Run

_CHUNK_QUERIES = 2000


def evaluate(run: Run, qrels: Qrels, measures: Sequence[str | Any]) -> dict[str, float]:
    """Means over the judged queries; one that the run lacks counts 0.

    Args:
        run: the ranking.
        qrels: the judgements: their queries are what is averaged over.
        measures: names as ``ir_measures`` writes them: ``nDCG@10``, ``RR@10``,
            ``R@100``, ``Success@5``, ``AP(rel=2)``.

    Returns:
        ``{name as given: mean}``.

    Raises:
        UserError: an unknown measure, or no judged query at all.
    """
    values = evaluate_queries(run, qrels, measures)
    return {
        name: float(np.mean(list(by_query.values())))
        for name, by_query in values.items()
    }


def evaluate_queries(
    run: Run, qrels: Qrels, measures: Sequence[str | Any]
) -> dict[str, dict[str, float]]:
    """``{name: {query id: value}}`` for every judged query, 0 where the run lacks it.

    Raises:
        UserError: as ``evaluate``.
    """
    import ir_measures

    parsed = {str(m): parse_measure(m) for m in measures}
    if not len(qrels):
        raise UserError("there are no judgements to evaluate by", "give other qrels")
    values: dict[str, dict[str, float]] = {
        name: dict.fromkeys(qrels.query_ids, 0.0) for name in parsed
    }
    names: dict[Any, list[str]] = {}
    for name, measure in parsed.items():
        names.setdefault(measure, []).append(name)
    judged = [q for q in qrels.query_ids if q in run._positions]
    for start in range(0, len(judged), _CHUNK_QUERIES):
        chunk = judged[start : start + _CHUNK_QUERIES]
        # Cut to what is judged: the file may hold far more queries. Ranks are given as
        # scores, for the providers of ir_measures break ties in different ways.
        lists = {
            query: {doc: -float(rank) for rank, (doc, _) in enumerate(ranked)}
            for query, ranked in run.select(chunk).lists().items()
        }
        judgements = {query: qrels.of(query) for query in chunk}
        for metric in ir_measures.iter_calc(list(names), judgements, lists):
            for name in names[metric.measure]:
                values[name][metric.query_id] = float(metric.value)
    return values


def measure_name(name: str) -> str:
    """A measure's name as it was given.

    Raises:
        UserError: the measure is unknown.
    """
    parse_measure(name)
    return name


def parse_measure(measure: str | Any) -> Any:
    """A measure of ``ir_measures`` from its name.

    Raises:
        UserError: the measure is unknown.
    """
    import ir_measures

    if not isinstance(measure, str):
        return measure
    try:
        found = ir_measures.parse_measure(measure)
        for name in ("cutoff", "rel"):
            value = found.params.get(name, 1)
            if type(value) is not int or value < 1:
                raise ValueError
        return found
    except (ValueError, NameError, KeyError, SyntaxError, TypeError):
        known = ("nDCG@10", "RR@10", "R@100", "Success@5", "AP", "P@10", "Judged@10")
        raise UserError(
            f"unknown measure {measure!r}{near(measure, known)}",
            "write it as ir_measures does, e.g. nDCG@10, RR@10, R@100, AP(rel=2)",
        ) from None


@dataclasses.dataclass(frozen=True)
class Ties:
    """What tied scores could change.

    Attributes:
        share: tied pairs among all pairs of the lists' documents, in [0, 1].
        queries: share of queries with a tie.
        best, worst: means of each measure if ties went all right, or all wrong.
    """

    share: float
    queries: float
    best: dict[str, float]
    worst: dict[str, float]


def ties(
    run: Run, qrels: Qrels, measures: Sequence[str | Any], depth: int | None = None
) -> Ties:
    """How many scores tie, and the measures under the best and worst order of ties.

    Args:
        run: the ranking.
        qrels: the judgements.
        measures: as in ``evaluate``.
        depth: pairs are counted among this many first documents of a list.
    """
    top = run if depth is None else run.top(depth)
    tied = pairs = with_ties = 0
    for scores, where in zip(top.scores, top.where):
        counts = np.unique(scores[where], return_counts=True)[1]
        same = int((counts * (counts - 1) // 2).sum())
        total = int(where.sum())
        tied += same
        pairs += total * (total - 1) // 2
        with_ties += same > 0
    return Ties(
        share=tied / pairs if pairs else 0.0,
        queries=with_ties / len(run) if len(run) else 0.0,
        best=evaluate(_resolved(run, qrels, -1), qrels, measures),
        worst=evaluate(_resolved(run, qrels, 1), qrels, measures),
    )


def _resolved(run: Run, qrels: Qrels, sign: int) -> Run:
    """Ties broken by grade: sign -1 puts the higher grades first, +1 last."""
    judged = [query for query in run.query_ids if query in qrels]
    run = run.select(judged)
    scores = np.full(run.rows.shape, -np.inf, np.float32)
    rows = run.rows.copy()
    for i, query in enumerate(judged):
        grades = qrels.of(query)
        docs = [run.doc_ids[r] if r >= 0 else None for r in int_list(run.rows[i])]
        # trec_eval treats negative grades and unjudged documents alike.
        grade = np.asarray([max(grades.get(d, 0), 0) if d else 0 for d in docs])
        order = np.lexsort((sign * grade, -run.scores[i], run.rows[i] < 0))
        rows[i] = run.rows[i][order]
        # Ranks as scores: no ties are left.
        scores[i] = -np.arange(len(order), dtype=np.float32)
    return Run(tuple(judged), rows, scores, run.doc_ids)


def measured_names(measures: Iterable[str | Any]) -> list[str]:
    """The names, checked at once: for failing before anything is computed."""
    return [str(m) for m in measures if parse_measure(m) is not None]
