"""Teacher scores on a scale that a loss can use.

Labels are stored raw; what is done to them for training is done here, on
``scores[Q, N]`` with ``where[Q, N]``. Every function leaves nan outside ``where``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from distill_jax.io.errors import UserError, near
from distill_jax.labels.labels import TeacherLabels


def minmax(scores: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Each list to [0, 1] (JaColBERTv2.5, PyLate); a list of equal scores to 0."""
    scores = _only(scores, where)
    low, high = _least(scores), _greatest(scores)
    return ((scores - low) / _or_one(high - low)).astype(np.float32)


def zscore(scores: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Each list to mean 0 and standard deviation 1; a list of equal scores to 0."""
    scores = _only(scores, where)
    count = np.maximum(where.sum(axis=1, keepdims=True), 1)
    centred = scores - np.nansum(scores, axis=1, keepdims=True) / count
    # The deviation of a constant list is a rounding error, not a scale.
    spread = np.sqrt(np.nansum(centred**2, axis=1, keepdims=True) / count)
    size = np.maximum(np.abs(_greatest(scores)), np.abs(_least(scores)))
    spread = np.where(spread <= 1e-7 * size, 0, spread)
    return np.where(spread > 0, centred / _or_one(spread), centred * 0).astype(
        np.float32
    )


def percentile(
    scores: np.ndarray, where: np.ndarray, low: float = 1, high: float = 99
) -> np.ndarray:
    """The whole file to [0, 1] between two percentiles of all its scores, clipped.

    Tamber et al. (2025) do this for each file of a collection, query type and
    retriever; percentiles interpolate linearly.
    """
    scores = _only(scores, where)
    if not where.any():
        return scores.astype(np.float32)
    bottom, top = np.percentile(scores[where], [low, high])
    scaled = (scores - bottom) / _or_one(np.asarray(top - bottom))
    return np.clip(scaled, 0, 1).astype(np.float32)


def ranks(scores: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Each list to n, n - 1, ..., 1 from the best to the worst; ties in list order."""
    keys = np.where(where, -scores.astype(np.float64), np.inf)
    order = np.argsort(keys, axis=1, kind="stable")
    place = np.argsort(order, axis=1, kind="stable")
    count = where.sum(axis=1, keepdims=True)
    return _only(count - place, where).astype(np.float32)


def none(scores: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Scores as the teacher gave them."""
    return _only(scores, where).astype(np.float32)


NORMALISATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "none": none,
    "minmax": minmax,
    "zscore": zscore,
    "percentile": percentile,
    "ranks": ranks,
}


def normalise(labels: TeacherLabels, how: str | None) -> np.ndarray:
    """Training labels float32[Q, N], higher is better, nan outside ``labels.where``.

    Args:
      how: a name of ``NORMALISATIONS``, or None for none.
    """
    name = how or "none"
    if name not in NORMALISATIONS:
        raise UserError(
            f"normalisation {how!r}{near(name, NORMALISATIONS)}",
            f"there are {', '.join(NORMALISATIONS)}",
        )
    return NORMALISATIONS[name](labels.training_labels(), labels.where)


def above_percentile(
    scores: np.ndarray,
    where: np.ndarray,
    positive: np.ndarray | int = 0,
    percent: float = 25,
) -> np.ndarray:
    """bool[Q]: the list's positive is not below a percentile of all scores.

    Tamber et al.'s code (not their paper) drops the other queries; the percentile is
    taken over every score of the file, before anything is dropped.

    Args:
      positive: int[Q] or int, the column of each list's positive.
    """
    if not where.any():
        return np.zeros(len(scores), bool)
    cutoff = np.percentile(scores[where].astype(np.float64), percent)
    lines = np.arange(len(scores))
    columns = np.broadcast_to(np.asarray(positive), lines.shape)
    return where[lines, columns] & (scores[lines, columns] >= cutoff)


def _only(scores: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where, scores, np.nan).astype(np.float64)


def _least(scores: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a list without docs
        return np.nanmin(scores, axis=1, keepdims=True)


def _greatest(scores: np.ndarray) -> np.ndarray:
    return -_least(-scores)


def _or_one(width: np.ndarray) -> np.ndarray:
    return np.where(width > 0, width, 1)
