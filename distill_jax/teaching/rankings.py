"""Listwise teachers: an LLM orders, or scores, the candidates of each query.

Queries are worked on in shards. Within a shard the windows of all queries are sent
together, wave after wave, since a query's next window depends on its last. A reply that
cannot be used is requested again, and then the query is stored as failed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.draws import generator
from distill_jax.io.files import digest
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.store import LabelWriter
from distill_jax.runs.run import Run
from distill_jax.teaching import parsing, prompts, windows
from distill_jax.teaching.chat import estimated_tokens
from distill_jax.teaching.clients import Completer
from distill_jax.teaching.label_shards import Progress, label_shards
from distill_jax.teaching.listwise import Method, Sitting, passes_over, wave


def label_listwise(
    client: Completer,
    queries: Queries,
    collection: Collection,
    run: Run,
    directory: str | Path,
    *,
    shard_queries: int = 32,
    most_failed: float = 0.2,
    retry_failed: bool = False,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **method: Any,
) -> TeacherLabels:
    """An LLM's order (kind "rank") or scores of every candidate; resumable by shard.

    Args:
        client: an opened client.
        run: the candidates, in first-stage order; its rows are the collection's.
        directory: gets the shards; what is there already is used.
        shard_queries: queries that are in work together.
        most_failed: with a greater share of failed lists the job ends, and the shard
            that went too far is not kept.
        retry_failed: asks again for lists that are stored as failed.
        progress: called with (queries done, queries in all).
        method: fields of ``Method``.

    Returns:
        The labels. ``provenance["counts"]`` has calls, cached, tokens, cost, repairs by
        kind, failures by reason, and the agreement of the passes.

    Raises:
        Unfinished: the budget is used up; finished shards are kept.
        UserError: too many failures, or the folder holds labels of another teacher.
    """
    how = Method(**method)
    prompt = how.load()
    run = run.on(collection)
    certificate = {
        "teacher": client.model,
        "prompt": prompt.name,
        "prompt_digest": prompt.digest,
        "method": dataclasses.asdict(dataclasses.replace(how, prompt=None)),
        "collection": collection.digest,
        "queries": queries.digest,
        "candidates": run.digest,
        **(provenance or {}),
    }
    writer = LabelWriter(directory, certificate, retry_failed=retry_failed)
    job = f"rank-{digest(certificate)[:8]}"
    asking = _Asking(client, how, prompt, queries, collection, run, job)
    tally = label_shards(
        writer,
        run.query_ids,
        lambda rows: _label(asking, rows),
        lambda: client.counts(job),
        shard_queries=shard_queries,
        most_failed=most_failed,
        progress=progress,
    )
    labels = TeacherLabels.read(directory, collection=collection)
    counts = _summary(tally, client.counts(job), labels)
    writer.finish(counts)
    return dataclasses.replace(
        labels, provenance={**labels.provenance, "counts": counts}
    )


def estimate(
    cost: Callable[[tuple[int, int]], float | None],
    queries: Queries,
    collection: Collection,
    run: Run | None = None,
    *,
    depth: int = 100,
    sample: int = 50,
    **method: Any,
) -> dict[str, Any]:
    """Calls, tokens and cost of labelling, before the first call.

    Args:
        cost: of (prompt, completion) tokens, e.g. ``Client.cost``; None is unknown.
        run: the candidates; without one ``depth`` documents a query are assumed.
        sample: requests that are written out and measured.
    """
    how = Method(**method)
    prompt = how.load()
    if run is None:
        counts = np.full(len(queries), min(depth, len(collection)))
    else:
        counts = run.where.sum(axis=1)
    sizes: Counter[int] = Counter()
    for count, lists in Counter(counts.tolist()).items():
        for start, end in how.windows(count):
            sizes[end - start] += lists * how.passes
    calls = sum(sizes.values())
    random = generator(how.seed, "estimate")
    prompt_tokens = completion_tokens = 0.0
    for size, number in sizes.items():
        measured = []
        for _ in range(max(1, round(sample * number / calls))):
            rows = random.integers(0, len(collection), size).tolist()
            query = queries.texts[int(random.integers(0, len(queries)))]
            documents = prompts.passages(collection, rows, how.words)
            measured.append(estimated_tokens(how.messages(prompt, query, documents)))
        prompt_tokens += number * float(np.mean(measured))
        completion_tokens += number * how.most_tokens(size)
    tokens = (round(prompt_tokens), round(completion_tokens))
    return {
        "calls": calls,
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "cost": None if (money := cost(tokens)) is None else round(money, 4),
    }


class _Asking(NamedTuple):
    client: Completer
    how: Method
    prompt: prompts.Prompt
    queries: Queries
    collection: Collection
    run: Run
    job: str


def _label(asking: _Asking, rows: list[int]) -> tuple[TeacherLabels, dict[str, Any]]:
    """One shard of labels, and what was counted in making it."""
    client, how, prompt, queries, collection, run, job = asking
    counts: Any = Counter()
    lists = [
        made for row in rows for made in passes_over(how, queries, collection, run, row)
    ]
    while waiting := [item for item in lists if item.todo and not item.failed]:
        wave(client, how, prompt, waiting, job, counts)
    kind = "score" if how.direct_scores else "rank"
    scores = np.full(run.rows[rows].shape, np.nan, np.float32)
    failed = np.zeros(len(rows), bool)
    by_query: dict[str, list[Sitting]] = {}
    for item in lists:
        by_query.setdefault(item.query_id, []).append(item)
    for line, row in enumerate(rows):
        where = np.flatnonzero(run.where[row])
        passes = by_query[run.query_ids[row]]
        usable = [item for item in passes if not item.failed]
        counts["passes failed"] += len(passes) - len(usable)
        counts["queries"] += 1
        if not usable:
            failed[line] = True
            counts["queries failed"] += 1
        elif how.direct_scores:
            values = [[item.scores[at] for at in range(len(where))] for item in usable]
            scores[line, where] = np.mean(values, axis=0) if len(where) else []
        else:
            orders = [item.order for item in usable]
            order = parsing.mean_order(orders, len(where))
            scores[line, where[list(order)]] = np.arange(1, len(where) + 1)
            _agreement(usable, counts)
    labels = TeacherLabels(
        tuple(run.query_ids[row] for row in rows),
        run.rows[rows],
        scores,
        run.doc_ids,
        kind,
        failed,
    )
    return labels, counts


def _agreement(usable: list[Sitting], counts: Any) -> None:
    for i, first in enumerate(usable):
        for second in usable[i + 1 :]:
            if len(first.order) > 1:
                counts["tau of passes"] += windows.kendall_tau(
                    first.order, second.order
                )
                counts["pairs of passes"] += 1


def _summary(
    tally: Counter, calls: Mapping[str, Any], labels: TeacherLabels
) -> dict[str, Any]:
    """The stored sums, and the means for a report."""

    def mean(total: str, number: str) -> float | None:
        return round(tally[total] / tally[number], 4) if tally[number] else None

    def named(prefix: str) -> dict[str, int]:
        found = {k.removeprefix(prefix): n for k, n in tally.items()}
        return {k: n for k, n in sorted(found.items()) if f"{prefix}{k}" in tally}

    return {
        **{k: v for k, v in calls.items() if k != "failures"},
        "call_failures": calls.get("failures", {}),
        "queries": len(labels),
        "queries_failed": int(labels.failed.sum()),
        "passes_failed": tally["passes failed"],
        "replies": tally["replies"],
        "replies_repaired": tally["replies repaired"],
        "repairs": named("repair: "),
        "failures": named("failure: "),
        "agreement_tau": mean("tau of passes", "pairs of passes"),
        "tau_to_shown": mean("tau to shown, as found", "replies, as found"),
        "position_bias_tau": mean("tau to shown, shuffled", "replies, shuffled"),
        "seconds": round(tally["seconds"], 3),
    }
