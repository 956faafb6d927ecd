"""Question answering in evaluations: the questions, and what is measured by answers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_jax.collections import schemes
from distill_jax.collections.collection import NO_DOCUMENTS
from distill_jax.collections.qrels import Qrels
from distill_jax.collections.schemes import load_collection
from distill_jax.evaluation import answers
from distill_jax.io.errors import UserError
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.llm import money
from distill_jax.runs.run import Run
from distill_jax.workspace.console import say
from distill_jax.workspace.context import Split, Workspace


def open_questions(
    directory: str | Path,
    collection: str,
    questions: str,
    *,
    split: str,
    mesh: Any,
    seed: int,
) -> Workspace:
    """The documents of one place and the questions of another; nothing is judged.

    Raises:
        UserError: no documents, or no question has an answer.
    """
    docs = schemes.load_docs(collection)
    found, queries, _ = load_collection(questions, split)
    known = answers.accepted(queries)
    notices = [note for note in found.notices if note != NO_DOCUMENTS]
    if len(known) < len(queries):
        rows = [row for row, query in enumerate(queries.ids) if query in known]
        lost = f"{len(queries) - len(rows)} of {len(queries)} questions have no answer"
        notices.append(f"{lost}: left out")
        queries = queries.select(rows)
    for notice in (*docs.notices, *notices):
        say(f"note: {notice}")
    say(f"{collection}: {len(docs):,} documents; {questions}: {len(queries)} questions")
    return Workspace(
        directory=Path(directory),
        collection=docs.with_notices(*notices),
        train=None,
        dev=None,
        test=Split(queries=queries, qrels=Qrels({})),
        mesh=mesh,
        seed=seed,
    )


def read_all(reader: Any, context: Context, runs: Mapping[str, Run]) -> dict[str, Any]:
    """``jobs.llm.Reading`` of each system; ``reading/SYSTEM/answers.json``."""
    found = {}
    for name, run in runs.items():
        folder = context.directory / "reading" / name
        found[name] = reader(dataclasses.replace(context, directory=folder), run)
        values, counts = found[name].values, found[name].counts
        means = "  ".join(f"{m} {answers.mean(per):.4f}" for m, per in values.items())
        say(
            f"{name}: {means} ({counts['calls']:,} calls, {counts['cached']:,} from the"
            f" cache, {found[name].failed} without a reply, {money(counts['cost'])})"
        )
    return found


def cost(readings: Mapping[str, Any]) -> dict[str, Any]:
    """What the readings took in all, as the report names it."""
    total: Counter = Counter()
    for reading in readings.values():
        counts = reading.counts
        total["calls"] += counts["calls"]
        total["calls from the cache"] += counts["cached"]
        total["tokens"] += counts["prompt_tokens"] + counts["completion_tokens"]
        total["questions without a reply"] += reading.failed
    costs = [reading.counts["cost"] for reading in readings.values()]
    return dict(total) | {"money": "unknown" if None in costs else sum(costs)}


def refuse_unmeasured(workspace: Workspace, reader: Any) -> None:
    """Ends a job early that would measure nothing, or has nothing to read for."""
    judged = workspace.judged
    if reader is not None or not len(judged.qrels):
        try:
            answers.accepted(judged.queries)
        except UserError as error:
            if reader is not None:
                raise
            raise UserError(
                f"nothing is judged, and {error.what}", error.todo
            ) from None
