"""``report.json``: what is measured, as one JSON-able dict.

Entries, all optional but ``measures``:

  title, collection  texts
  measures       {system: {measure: mean}}; usual systems are "first_stage", "before"
                 and "after", any others may be added
  intervals      {system: {measure: [low, high]}}, bootstrap over queries
  primary, baseline, system   what the verdict is about
  significance   list of ``ir.significance.Comparison`` as dicts
  verdict        one line
  queries        {"measure": primary, "values": {system: {query id: value}}}
  examples       [{"query_id", "query", "values": {system: value},
                 "lists": {system: [{"doc_id", "title", "text", "grade", "score"}]}}]
  ties           {system: {"share", "best", "worst"}}
  rounds         [{"round", "measures": {measure: mean}}]
  teacher        ``ir.diagnostics.teacher_report``
  scores         {"teacher" | "student" | ...: {"edges", "counts"}}
  mining         {"funnel": [{"name", "count"}], "intersection": {a: {b: rate}},
                 "suspects": ``ir.negatives.Filtered.suspects``, ...}
  elsewhere      {collection: {"measure", "before", "after", "difference", "p",
                 "queries"}}
  calibration    ``evaluation.calibration.report``
  cost           {"seconds", "parts": {part: seconds}, "calls", "tokens", "money", ...}
  systems        {system: {"queries_per_second", "index_bytes", "parameters", ...}}
  export         {"directory", "format", "code", "verified"}
  again          the command that makes this again
  provenance     {name: value}
  notices        list of sentences
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.evaluation.significance import bootstrap_interval, compare_all
from distill_jax.io.errors import UserError

PerQuery = Mapping[str, Mapping[str, Mapping[str, float]]]

_CLIP = 600  # characters of a document that a report shows


def compare_systems(
    per_query: PerQuery,
    primary: str = "nDCG@10",
    baseline: str = "before",
    system: str | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """The measured part of a report from values per query.

    Args:
      per_query: {system: {measure: {query id: value}}}.
      primary: the verdict's measure; the first one where it was not measured.
      baseline: what the others are compared with; the first system where there is
        none of this name.
      system: the one that the verdict is about; "after" or the last by default.

    Raises:
      UserError: nothing was measured, or the systems share no query of a measure.
    """
    if not per_query or not all(per_query.values()):
        raise UserError("nothing was measured: no system has a measure")
    values, notices = _on_common_queries(per_query)
    names = list(values)
    baseline = baseline if baseline in values else names[0]
    first = list(values[baseline])
    primary = primary if primary in first else first[0]
    if system is None:
        others = [name for name in names if name != baseline]
        system = "after" if "after" in others else (others or [None])[-1]
    comparisons = compare_all(values, baseline=baseline, resamples=resamples, seed=seed)
    decisive = [c for c in comparisons if c.system == system and c.measure == primary]
    means = {
        name: {m: float(np.mean(list(v.values()))) for m, v in measures.items()}
        for name, measures in values.items()
    }
    intervals = {
        name: {
            m: list(
                bootstrap_interval(
                    np.array(list(v.values())), resamples=resamples, seed=seed
                )
            )
            for m, v in measures.items()
        }
        for name, measures in values.items()
    }
    return {
        "measures": means,
        "intervals": intervals,
        "primary": primary,
        "baseline": baseline,
        "system": system,
        "significance": [c.as_dict() for c in comparisons],
        "verdict": decisive[0].verdict()
        if decisive
        else f"{baseline}: {means[baseline][primary]:.3f} {primary},"
        " nothing to compare with",
        "queries": {
            "measure": primary,
            "values": {
                name: dict(measures[primary])
                for name, measures in values.items()
                if primary in measures
            },
        },
        "notices": notices,
    }


def examples(
    report: Mapping[str, Any],
    runs: Mapping[str, Any],
    queries: Any,
    collection: Any,
    qrels: Any = None,
    *,
    most: int = 100,
    depth: int = 5,
) -> list[dict[str, Any]]:
    """The queries that changed most, with both systems' top lists.

    Args:
      report: from ``compare_systems``.
      runs: {system: Run} with the baseline and the system of the verdict.
      most: number of queries, half from each end.
    """
    names = [n for n in (report["baseline"], report["system"]) if n in runs]
    values = report["queries"]["values"]
    if len(names) < 2 or any(name not in values for name in names):
        return []
    before, after = (values[name] for name in names)
    order = sorted(before, key=lambda q: after[q] - before[q])
    if len(order) > most:
        order = order[: most // 2] + order[-(most - most // 2) :]
    shown = side_by_side(
        {name: runs[name] for name in names}, order, queries, collection, qrels, depth
    )
    for example in shown:
        query_id = example["query_id"]
        example["values"] = {name: values[name][query_id] for name in names}
    return shown


def side_by_side(
    runs: Mapping[str, Any],
    query_ids: Sequence[str],
    queries: Any,
    collection: Any,
    qrels: Any = None,
    depth: int = 5,
) -> list[dict[str, Any]]:
    """The first documents of each system for some queries, with texts."""
    tops = {}
    for name, run in runs.items():
        known = set(run.query_ids)
        chosen = run.select([query for query in query_ids if query in known])
        tops[name] = chosen.top(depth).lists()
    found = []
    for query_id in query_ids:
        row = int(queries.rows([query_id])[0])
        grades = {} if qrels is None else qrels.of(query_id)
        lists = {
            name: [
                _doc(collection, doc_id, score, grades)
                for doc_id, score in tops[name].get(query_id, [])
            ]
            for name in runs
        }
        text = queries.texts[row] if row >= 0 else ""
        found.append(
            {"query_id": query_id, "query": text, "values": {}, "lists": lists}
        )
    return found


def decisive_of(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The comparison that the verdict is about."""
    wanted = data.get("system"), data.get("primary")
    for comparison in data.get("significance") or ():
        named = comparison["system"], comparison["measure"]
        if named == wanted and is_main(data, comparison):
            return comparison
    return None


def is_main(data: Mapping[str, Any], comparison: Mapping[str, Any]) -> bool:
    """Whether a test is against the baseline that the tables name."""
    named = data.get("baseline") or comparison["baseline"]
    return comparison["baseline"] == named


def is_significant(comparison: Mapping[str, Any] | None) -> bool:
    """Whether a test, if there is one, finds a difference at the level 0.05 (Holm)."""
    p = comparison["p_holm"] if comparison else None
    return p is not None and p < 0.05


def funnel(**counts: int) -> list[dict[str, Any]]:
    """Steps of mining with what was left after each, in the order given."""
    return [{"name": k.replace("_", " "), "count": int(v)} for k, v in counts.items()]


def _doc(
    collection: Any, doc_id: str, score: float, grades: Mapping[str, int]
) -> dict[str, Any]:
    row = int(collection.rows([doc_id])[0])
    body = collection.text(row) if row >= 0 else ""
    return {
        "doc_id": doc_id,
        "title": collection.title(row) if row >= 0 else "",
        "text": body if len(body) <= _CLIP else body[:_CLIP].rstrip() + " \u2026",
        "grade": grades.get(doc_id),
        "score": float(score),
    }


def _on_common_queries(
    per_query: PerQuery,
) -> tuple[dict[str, dict[str, dict[str, float]]], list[str]]:
    """Values of the queries that every system has; what was left out, counted.

    Each measure has its own queries: only some may have judgements, or answers.
    """
    order: dict[str, list[str]] = {}
    lost: dict[tuple[int, int], list[str]] = {}
    for measure in dict.fromkeys(m for system in per_query.values() for m in system):
        sets = [set(v[measure]) for v in per_query.values() if measure in v]
        common, whole = set.intersection(*sets), set.union(*sets)
        if not common:
            raise UserError(
                f"the systems share no query with {measure}",
                "evaluate them on the same split",
            )
        order[measure] = sorted(common)
        if len(common) < len(whole):
            counts = len(whole) - len(common), len(whole)
            lost.setdefault(counts, []).append(measure)
    notices = [
        f"{missing} of {whole} queries are not in every system's run"
        f" ({', '.join(measures)})"
        for (missing, whole), measures in lost.items()
    ]
    return {
        name: {m: {q: float(v[q]) for q in order[m]} for m, v in measures.items()}
        for name, measures in per_query.items()
    }, notices
