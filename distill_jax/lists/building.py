"""Builds training lists from judgements and hard negatives, or from labels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from distill_jax.io.draws import generator
from distill_jax.io.errors import UserError, near
from distill_jax.lists.lists import Lists, empty_lists
from distill_jax.lists.negatives import places

SAMPLINGS = ("top", "random", "spread", "quantile", "stratified", "log_random")


def lists_from_judgements(
    run,
    qrels,
    queries,
    collection,
    *,
    size: int,
    window: tuple[int, int] = (0, 100),
    seed: int = 0,
    per_query: int | None = None,
    sampling: str = "random",
) -> Lists:
    """One list per judged positive: the positive first, then hard negatives.

    Negatives are drawn without replacement from the ranks ``window`` of the query's
    run, without any document that is judged relevant for it; the draw belongs to the
    query id and the seed. Where the window is exhausted the list stays shorter.

    Args:
        per_query: maximum number of positives of a query (the best grades first).
        sampling: "random", or another way of ``negatives.places``.
    """
    found = []
    # One look-up for all: a collection may have millions of ids.
    query_rows = queries.rows(run.query_ids)
    judged = [qrels.of(query_id) for query_id in run.query_ids]
    named = list({doc: None for grades in judged for doc in grades})
    row_of = dict(zip(named, collection.rows(named).tolist()))
    for position, query_id in enumerate(run.query_ids):
        query_row, grades = int(query_rows[position]), judged[position]
        if query_row < 0 or not grades:
            continue
        ranked = sorted((-grade, doc) for doc, grade in grades.items() if grade > 0)
        positives = [row_of[doc] for _, doc in ranked]
        gain = {row_of[doc]: grade for doc, grade in grades.items()}
        known = {row for row in positives if row >= 0}
        pool = [
            int(row)
            for row in run.rows[position, window[0] : window[1]]
            if row >= 0 and int(row) not in known
        ]
        random = generator(seed, "negatives", query_id)
        for positive in [row for row in positives if row >= 0][:per_query]:
            count = min(size - 1, len(pool))
            drawn: Any = []
            if count and sampling == "random":
                drawn = random.choice(len(pool), count, replace=False)
            elif count:
                drawn = places(len(pool), count, sampling, random, first=window[0])
            found.append((query_row, positive, [pool[i] for i in drawn], gain))
    if not found:
        raise UserError(
            "no training list: none of the queries has a judged document in this "
            "collection",
            "check the split's qrels against the collection's ids",
        )
    table = empty_lists(len(found), size, 0)
    for row, (query_row, positive, negatives, gain) in enumerate(found):
        docs = [positive, *negatives]
        table["query_rows"][row] = query_row
        table["doc_rows"][row, : len(docs)] = docs
        table["labels"][row, : len(docs)] = [max(gain.get(d, 0), 0) for d in docs]
        table["labelled"][row] = True
    return Lists(**table)


def lists_from_labels(
    labels,
    queries,
    collection,
    *,
    size: int,
    pairs=None,
    qrels=None,
    sampling: str = "top",
    seed: int = 0,
    trust_first: bool = False,
    values: np.ndarray | None = None,
) -> Lists:
    """Lists of a teacher's labels, at most ``size`` candidates each.

    The list is ordered by the teacher, best first. A judged positive among the
    candidates is put first and the list counts as labelled; otherwise it is labelled
    only if ``trust_first`` (the teacher's best serves as the positive, as PairDistill
    and 004 have it). Candidates that a pairwise teacher judged are kept before others.

    Args:
        sampling: ``"top"`` keeps the teacher's best; ``"random"`` keeps the best and a
            random rest; ``"spread"`` keeps every (N/size)-th of the teacher's order;
            ``"quantile"`` keeps the first quarter of the list from the top and spreads
            the rest evenly over the teacher's *scores*; ``"stratified"`` draws one from
            each of equal stretches of the order; ``"log_random"`` keeps the best and
            draws the rest with probability 1 / rank.
        values: Float[Q N] in place of the raw labels (normalised ones); nan pads.
    """
    table_labels = labels.training_labels() if values is None else values
    by_query = _pairs_of(pairs, collection)
    width = max((len(v) for v in by_query.values()), default=0)
    doc_rows = _aligned(labels, collection)
    query_rows = queries.rows(list(labels.query_ids))
    table = empty_lists(len(labels.query_ids), size, width)
    kept = []
    for row, query_id in enumerate(labels.query_ids):
        valid = (doc_rows[row] >= 0) & np.isfinite(table_labels[row])
        if labels.failed[row] or query_rows[row] < 0 or not valid.any():
            continue
        order = np.flatnonzero(valid)
        order = order[np.argsort(-table_labels[row, order], kind="stable")]
        docs, scores = doc_rows[row, order], table_labels[row, order]
        judged = by_query.get(query_id, ())
        positive = _positive(query_id, docs, qrels, collection)
        random = generator(seed, "list", query_id)
        keep = _select(docs, scores, size, sampling, random, judged, positive)
        docs, scores = docs[keep], scores[keep]
        if positive is not None:
            front = int(np.flatnonzero(keep == positive)[0])
            turn = np.r_[front, np.delete(np.arange(len(docs)), front)]
            docs, scores = docs[turn], scores[turn]
        table["query_rows"][row] = query_rows[row]
        table["doc_rows"][row, : len(docs)] = docs
        table["labels"][row, : len(docs)] = scores
        table["labelled"][row] = positive is not None or trust_first
        place = {int(doc): i for i, doc in enumerate(docs)}
        column = 0
        for first, second, probability in judged:
            if first in place and second in place:
                table["first"][row, column] = place[first]
                table["second"][row, column] = place[second]
                table["probability"][row, column] = probability
                column += 1
        kept.append(row)
    if not kept:
        raise UserError(
            "no training list: every query's labels failed or are empty",
            "look at the teacher report, and label again",
        )
    return Lists(**{name: value[np.asarray(kept)] for name, value in table.items()})


def _aligned(labels, collection) -> np.ndarray:
    """The labels' rows as rows of this collection."""
    if labels.doc_ids is collection.ids:
        return labels.rows
    table = np.append(collection.rows(list(labels.doc_ids)), -1)
    return table[labels.rows]


def _pairs_of(pairs, collection) -> dict[str, list[tuple[int, int, float]]]:
    """Pairs of each query as (row, row, P(first over second)) of this collection."""
    if pairs is None:
        return {}
    table = np.arange(len(collection) + 1)
    if pairs.doc_ids is not collection.ids:
        table = np.append(collection.rows(list(pairs.doc_ids)), -1)
    found = {}
    for row, query_id in enumerate(pairs.query_ids):
        where = pairs.where[row]
        first = table[pairs.first[row, where]].tolist()
        second = table[pairs.second[row, where]].tolist()
        found[query_id] = list(zip(first, second, pairs.probability[row, where]))
    return found


def _positive(query_id: str, docs: np.ndarray, qrels, collection) -> int | None:
    """Position of the best judged positive among the candidates."""
    if qrels is None:
        return None
    grades = qrels.of(query_id)
    best, place = 0, None
    for position, doc in enumerate(docs):
        grade = grades.get(collection.ids[int(doc)], 0)
        if grade > best:
            best, place = grade, position
    return place


def _select(
    docs: np.ndarray,
    scores: np.ndarray,
    size: int,
    sampling: str,
    random: np.random.Generator,
    judged: Sequence[tuple[int, int, float]],
    positive: int | None,
) -> np.ndarray:
    """Positions to keep, in the teacher's order."""
    count = len(docs)
    if count <= size:
        return np.arange(count)
    must = [] if positive is None else [positive]
    if judged:
        named = {doc for first, second, _ in judged for doc in (first, second)}
        named_places = [i for i, doc in enumerate(docs) if int(doc) in named]
        random.shuffle(named_places)
        must += [place for place in named_places if place != positive][
            : size - len(must)
        ]
    rest = np.setdiff1d(np.arange(count), must)
    free = size - len(must)
    if sampling == "top":
        chosen = rest[:free]
    elif sampling == "random":
        best = rest[:1] if 0 not in must else rest[:0]
        others = rest[len(best) :]
        drawn = random.choice(others, max(free - len(best), 0), replace=False)
        chosen = np.r_[best[:free], drawn]
    elif sampling == "spread":
        chosen = rest[np.linspace(0, len(rest) - 1, free).round().astype(int)]
    elif sampling == "quantile":
        chosen = _by_score(rest, scores[rest], free, size)
    elif sampling == "stratified":
        edges = np.linspace(0, len(rest), free + 1).round().astype(int)
        chosen = rest[
            [int(random.integers(*edge)) for edge in itertools.pairwise(edges)]
        ]
    elif sampling == "log_random":
        best = rest[:1][:free]
        others = rest[len(best) :]
        chances = 1.0 / (others + 1.0)
        drawn = random.choice(
            others, free - len(best), replace=False, p=chances / chances.sum()
        )
        chosen = np.r_[best, drawn]
    else:
        raise UserError(
            f"sampling is {sampling!r}{near(sampling, SAMPLINGS)}",
            f"one of {', '.join(SAMPLINGS)}",
        )
    return np.sort(np.r_[np.asarray(must, int), chosen.astype(int)])


def _by_score(
    places: np.ndarray, scores: np.ndarray, free: int, size: int
) -> np.ndarray:
    """``free`` of the places: some from the top, the rest at even steps of the score.

    Source: Jang et al. 2026: candidates spread over the teacher's scores teach more
    than its first ones, which it holds nearly alike.
    """
    top = min(free, max(1, size // 4))
    taken = list(range(top))
    left = list(range(top, len(places)))
    for wanted in np.linspace(scores[top], scores[-1], free - top) if left else ():
        nearest = min(left, key=lambda place: abs(scores[place] - wanted))
        left.remove(nearest)
        taken.append(nearest)
    return places[np.asarray(taken, int)]


def with_judged_pairs(
    lists: Lists, names: Sequence[str], pairs: int, seed: int
) -> Lists:
    """Lists with pairs of candidates of different labels, in a random order each.

    Args:
        names: query id of each list; the draw belongs to it and to the positive.
        pairs: maximum number of pairs of a list (P).
    """
    first = np.full((len(lists), pairs), -1, np.int32)
    second = np.full((len(lists), pairs), -1, np.int32)
    probability = np.zeros((len(lists), pairs), np.float32)
    for row, name in enumerate(names):
        labels, where = lists.labels[row], lists.where[row]
        better = (labels[:, None] > labels[None, :]) & where[:, None] & where[None, :]
        found = np.argwhere(better)
        random = generator(seed, "judged pairs", name, str(lists.doc_rows[row, 0]))
        found = found[random.permutation(len(found))[:pairs]]
        turned = random.random(len(found)) < 0.5
        count = len(found)
        first[row, :count] = np.where(turned, found[:, 1], found[:, 0])
        second[row, :count] = np.where(turned, found[:, 0], found[:, 1])
        probability[row, :count] = np.where(turned, 0.0, 1.0)
    return lists.replace(first=first, second=second, probability=probability)
