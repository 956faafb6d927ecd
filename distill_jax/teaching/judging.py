"""Labels by judges behind an endpoint, of documents one by one or in pairs.

Works in shards of queries; the calls of a shard are sent together. An unusable reply is
requested again, and then left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.draws import generator
from distill_jax.io.files import digest
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.labels.store import LabelWriter
from distill_jax.runs.run import Run
from distill_jax.teaching.calls import call_of
from distill_jax.teaching.judges import Pairwise, Scorer
from distill_jax.teaching.label_shards import Progress, label_shards
from distill_jax.teaching.pairs import sample_pairs


def label_documents(
    client: Any,
    how: Scorer,
    queries: Queries,
    collection: Collection,
    run: Run,
    directory: str | Path,
    *,
    shard_queries: int = 32,
    most_failed: float = 0.2,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> TeacherLabels:
    """A score of every candidate; resumable by shard.

    A document without a usable reply is left out of its list. A list fails where more
    than ``most_failed`` of its documents have none, and the job ends where more than
    that share of the lists fail.

    Args:
        client: an opened client (``clients.Completer``).
        run: the candidates; its rows are the collection's.
        directory: gets the shards; what is there already is used.
        progress: called with (queries done, queries in all).

    Returns:
        The labels. ``provenance["counts"]`` has calls, cached, tokens, cost, documents
        without a score, and failures by reason.

    Raises:
        Unfinished: the budget is used up; finished shards are kept.
        UserError: too many failures, or the folder holds labels of another teacher.
    """
    run = run.on(collection)
    certificate = {
        "teacher": client.model,
        **how.provenance(),
        "collection": collection.digest,
        "queries": queries.digest,
        "candidates": run.digest,
        **(provenance or {}),
    }
    writer = LabelWriter(directory, certificate)
    job = f"judge-{digest(certificate)[:8]}"

    def label(rows: list[int]) -> tuple[TeacherLabels, Counter]:
        counts: Any = Counter()
        items = []
        for row in rows:
            columns = np.flatnonzero(run.where[row])
            for at in range(0, len(columns), how.at_once):
                items.append(_Item(row, columns[at : at + how.at_once]))

        def request(item: _Item, attempt: int) -> Any:
            query_id = run.query_ids[item.row]
            docs = run.rows[item.row, item.columns].tolist()
            return how.request(
                f"{job}/{query_id}/{item.columns[0]}",
                queries.texts[queries.row(query_id)],
                [collection.full_text(doc) for doc in docs],
                attempt,
            )

        found = _ask(
            client,
            items,
            request,
            lambda item, reply: how.scores(reply, len(item.columns)),
            how.tries,
            counts,
        )
        scores = np.full(run.rows.shape, np.nan, np.float32)
        for item, values in zip(items, found):
            if values is not None:
                scores[item.row, item.columns] = values
        return _labels(run, rows, scores, most_failed, counts), counts

    tally = label_shards(
        writer,
        run.query_ids,
        label,
        lambda: client.counts(job),
        shard_queries=shard_queries,
        most_failed=most_failed,
        progress=progress,
    )
    writer.finish(_summary(tally, client.counts(job)))
    return TeacherLabels.read(directory, collection=collection)


def label_pairs(
    client: Any,
    how: Pairwise,
    queries: Queries,
    collection: Collection,
    labels: TeacherLabels,
    directory: str | Path,
    *,
    top_k: int = 100,
    delta: int = 10,
    pairs: int = 50,
    seed: int = 0,
    shard_queries: int = 32,
    most_failed: float = 0.2,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> PairLabels:
    """P(first over second) of sampled pairs, each asked in both orders.

    The sampling is that of ``pairs.sample_pairs``. A pair of which an order has no
    usable reply has no probability.

    Returns:
        The labels. ``provenance["counts"]`` has calls, cost, pairs, and the position
        bias: the mean of what the first place wins beyond one half, in log-odds or
        (of replies) as a share.

    Raises:
        Unfinished, UserError: as of ``label_documents``; a list counts as failed where
            more than ``most_failed`` of its pairs have no probability.
    """
    known = queries.rows(labels.query_ids) >= 0
    labels = labels.select(np.asarray(labels.query_ids)[known].tolist())
    sampling = {"top_k": top_k, "delta": delta, "pairs": pairs, "seed": seed}
    first, second = sample_pairs(labels, **sampling)
    certificate = {
        "teacher": client.model,
        **how.provenance(),
        "pairs": sampling,
        "collection": collection.digest,
        "queries": queries.digest,
        "candidates": labels.to_run().digest,
        **(provenance or {}),
    }
    writer = LabelWriter(directory, certificate)
    job = f"pair-{digest(certificate)[:8]}"
    ids = labels.query_ids

    def label(rows: list[int]) -> tuple[PairLabels, Counter]:
        counts: Any = Counter()
        items = [
            _Item(row, np.asarray(column), swapped)
            for row in rows
            for column in np.flatnonzero(first[row] >= 0)
            for swapped in (False, True)
        ]

        def request(item: _Item, attempt: int) -> Any:
            at = item.row, int(item.columns)
            docs = (int(first[at]), int(second[at]))[:: -1 if item.swapped else 1]
            return how.request(
                f"{job}/{ids[item.row]}/{docs[0]}-{docs[1]}",
                queries.texts[queries.row(ids[item.row])],
                [collection.full_text(doc) for doc in docs],
                attempt,
            )

        found = _ask(
            client,
            items,
            request,
            lambda _, reply: how.first_is_better(reply),
            how.tries,
            counts,
        )
        probability = np.full(first.shape, np.nan, np.float32)
        for item, forward, backward in zip(items[::2], found[::2], found[1::2]):
            if forward is None or backward is None:
                counts["pairs without an answer"] += 1
                continue
            at = item.row, int(item.columns)
            probability[at] = how.probability(forward, backward)
            counts["pairs"] += 1
            half = 0.0 if how.logprobs else 0.5
            counts["bias"] += (forward + backward) / 2 - half
        for row in rows:
            asked = first[row] >= 0
            lost = np.isnan(probability[row, asked]).sum()
            counts["queries"] += 1
            counts["queries failed"] += bool(lost > most_failed * asked.sum())
        made = PairLabels(
            tuple(ids[row] for row in rows),
            first[rows],
            second[rows],
            probability[rows],
            labels.doc_ids,
        )
        return made, counts

    tally = label_shards(
        writer,
        ids,
        label,
        lambda: client.counts(job),
        shard_queries=shard_queries,
        most_failed=most_failed,
        progress=progress,
    )
    total = _summary(tally, client.counts(job))
    total["position_bias"] = round(tally["bias"] / max(tally["pairs"], 1), 4)
    writer.finish(total)
    return PairLabels.read(directory, collection=collection)


def estimate(
    cost: Callable[[tuple[int, int]], float | None],
    request: Callable[[str, Sequence[str]], Any],
    queries: Queries,
    collection: Collection,
    calls: int,
    documents: int,
    *,
    seed: int = 0,
    sample: int = 50,
) -> dict[str, Any]:
    """Calls, tokens and cost of judging, before the first call.

    Args:
        request: what is posted of (query, documents).
        calls: how many there will be.
        documents: of a call.
        sample: requests, with documents at random, that are measured.
    """
    random, sizes = generator(seed, "estimate"), []
    for _ in range(sample if len(queries) and len(collection) else 0):
        query = queries.texts[int(random.integers(0, len(queries)))]
        rows = random.integers(0, len(collection), documents).tolist()
        texts = [collection.full_text(row) for row in rows]
        sizes.append(call_of(request(query, texts)).tokens())
    each = np.mean(sizes, axis=0) if sizes else np.zeros(2)
    tokens = (round(float(calls * each[0])), round(float(calls * each[1])))
    return {
        "calls": calls,
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "cost": cost(tokens),
    }


class _Item(NamedTuple):
    """One call: of a list's row, some of its columns."""

    row: int
    columns: np.ndarray
    swapped: bool = False


def _ask(
    client: Any,
    items: Sequence[_Item],
    request: Callable[[_Item, int], Any],
    read: Callable[[_Item, str | None], tuple[Any, str]],
    tries: int,
    counts: Counter,
) -> list[Any]:
    """What the replies to all items mean; None where none can be used."""
    found: list[Any] = [None] * len(items)
    waiting = list(range(len(items)))
    for attempt in range(tries):
        asked = [request(items[place], attempt) for place in waiting]
        unusable = []
        for place, reply in zip(waiting, client.complete_all(asked), strict=True):
            counts["replies"] += 1
            found[place], failure = read(items[place], reply)
            if failure:
                counts[f"failure: {failure}"] += 1
                # The client has made all the attempts that it may.
                if reply is not None:
                    unusable.append(place)
        waiting = unusable
        if not waiting:
            break
    return found


def _labels(
    run: Run, rows: list[int], scores: np.ndarray, most_failed: float, counts: Counter
) -> TeacherLabels:
    there = run.where[rows]
    lost = there & np.isnan(scores[rows])
    failed = lost.sum(axis=1) > most_failed * there.sum(axis=1)
    counts["queries"] += len(rows)
    counts["queries failed"] += int(failed.sum())
    counts["documents without a score"] += int(lost.sum())
    values = np.where(failed[:, None], np.nan, scores[rows]).astype(np.float32)
    labels = TeacherLabels(
        tuple(run.query_ids[row] for row in rows),
        run.rows[rows],
        values,
        run.doc_ids,
        failed=failed,
    )
    return labels.keep(~lost | failed[:, None])


def _summary(tally: Counter, calls: Mapping[str, Any]) -> dict[str, Any]:
    failures = {
        name.removeprefix("failure: "): count
        for name, count in sorted(tally.items())
        if name.startswith("failure: ")
    }
    return {
        **{name: value for name, value in calls.items() if name != "failures"},
        "call_failures": calls.get("failures", {}),
        "failures": failures,
        "queries": tally["queries"],
        "queries_failed": tally["queries failed"],
        "documents_without_a_score": tally["documents without a score"],
        "pairs": tally["pairs"],
        "pairs_without_an_answer": tally["pairs without an answer"],
        "replies": tally["replies"],
        "seconds": round(tally["seconds"], 3),
    }
