"""Scores that mean something: probabilities of relevance, and where to say nothing.

A score orders documents of one query. Across queries it is made a probability by
``sigmoid(scale * score + shift)`` with ``scale`` above 0, so that no order changes
(Platt 1999, with his smoothed targets). Documents that nobody judged count as not
relevant, as they do in all measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax.collections.qrels import Qrels
from distill_jax.io.draws import share
from distill_jax.runs.run import Run

_BINS = 10
_POINTS = 100  # of the curve that a report shows


@dataclasses.dataclass(frozen=True)
class Scale:
    """From scores to probabilities: ``sigmoid(scale * score + shift)``."""

    scale: float
    shift: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities in (0, 1), in the order of the scores."""
        logits = self.scale * np.asarray(scores, np.float64) + self.shift
        return 0.5 * (1.0 + np.tanh(logits / 2))


def fit(scores: np.ndarray, relevant: np.ndarray) -> Scale | None:
    """The scale of the greatest likelihood; None where all or none are relevant.

    Args:
        scores: float[M].
        relevant: bool[M].
    """
    from scipy.optimize import minimize

    scores, relevant = np.asarray(scores, np.float64), np.asarray(relevant, bool)
    yes, no = int(relevant.sum()), int((~relevant).sum())
    if not yes or not no:
        return None
    mean, spread = scores.mean(), scores.std() or 1.0
    x = (scores - mean) / spread
    # Separable scores would want an endless slope.
    targets = np.where(relevant, (yes + 1) / (yes + 2), 1 / (no + 2))

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        slope = np.exp(at[0])
        logits = slope * x + at[1]
        values = np.logaddexp(0.0, logits) - targets * logits
        wrong = 0.5 * (1.0 + np.tanh(logits / 2)) - targets
        return values.mean(), np.asarray([(wrong * x).mean() * slope, wrong.mean()])

    start = np.asarray([0.0, np.log(yes / no)])
    bounds = [(-12.0, 12.0), (None, None)]
    found = minimize(loss, start, jac=True, bounds=bounds).x
    scale = float(np.exp(found[0]) / spread)
    return Scale(scale, float(found[1] - scale * mean))


def expected_error(
    probabilities: np.ndarray, relevant: np.ndarray, bins: int = _BINS
) -> float:
    """Mean distance of probability and share of relevant, over bins of equal size.

    Source: Naeini et al. 2015 (ECE), with as many documents in each bin (Nguyen and
    O'Connor 2015): most of a ranking's documents have probabilities near 0.
    """
    order = np.argsort(probabilities, kind="stable")
    total = 0.0
    for part in np.array_split(order, bins):
        if len(part):
            gap = abs(probabilities[part].mean() - relevant[part].mean())
            total += gap * len(part)
    return float(total / max(len(order), 1))


def risk_coverage(
    scores: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(thresholds, coverage, risk)``, from the strictest threshold on.

    Of queries whose first score is at least the threshold, ``risk`` is the share whose
    first document is not relevant; ``coverage`` is their share of all queries.

    Source: El-Yaniv and Wiener 2010.

    Args:
        scores: float[Q], of each query's first document.
        right: bool[Q], whether it is relevant.
    """
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.asarray(right, bool)[order]
    # One threshold lets all equal scores in.
    last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])
    answered = last + 1
    wrong = np.cumsum(~right)[last]
    return scores[last], answered / len(scores), wrong / answered


def report(run: Run, qrels: Qrels, most_risk: float) -> dict[str, Any] | None:
    """The scale, how good it is, and the threshold that is suggested; JSON-able.

    Args:
        run: of queries that nothing was trained on.
        most_risk: the lowest threshold at which the risk is no more than that is
            suggested; None where there is none.

    Returns:
        ``scale`` and ``shift``; ``ece`` (each half of the queries by the scale of the
        other) and ``ece_of_sigmoid``, of the scores as logits; ``threshold``, its
        ``probability``, ``coverage`` and ``risk``; ``risk_without`` a threshold; and
        the ``curve``. None where no document, or every one, is relevant.
    """
    judged = [i for i, query in enumerate(run.query_ids) if query in qrels]
    lists = [_judged(run, qrels, row) for row in judged if run.where[row].any()]
    if not lists:
        return None
    scores = np.concatenate([found for found, _ in lists])
    relevant = np.concatenate([right for _, right in lists])
    scale = fit(scores, relevant)
    if scale is None:
        return None
    first = np.asarray([found[0] for found, _ in lists])
    right = np.asarray([found[0] for _, found in lists])
    thresholds, coverage, risk = risk_coverage(first, right)
    good = np.flatnonzero(risk <= most_risk)
    at = int(good[-1]) if len(good) else None
    names = [run.query_ids[row] for row in judged if run.where[row].any()]
    shown = np.unique(np.linspace(0, len(risk) - 1, _POINTS).round().astype(int))
    return {
        "scale": scale.scale,
        "shift": scale.shift,
        "queries": len(lists),
        "documents": len(scores),
        "ece": _crossed(lists, names),
        "ece_of_sigmoid": expected_error(Scale(1.0, 0.0)(scores), relevant),
        "most_risk": most_risk,
        "threshold": None if at is None else float(thresholds[at]),
        "probability": None if at is None else float(scale(thresholds[at])),
        "coverage": None if at is None else float(coverage[at]),
        "risk": None if at is None else float(risk[at]),
        "risk_without": float(risk[-1]),
        "curve": {
            "threshold": thresholds[shown].tolist(),
            "coverage": coverage[shown].tolist(),
            "risk": risk[shown].tolist(),
        },
    }


def sentence(found: Mapping[str, Any]) -> str:
    """What a threshold gives, for people."""
    if found["threshold"] is None:
        return (
            f"no threshold keeps the risk of a wrong first document at "
            f"{found['most_risk']:.0%}: it is {found['risk_without']:.0%} without one"
        )
    return (
        f"a first score of {found['threshold']:.4g} (probability "
        f"{found['probability']:.2f}) or more: {found['coverage']:.0%} of the dev "
        f"queries, {found['risk']:.0%} of them with a first document that is not "
        f"relevant ({found['risk_without']:.0%} without a threshold)"
    )


def _judged(run: Run, qrels: Qrels, row: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores, whether relevant) of a query's documents, best first."""
    good = qrels.relevant(run.query_ids[row])
    places = run.rows[row][run.where[row]]
    relevant = [run.doc_ids[int(place)] in good for place in places]
    return run.scores[row][run.where[row]], np.asarray(relevant, bool)


def _crossed(lists: list, names: list[str]) -> float | None:
    """ECE of each half of the queries by the scale that the other half gives."""
    half = [share(name, "calibration") < 0.5 for name in names]
    probabilities, relevant = [], []
    for side in (True, False):
        own = [part for part, mine in zip(lists, half) if mine == side]
        other = [part for part, mine in zip(lists, half) if mine != side]
        if not own or not other:
            return None
        scale = fit(*(np.concatenate(column) for column in zip(*other)))
        if scale is None:
            return None
        probabilities += [scale(scores) for scores, _ in own]
        relevant += [right for _, right in own]
    return expected_error(np.concatenate(probabilities), np.concatenate(relevant))
