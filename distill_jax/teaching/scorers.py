"""Pointwise teachers: a reranker scores every candidate of a run.

Raw logits, in shards of queries; one is written while the next is computed.
Killed at any moment, the same call continues with the first missing shard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill_jax.collections.collection import Queries
from distill_jax.inference.forward import score_features
from distill_jax.io.errors import UserError, clip
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.store import LabelWriter, stored_counts
from distill_jax.models.pretrained import Pretrained
from distill_jax.runs.run import Run
from distill_jax.runtime import processes
from distill_jax.teaching.cache import ScoreCache, pair_keys
from distill_jax.text.features import Features

Progress = Callable[[int, int], Any]


def label_run(
    model: Pretrained,
    features: Features,
    queries: Queries,
    run: Run,
    directory: str | Path,
    *,
    mesh: Any = None,
    tokens_per_batch: int | None = None,
    cache: str | Path | None = None,
    shard_pairs: int = 20_000,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> TeacherLabels:
    """Labels of every candidate of ``run``, whose rows are rows of ``features``.

    With several processes all compute, and the first writes what all read then.

    Args:
        model: a reranker; it may live on another mesh than the student.
        features: its template over the queries and the collection.
        directory: gets the shards; what is there already is used.
        cache: a folder of scores by text, shared between jobs; None for none.
        shard_pairs: pairs of a shard, the most that a kill loses.
        progress: called with (pairs done, pairs in all).

    Returns:
        The labels. ``provenance["counts"]`` has the pairs, how many of them were
        computed and how many cached, and the seconds, over all runs of the job.

    Raises:
        UserError: the folder holds labels of another teacher, template or run; or the
            run has a query that ``queries`` lacks.
    """
    query_rows = rows_of_queries(queries, run.query_ids)
    first = processes.is_first()
    writer = LabelWriter(directory, certificate(model, run, provenance), writes=first)
    total = int(run.where.sum())
    todo = unlabelled(run.query_ids, writer)
    done = total - int(run.where[todo].sum())
    store = None if cache is None else ScoreCache(cache, model.digest)
    with ThreadPoolExecutor(1) as pool:
        waiting: Future | None = None
        for rows in _shards(run, todo, shard_pairs):
            started = time.monotonic()
            scores = np.full(run.rows[rows].shape, np.nan, np.float32)
            where = run.where[rows]
            values, new = _scores(
                model,
                features,
                query_rows[rows],
                run.rows[rows],
                where,
                store,
                mesh,
                tokens_per_batch,
            )
            scores[where] = values
            done += len(values)
            if progress is not None:
                progress(done, total)
            labels = TeacherLabels(
                tuple(run.query_ids[row] for row in rows),
                run.rows[rows],
                scores,
                run.doc_ids,
            )
            if waiting is not None:
                waiting.result()
            counts = {
                "pairs": len(values),
                "computed": len(new.scores),
                "cached": len(values) - len(new.scores),
                "seconds": time.monotonic() - started,
            }
            if first:
                waiting = pool.submit(_keep, writer, labels, counts, store, new)
        if waiting is not None:
            waiting.result()
    writer.finish({"pairs": 0, "computed": 0, "cached": 0} | stored_counts(directory))
    processes.meet("labelled")
    return TeacherLabels.read(directory)


def unlabelled(query_ids: Sequence[str], writer: LabelWriter) -> list[int]:
    """Rows of the queries that have no labels yet: the same in every process."""
    mask = np.asarray([query not in writer.done for query in query_ids], bool)
    return np.flatnonzero(processes.agreed_array(mask)).tolist()


def rows_of_queries(queries: Queries, query_ids: Sequence[str]) -> np.ndarray:
    """int32[Q]: positions of queries that are to be read, so all of them are there.

    A row of -1 would be scored as an empty text, and kept as another query's score.

    Raises:
        UserError: an id that ``queries`` lacks.
    """
    rows = queries.rows(query_ids)
    if (rows < 0).any():
        unknown = [query_id for query_id, row in zip(query_ids, rows) if row < 0]
        raise UserError(
            f"{queries.name or 'the queries'}: {len(unknown)} of {len(rows)} queries "
            f"with candidates are not there, e.g. {clip(unknown[0])}",
            "give the queries that the candidates are of, or select only their lists",
        )
    return rows


class _New(NamedTuple):
    """Scores that were computed, under their keys in the cache (if there is one)."""

    keys: np.ndarray
    scores: np.ndarray


def _keep(
    writer: LabelWriter,
    labels: TeacherLabels,
    counts: Mapping[str, float],
    store: ScoreCache | None,
    new: _New,
) -> None:
    """One shard and its new scores to the disk.

    The shard first: its counts say what was computed for it. Scores that are in the
    cache already would be counted as another job's by the run that goes on.
    """
    writer.write(labels, counts)
    if store is not None:
        store.save(new.keys, new.scores)


def certificate(
    model: Pretrained, run: Run, provenance: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Where labels come from: the teacher, how it reads, and the candidates."""
    template = getattr(model.spec, "template", None)
    return {
        "teacher": model.source,
        "weights": model.digest,
        "template": template.to_json() if template is not None else None,
        "head": getattr(model.spec, "head", model.spec.kind),
        "dtype": model.spec.backbone.dtype,
        "candidates": run.digest,
        **(provenance or {}),
    }


def _shards(run: Run, todo: list[int], pairs: int):
    """Query rows in groups of at most ``pairs`` candidates, at least one query."""
    group: list[int] = []
    size = 0
    for row in todo:
        count = int(run.where[row].sum())
        if group and size + count > pairs:
            yield np.asarray(group)
            group, size = [], 0
        group.append(row)
        size += count
    if group:
        yield np.asarray(group)


def _scores(
    model, features, query_rows, doc_rows, where, store, mesh, tokens_per_batch
) -> tuple[np.ndarray, _New]:
    """Scores of the pairs that exist, and those of them that were computed."""
    pair_queries = np.repeat(query_rows[:, None], where.shape[1], axis=1)[where]
    pair_docs = doc_rows[where]

    def compute(pick: np.ndarray) -> np.ndarray:
        return score_features(
            model,
            features,
            mesh=mesh,
            tokens_per_batch=tokens_per_batch,
            query=pair_queries[pick],
            document=pair_docs[pick],
        )

    if store is None:
        values = compute(np.arange(len(pair_docs)))
        return values, _New(np.zeros(0), values)
    stores = dict(zip(features.template.fields, features.stores))
    keys = pair_keys((stores["query"], pair_queries), (stores["document"], pair_docs))
    # Another job may have kept scores since a process looked.
    values = processes.agreed_array(store.find(keys))
    missing = np.flatnonzero(np.isnan(values))
    if len(missing):
        values[missing] = compute(missing)
        store.remember(keys[missing], values[missing])
    return values, _New(keys[missing], values[missing])
