"""Diagnostics of a teacher and its candidates, reported before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax.evaluation.measures import evaluate
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels

ONE_HOT = 0.99  # the softmax's mass on one doc from which a list has no soft target
AIM = 0.5  # suggested_temperature: share of the largest entropy that a list could have


def softmax(
    scores: np.ndarray, where: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    """float64[Q, N]: softmax(scores / temperature), 0 outside ``where``."""
    scaled = np.where(where, scores.astype(np.float64) / temperature, -np.inf)
    top = np.max(scaled, axis=1, keepdims=True, initial=-np.inf)
    mass = np.exp(scaled - np.where(np.isfinite(top), top, 0))
    return mass / np.maximum(mass.sum(axis=1, keepdims=True), 1e-300)


def entropy(
    scores: np.ndarray, where: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    """float64[Q]: entropy of each list's softmax in nats."""
    p = softmax(scores, where, temperature)
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=1)


def suggested_temperature(
    scores: np.ndarray, where: np.ndarray, aim: float = AIM
) -> float | None:
    """The temperature at which lists have, on average, this share of log n.

    Half of the largest entropy is a rule of thumb of this package: the order still
    shows and the second-best docs still teach. None when no list has two scores that
    differ. Bisection; the entropy grows with the temperature.
    """
    several = where.sum(axis=1) > 1
    scores, where = scores[several], where[several]
    spread = np.where(where, scores, -np.inf).max(axis=1, initial=-np.inf) - np.where(
        where, scores, np.inf
    ).min(axis=1, initial=np.inf)
    scores, where = scores[spread > 0], where[spread > 0]
    if not len(scores):
        return None
    most = np.log(where.sum(axis=1))
    low, high = np.log(1e-4), np.log(1e4)
    for _ in range(40):
        middle = (low + high) / 2
        share = np.mean(entropy(scores, where, np.exp(middle)) / most)
        low, high = (middle, high) if share < aim else (low, middle)
    return float(np.exp((low + high) / 2))


def tied_pairs(scores: np.ndarray, where: np.ndarray) -> tuple[int, int]:
    """(pairs of docs of a list with the same score, all pairs)."""
    count = where.sum(axis=1)
    ordered = np.sort(np.where(where, scores, np.inf), axis=1)
    tied = 0
    for line, n in zip(ordered, count):
        runs = np.diff(np.flatnonzero(np.diff(line[:n], prepend=np.nan, append=np.nan)))
        tied += int((runs * (runs - 1) // 2).sum())
    return tied, int((count * (count - 1) // 2).sum())


def histogram(
    scores: np.ndarray, where: np.ndarray, bins: int = 40
) -> dict[str, list[float]]:
    """{"edges": [bins + 1], "counts": [bins]} of what is in ``where``."""
    counts, edges = np.histogram(scores[where].astype(np.float64), bins)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def score_report(labels: TeacherLabels, temperature: float = 1.0) -> dict[str, Any]:
    """Figures of one teacher's labels, JSON-able."""
    scores, where = labels.training_labels(), labels.where
    usable = where.any(axis=1)
    scores, where = scores[usable], where[usable]
    report: dict[str, Any] = {
        "lists": len(labels),
        "failed": int(labels.failed.sum()),
        "docs": int(where.sum()),
        "kind": labels.kind,
        "temperature": temperature,
    }
    if not usable.any():
        return report
    tied, pairs = tied_pairs(scores, where)
    spread = np.nanmax(scores, axis=1) - np.nanmin(scores, axis=1)
    given = scores[where]
    report |= {
        "lowest": float(given.min()),
        "highest": float(given.max()),
        "mean": float(given.mean(dtype=np.float64)),
        "spread_per_list": float(np.mean(spread)),
        "entropy": float(entropy(scores, where, temperature).mean()),
        "largest_entropy": float(np.log(where.sum(axis=1)).mean()),
        "suggested_temperature": suggested_temperature(scores, where),
        "one_hot_lists": float(
            (softmax(scores, where, temperature).max(axis=1) >= ONE_HOT).mean()
        ),
        "all_tied_lists": float((spread == 0).mean()),
        "tied_pairs": tied / max(pairs, 1),
        "histogram": histogram(scores, where),
    }
    return report


def teacher_report(
    labels: TeacherLabels,
    *,
    temperature: float = 1.0,
    qrels: Any = None,
    first_stage: Any = None,
    student: Any = None,
    measure: str = "nDCG@10",
) -> dict[str, Any]:
    """Figures and warnings on a teacher; with judgements, also of what it must beat.

    Args:
      first_stage, student: Runs over the same queries.
    """
    report = score_report(labels, temperature)
    warnings: list[str] = []
    if qrels is not None and not labels.failed.all():
        taught = labels.to_run()
        runs = {"teacher": taught, "first_stage": first_stage, "student": student}
        # The same queries for all, or the means say nothing.
        report[measure] = values = {
            name: float(
                evaluate(_restrict(run, taught.query_ids), qrels, [measure])[measure]
            )
            for name, run in runs.items()
            if run is not None
        }
        warnings += [
            f"the teacher's {measure} of {values['teacher']:.3f} is not better than the"
            f" {name.replace('_', ' ')}'s {value:.3f}: it has little to teach here"
            for name, value in values.items()
            if name != "teacher" and values["teacher"] <= value
        ]
    failed = report["failed"] / max(report["lists"], 1)
    if failed > 0.05:
        warnings.append(f"{failed:.0%} of the lists failed")
    if labels.kind == "score" and report.get("one_hot_lists", 0) > 0.5:
        better = report["suggested_temperature"]
        remedy = (
            "no list has two docs that differ"
            if better is None
            else f"raise it, e.g. to {better:.3g}"
        )
        warnings.append(
            f"{report['one_hot_lists']:.0%} of the lists put their mass on one doc at"
            f" temperature {temperature:g}: {remedy}"
        )
    if report.get("tied_pairs", 0) > 0.01:
        warnings.append(f"{report['tied_pairs']:.1%} of the pairs are tied")
    return {**report, "warnings": warnings}


def disagreement(
    one: TeacherLabels,
    other: TeacherLabels | PairLabels,
    *,
    pairs_per_query: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """How often two teachers order a pair of docs differently (PairDistill, A.2).

    With PairLabels the pairs are those that were judged; with lists they are sampled
    among the docs that both have. A pair that either holds for a tie is not compared.

    Returns:
      {"rate": share or None, "pairs": compared, "ties": not compared}.
    """
    first = _scores_by_doc(one)
    rng = np.random.default_rng(seed)
    compared = differing = ties = 0
    if isinstance(other, PairLabels):
        judged = {
            query_id: [
                (other.doc_ids[a], other.doc_ids[b], probability - 0.5)
                for a, b, probability in pairs
            ]
            for query_id, pairs in other.by_query().items()
        }
    else:
        judged = {}
        for query_id, second in _scores_by_doc(other).items():
            both = sorted(first.get(query_id, {}).keys() & second.keys())
            judged[query_id] = _sample(both, second, pairs_per_query, rng)
    for query_id, pairs in judged.items():
        scores = first.get(query_id, {})
        for a, b, margin in pairs:
            if a not in scores or b not in scores:
                continue
            product = (scores[a] - scores[b]) * margin
            ties += product == 0
            compared += product != 0
            differing += product < 0
    return {
        "rate": differing / compared if compared else None,
        "pairs": int(compared),
        "ties": int(ties),
    }


def intersection_rates(
    runs: Mapping[str, Any], depth: int = 30
) -> dict[str, dict[str, float | None]]:
    """How much candidate sources have in common (TWOLAR, eq. 3).

    Of two runs: the docs that both have in their top ``depth``, over all common
    queries, as a share of ``depth`` docs a query (of the shorter list, where one is
    shorter). Low rates mean that the sources complement each other.
    """
    tops = {
        name: {
            query_id: {doc_id for doc_id, _ in docs}
            for query_id, docs in run.top(depth).lists().items()
        }
        for name, run in runs.items()
    }
    return {a: {b: _intersection(tops[a], tops[b]) for b in tops} for a in tops}


def _intersection(a: Mapping[str, set[str]], b: Mapping[str, set[str]]) -> float | None:
    queries = a.keys() & b.keys()
    most = sum(min(len(a[q]), len(b[q])) for q in queries)
    return sum(len(a[q] & b[q]) for q in queries) / most if most else None


def _scores_by_doc(labels: TeacherLabels) -> dict[str, dict[str, float]]:
    scores, where = labels.training_labels(), labels.where
    return {
        query_id: {
            labels.doc_ids[int(labels.rows[i, j])]: float(scores[i, j])
            for j in np.flatnonzero(where[i])
        }
        for i, query_id in enumerate(labels.query_ids)
    }


def _sample(
    docs: list[str], scores: Mapping[str, float], count: int, rng: Any
) -> list[tuple[str, str, float]]:
    total = len(docs) * (len(docs) - 1) // 2
    first, second = np.triu_indices(len(docs), 1)
    chosen = rng.choice(total, min(count, total), replace=False) if total else ()
    return [
        (
            docs[first[i]],
            docs[second[i]],
            scores[docs[first[i]]] - scores[docs[second[i]]],
        )
        for i in chosen
    ]


def _restrict(run: Any, query_ids: tuple[str, ...]) -> Any:
    present = set(run.query_ids)
    return run.select([query_id for query_id in query_ids if query_id in present])
