"""Several runs to one: sums over the cells of their lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from distill_jax.io.errors import UserError, clip
from distill_jax.io.strings import int_list
from distill_jax.runs.order import Lists, padded


def normalised(run: Lists, how: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(values float64[Q, K], what a missing document gets float64[Q])."""
    scores = np.where(run.where, run.scores.astype(np.float64), np.nan)
    infinite = run.where & ~np.isfinite(scores)
    if infinite.any():
        line = int(infinite.any(1).argmax())
        raise UserError(
            f"query {clip(run.query_ids[line])}: a score is infinite or NaN",
            "only finite scores can be added",
        )
    if how is None:
        return np.nan_to_num(scores), np.zeros(len(run.rows))
    if not run.rows.shape[1]:
        return scores, np.zeros(len(run.rows))
    count = np.maximum(run.where.sum(1), 1)
    low = np.where(run.where, scores, np.inf).min(1)
    if how == "minmax":
        high = np.where(run.where, scores, -np.inf).max(1)
        shift, scale = low, high - low
    else:
        shift = np.nansum(scores, 1) / count
        scale = np.sqrt(np.nansum((scores - shift[:, None]) ** 2, 1) / count)
    shift = np.where(np.isfinite(shift), shift, 0.0)
    flat = ~(scale > 0) | ~np.isfinite(scale)
    values = (scores - shift[:, None]) / np.where(flat, 1.0, scale)[:, None]
    values = np.where(flat[:, None] & run.where, 0.0, values)
    floor = np.where(run.where, values, np.inf).min(1)
    return np.nan_to_num(values), np.where(np.isfinite(floor), floor, 0.0)


def merge(
    runs: Sequence[Lists],
    gains: Sequence[np.ndarray],
    weights: Sequence[float] | None,
    floors: Sequence[Mapping[str, float]] | None = None,
) -> Lists:
    """Sums gains float64[Q, K] of runs over their cells; one list a query."""
    if not runs:
        raise UserError("no runs to join", "give at least one")
    weights = [1.0] * len(runs) if weights is None else list(weights)
    if len(weights) != len(runs):
        raise UserError(f"{len(weights)} weights for {len(runs)} runs")
    queries = tuple(dict.fromkeys(q for run in runs for q in run.query_ids))
    position = {query: i for i, query in enumerate(queries)}
    doc_ids, maps = _shared_ids(runs)
    cells, values = [], []
    for run, gain, weight, new in zip(runs, gains, weights, maps):
        at = np.asarray([position[q] for q in run.query_ids], np.int64)
        where = run.where
        rows = run.rows[where] if new is None else new[run.rows[where]]
        query = np.broadcast_to(at[:, None], run.rows.shape)[where]
        cells.append(query * max(len(doc_ids), 1) + rows)
        values.append(weight * gain[where])
    cell, inverse = np.unique(np.concatenate(cells), return_inverse=True)
    total = np.bincount(inverse, np.concatenate(values), len(cell))
    query, rows = np.divmod(cell, max(len(doc_ids), 1))
    if floors is not None:
        pairs = list(zip(weights, floors))
        base = [sum(w * f.get(q, 0.0) for w, f in pairs) for q in queries]
        total = total + np.asarray(base)[query]
    return padded(queries, query, rows.astype(np.int32), total, doc_ids)


def _shared_ids(runs: Sequence[Lists]) -> tuple[Sequence[str], list[np.ndarray | None]]:
    """One id sequence for all runs, and each run's rows -> its rows (None: same)."""
    first = runs[0].doc_ids
    if all(run.doc_ids is first for run in runs):
        return first, [None] * len(runs)
    row_of: dict[str, int] = {}
    maps: list[np.ndarray | None] = []
    for run in runs:
        used = np.unique(run.rows[run.where])
        new = np.full(len(run.doc_ids), -1, np.int32)
        for row in int_list(used):
            new[row] = row_of.setdefault(run.doc_ids[row], len(row_of))
        maps.append(new)
    return list(row_of), maps
