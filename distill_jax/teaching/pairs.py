"""Pairwise teachers: which of two documents answers the query better.

Pairs are drawn among neighbours of the pointwise order (|i - j| < delta, PairDistill
3.2), in one order or both; with both, the position bias is measured and averaged out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.collections.collection import Queries
from distill_jax.inference.forward import score_features
from distill_jax.io.draws import generator
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.labels.store import LabelWriter, stored_counts
from distill_jax.models.pretrained import Pretrained
from distill_jax.runs.run import Run
from distill_jax.runtime import processes
from distill_jax.teaching.cache import ScoreCache, pair_keys
from distill_jax.teaching.scorers import certificate, rows_of_queries, unlabelled
from distill_jax.text.features import Features

Progress = Callable[[int, int], Any]


def neighbours(count: int, delta: int) -> np.ndarray:
    """All pairs i < j < i + delta of ``count`` ranks: Int[P, 2].

    ``(delta - 1) * count - delta * (delta - 1) / 2`` of them for count >= delta.
    """
    first, second = np.triu_indices(count, 1)
    near = second - first < delta
    return np.stack([first[near], second[near]], axis=1)


def sample_pairs(
    labels: TeacherLabels, *, top_k: int, delta: int, pairs: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of each query's first ``top_k`` by score: rows Int[Q, P], -1 pads.

    The draw is without replacement and belongs to the query id and the seed. The
    document that the pointwise teacher prefers comes first.
    """
    run = labels.to_run()
    place = {query: row for row, query in enumerate(run.query_ids)}
    first = np.full((len(labels), pairs), -1, np.int32)
    second = np.full((len(labels), pairs), -1, np.int32)
    for row, query_id in enumerate(labels.query_ids):
        if query_id not in place:
            continue
        ranked = run.rows[place[query_id]]
        ranked = ranked[ranked >= 0][:top_k]
        near = neighbours(len(ranked), delta)
        if len(near) > pairs:
            random = generator(seed, "pairs", query_id)
            near = near[np.sort(random.choice(len(near), pairs, replace=False))]
        first[row, : len(near)] = ranked[near[:, 0]]
        second[row, : len(near)] = ranked[near[:, 1]]
    return first, second


def label_pairs(
    model: Pretrained,
    features: Features,
    queries: Queries,
    labels: TeacherLabels,
    directory: str | Path,
    *,
    top_k: int = 100,
    delta: int = 10,
    pairs: int = 50,
    both_orders: bool = True,
    seed: int = 0,
    mesh: Any = None,
    tokens_per_batch: int | None = None,
    shard_queries: int = 256,
    cache: str | Path | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> PairLabels:
    """P(first over second) of sampled pairs, by a duo reranker; resumable by shard.

    With ``both_orders`` each pair is scored in both orders and the logits are averaged
    with opposite signs; the mean of their sum is the position bias, in logits, which
    is kept in the labels' counts.

    ``cache`` is a folder of logits by text, shared between jobs; None keeps none.

    Labels may be of more queries than are given: the lists of unknown queries are
    left out, as they are when lists are built.

    Raises:
        UserError: no query of the labels is known; or the folder holds labels of
            another teacher, template, run or sampling.
    """
    rows = queries.rows(labels.query_ids)
    known = [query_id for query_id, row in zip(labels.query_ids, rows) if row >= 0]
    if known:
        labels = labels.select(known)
    query_rows = rows_of_queries(queries, labels.query_ids)
    run = labels.to_run()
    settings = {
        "top_k": top_k,
        "delta": delta,
        "pairs": pairs,
        "both_orders": both_orders,
        "seed": seed,
    }
    writer = LabelWriter(
        directory,
        certificate(model, run, {**settings, **(provenance or {})}),
        writes=processes.is_first(),
    )
    first, second = sample_pairs(
        labels, top_k=top_k, delta=delta, pairs=pairs, seed=seed
    )
    todo = unlabelled(labels.query_ids, writer)
    store = None if cache is None else ScoreCache(cache, model.digest)
    for start in range(0, len(todo), shard_queries):
        started = time.monotonic()
        rows = np.asarray(todo[start : start + shard_queries])
        where = first[rows] >= 0
        asked = np.repeat(query_rows[rows][:, None], pairs, axis=1)[where]

        def compute(**at):
            return score_features(
                model, features, mesh=mesh, tokens_per_batch=tokens_per_batch, **at
            )

        def logits(doc0, doc1, asked=asked, compute=compute):
            at = {"query": asked, "document0": doc0, "document1": doc1}
            return _paid_once(store, features, at, compute)

        forward = logits(first[rows][where], second[rows][where])
        counts: dict[str, float] = {"pairs": int(where.sum())}
        if both_orders:
            backward = logits(second[rows][where], first[rows][where])
            counts["bias_sum"] = float(np.sum(forward + backward, dtype=np.float64)) / 2
            forward = (forward - backward) / 2
        probability = np.full(where.shape, np.nan, np.float32)
        probability[where] = sigmoid(forward)
        writer.write(
            PairLabels(
                tuple(labels.query_ids[row] for row in rows),
                first[rows],
                second[rows],
                probability,
                labels.doc_ids,
            ),
            {**counts, "seconds": time.monotonic() - started},
        )
        if progress is not None:
            progress(min(start + shard_queries, len(todo)), len(todo))
    total: dict[str, float] = {"pairs": 0, **stored_counts(directory)}
    if "bias_sum" in total:
        total["position_bias_logits"] = total.pop("bias_sum") / max(total["pairs"], 1)
    writer.finish(total)
    processes.meet("pairs are labelled")
    return PairLabels.read(directory)


def _paid_once(
    store: ScoreCache | None, features: Features, at: dict[str, np.ndarray], compute
) -> np.ndarray:
    """float32[M]: logits, those that the store has not computed and kept there."""
    if store is None:
        return compute(**at)
    fields = features.template.fields
    keys = pair_keys(*((s, at[name]) for name, s in zip(fields, features.stores)))
    values = store.find(keys)
    new = np.flatnonzero(np.isnan(values))
    if len(new):
        values[new] = compute(**{name: rows[new] for name, rows in at.items()})
        store.add(keys[new], values[new])
    return values


def pairs_of_scores(labels: TeacherLabels, **sampling: Any) -> PairLabels:
    """Pairs whose probability is the sigmoid of a pointwise teacher's difference.

    No new information, but the loss then weighs near ranks as PairDistill does; for
    recipes without a pairwise teacher.
    """
    first, second = sample_pairs(labels, **sampling)
    scores = labels.training_labels()
    probability = np.full(first.shape, np.nan, np.float32)
    for row in range(len(labels)):
        of = {int(doc): s for doc, s in zip(labels.rows[row], scores[row])}
        where = first[row] >= 0
        better = np.asarray([of[int(doc)] for doc in first[row, where]], np.float32)
        worse = np.asarray([of[int(doc)] for doc in second[row, where]], np.float32)
        probability[row, where] = sigmoid(better - worse)
    return PairLabels(
        labels.query_ids,
        first,
        second,
        probability,
        labels.doc_ids,
        {**labels.provenance, "pairs_of": "pointwise scores", **sampling},
    )


def rank_by_votes(
    model: Pretrained,
    features: Features,
    queries: Queries,
    candidates: Run,
    *,
    top_k: int,
    mesh: Any = None,
) -> Run:
    """Reorders the first ``top_k`` by the sum of votes over all ordered pairs.

    duoT5's rule: score(i) = sum over j of P(i over j) + (1 - P(j over i)). The rest
    keeps its order below.

    Raises:
        UserError: the candidates have a query that ``queries`` lacks.
    """
    run = candidates
    head = run.top(top_k)
    count = head.rows.shape[1]
    pair = np.asarray([(i, j) for i in range(count) for j in range(count) if i != j])
    scores = -np.arange(run.rows.shape[1], dtype=np.float32)[None].repeat(len(run), 0)
    if len(pair):
        rows = head.rows
        where = (rows[:, pair[:, 0]] >= 0) & (rows[:, pair[:, 1]] >= 0)
        query_rows = rows_of_queries(queries, run.query_ids)
        logits = score_features(
            model,
            features,
            mesh=mesh,
            query=np.repeat(query_rows[:, None], len(pair), 1)[where],
            document0=rows[:, pair[:, 0]][where],
            document1=rows[:, pair[:, 1]][where],
        )
        wins = np.zeros(where.shape, np.float32)
        wins[where] = sigmoid(logits)
        votes = aggregate(wins, pair, where, count)
        scores[:, :count] = votes + 1.0
    scores[~run.where] = -np.inf
    return Run(run.query_ids, run.rows, scores, run.doc_ids)


def aggregate(
    wins: np.ndarray, pair: np.ndarray, where: np.ndarray, count: int
) -> np.ndarray:
    """Votes to scores: the first of a pair gets p, the second 1 - p; float32[Q, N]."""
    votes = np.zeros((len(wins), count), np.float32)
    for column, (first, second) in enumerate(pair):
        there = where[:, column]
        votes[there, first] += wins[there, column]
        votes[there, second] += 1.0 - wins[there, column]
    return votes


def bradley_terry(
    wins: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    count: int,
    *,
    prior: float = 0.1,
    iterations: int = 200,
) -> np.ndarray:
    """Strengths in logits that explain P(first over second) best: float64[count].

    Maximum likelihood of p_ij = sigmoid(b_i - b_j) with soft outcomes, by the
    minorisation of Hunter (2004); ``prior`` is a draw against an average opponent,
    so that a document that won all of its pairs stays finite.
    """
    strength = np.ones(count)
    won = np.full(count, prior)
    np.add.at(won, first, wins)
    np.add.at(won, second, 1.0 - wins)
    for _ in range(iterations):
        together = 1.0 / (strength[first] + strength[second])
        played = 2 * prior / (strength + 1.0)
        np.add.at(played, first, together)
        np.add.at(played, second, together)
        updated = won / played
        if np.max(np.abs(np.log(updated / strength))) < 1e-9:
            strength = updated
            break
        strength = updated
    return np.log(strength)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    half = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0 / (1.0 + half), half / (1.0 + half)).astype(np.float32)
