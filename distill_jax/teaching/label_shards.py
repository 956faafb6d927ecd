"""Labels of an endpoint's replies, shard by shard of queries.

A finished shard is kept: a job that was stopped resumes with the next one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.labels.store import LabelWriter, stored_counts

Progress = Callable[[int, int], Any]

# Queries seen before a high share of failures ends a job.
_ENOUGH = 20


def label_shards(
    writer: LabelWriter,
    query_ids: Sequence[str],
    label: Callable[[list[int]], tuple[Any, Any]],
    calls: Callable[[], Mapping[str, Any]],
    *,
    shard_queries: int,
    most_failed: float,
    progress: Progress | None,
) -> Any:
    """Labels the queries that the writer has not yet.

    Args:
        label: of rows of ``query_ids``: their labels, and what was counted with them:
            "queries", "queries failed", "failure: REASON".
        calls: counts of the ledger.
        shard_queries: queries that are in work together.
        most_failed: with a greater share of failed lists the job ends, and the shard
            that went too far is not kept.
        progress: called with (queries done, queries in all).

    Returns:
        A ``Counter`` of all shards, with those of earlier runs.

    Raises:
        UserError: too many lists fail.
    """
    total = len(query_ids)
    todo = [row for row, query in enumerate(query_ids) if query not in writer.done]
    tally: Any = stored_counts(writer.directory)
    for start in range(0, len(todo), shard_queries):
        rows = todo[start : start + shard_queries]
        began = time.monotonic()
        labels, counts = label(rows)
        counts["seconds"] = time.monotonic() - began
        # Not +=, which would drop what is negative.
        tally.update(counts)
        _refuse_failures(tally, total, most_failed, calls())
        writer.write(labels, counts)
        if progress is not None:
            progress(total - len(todo) + start + len(rows), total)
    return tally


def _refuse_failures(
    tally: Counter, queries: int, most: float, calls: Mapping[str, Any]
) -> None:
    """Ends a job whose lists fail too often.

    Args:
        tally: "queries", "queries failed", and "failure: REASON" of each reason.
        queries: in all.
        most: the share that may fail.
        calls: counts of the ledger, with the reasons of calls without a reply.

    Raises:
        UserError: more than that have failed, of enough to tell.
    """
    seen, failed = tally["queries"], tally["queries failed"]
    if seen >= min(_ENOUGH, queries) and failed > most * seen:
        reasons = Counter(
            {k.removeprefix("failure: "): n for k, n in tally.items() if "ure: " in k}
        )
        # Why there was no reply, as the ledger has it.
        if reasons.pop("no reply", 0):
            reasons.update(calls.get("failures", {}))
        cut = any("cut" in reason for reason in reasons)
        told = ", ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3))
        raise UserError(
            f"{failed} of {seen} lists have no usable reply ({told})",
            (
                "raise reply_tokens, or look at the replies"
                if cut
                else "look at the replies"
            )
            + f"; most_failed = {most} is the share that may fail",
        )
