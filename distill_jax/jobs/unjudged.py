"""Reports a training without judgements: how the first ten results changed.

Unjudged queries cannot be measured. Some are held out of training (or, where
there are none, sentences of the documents take their place), and the report shows for
them how far each system's first ten documents are those of the systems before it and of
the teacher, with the lists side by side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.collections.collection import Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.draws import share
from distill_jax.report.data import side_by_side as examples
from distill_jax.runs.run import Run
from distill_jax.synthesis.crop import crop
from distill_jax.workspace.context import Split, Workspace

NOT_MEASURED = "Not measured: no judgements"
MOST_QUERIES = 50
MOST_SHOWN = 20
DEPTH = 10
TEACHER = "teacher"


def with_probes(workspace: Workspace) -> Workspace:
    """The workspace with queries to look at where its test split is missing.

    At most ``MOST_QUERIES`` and a fifth of the training queries, chosen by the hashes
    of their ids, leave training; without training queries, as many sentences of the
    documents are taken.
    """
    train = workspace.train
    if train is None:
        made = crop(
            workspace.collection,
            np.arange(len(workspace.collection)),
            sample=MOST_QUERIES,
            seed=workspace.seed,
        )
        ids = [f"probe-{number}" for number in range(len(made.texts))]
        probes = Queries(ids, list(made.texts))
        return dataclasses.replace(
            workspace, test=Split(queries=probes, qrels=Qrels({}))
        )
    count = min(MOST_QUERIES, len(train.queries) // 5)
    order = np.argsort([share(query, "probe") for query in train.queries.ids])
    where = np.zeros(len(train.queries), bool)
    where[order[:count]] = True
    probes = Split(queries=train.take(where).queries, qrels=Qrels({}))
    return dataclasses.replace(workspace, train=train.take(~where), test=probes)


def overlaps(runs: Mapping[str, Run]) -> dict[str, dict[str, float]]:
    """Mean share of each system's first ten that others have in theirs.

    Returns:
        {system: {"overlap@10 with OTHER": share}} with the first stage, the student
        before training and, if it was called, the teacher as OTHER.
    """
    tops = {name: _sets(run.top(DEPTH)) for name, run in runs.items()}
    others = [name for name in ("first_stage", "before", TEACHER) if name in tops]
    return {
        name: {
            f"overlap@{DEPTH} with {other.replace('_', ' ')}": _share(mine, tops[other])
            for other in others
        }
        for name, mine in tops.items()
    }


def _share(mine: Mapping[str, set], theirs: Mapping[str, set]) -> float:
    shares = [
        len(docs & theirs.get(query, set())) / len(docs)
        for query, docs in mine.items()
        if docs
    ]
    return float(np.mean(shares)) if shares else 0.0


def teacher_run(stage: Any, context: Any, directory: Path) -> Run | None:
    """The teacher's order of a stage's candidates for the probes.

    None if this costs LLM calls, or the stage has no teacher.
    """
    teacher = stage.list_teacher
    if teacher is None or getattr(teacher, "client", None) is not None:
        return None
    context = dataclasses.replace(context, directory=directory)
    labels = teacher(context, stage.candidates(context))
    return labels.to_run()


def report(runs: Mapping[str, Run], queries: Any, collection: Any) -> dict[str, Any]:
    """The measured part of a report, without measures of relevance."""
    found = overlaps(runs)
    names = [name for name in ("before", "after") if name in runs]
    kept = found[names[-1]][f"overlap@{DEPTH} with before"]
    return {
        "measures": found,
        "baseline": "before",
        "system": names[-1],
        "verdict": (
            f"{NOT_MEASURED}. Training changed {1 - kept:.0%} of the first {DEPTH} "
            f"documents (mean of {len(queries)} queries)."
        ),
        "headline": "Not measured: this collection has no test judgements",
        "examples": examples(
            {name: runs[name] for name in names},
            queries.ids[:MOST_SHOWN],
            queries,
            collection,
        ),
    }


def _sets(run: Run) -> dict[str, set[str]]:
    """The document ids of each query; rows of different runs may differ."""
    return {
        query: {doc_id for doc_id, _ in docs} for query, docs in run.lists().items()
    }
