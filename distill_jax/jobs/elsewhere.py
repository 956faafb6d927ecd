"""What training changed on other collections: the base may have known more of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_jax.evaluation.measures import evaluate_queries
from distill_jax.evaluation.significance import compare, correct
from distill_jax.jobs.tables import slug
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe.candidates import BM25, Context
from distill_jax.runs.run import Run
from distill_jax.workspace import ranking
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.console import say
from distill_jax.workspace.context import Workspace, open_workspace


def measured(
    job: Any, collections: Sequence[str], student: Pretrained, when: str, mesh: Any
) -> dict[str, dict[str, float]]:
    """``{collection: {query: value}}`` of the job's first measure.

    Rerankers reorder BM25's first documents.

    Args:
        job: the ``Distill``: its directory, measures, depth, index, seed.
        collections: each with test queries and judgements.
        when: "before" or "after": which student it is.
    """
    found = {}
    for name in collections:
        workspace = open_workspace(
            Path(job.directory) / "elsewhere" / slug(name),
            name,
            mesh=mesh,
            seed=job.seed,
            dev_share=0.0,
            max_test_queries=job.max_test_queries,
        )
        run = _ranked(job, student, when, workspace)
        values = evaluate_queries(run, workspace.judged.qrels, [job.measures[0]])
        found[name] = values[job.measures[0]]
    return found


def compared(
    before: Mapping[str, Mapping[str, float]],
    after: Mapping[str, Mapping[str, float]],
    measure: str,
) -> dict[str, dict[str, Any]]:
    """``{collection: {"measure", "before", "after", "difference", "p", "queries"}}``.

    Args:
        before, after: what ``measured`` gave. All tests are corrected by Holm together.
    """
    tests = [compare(before[name], after[name], measure=measure) for name in before]
    made = {}
    for name, test in zip(before, correct(tests), strict=True):
        say(f"elsewhere, {name}: {test.verdict()}")
        made[name] = {
            "measure": measure,
            "before": test.baseline_mean,
            "after": test.system_mean,
            "difference": test.difference,
            "p": test.p_holm,
            "queries": test.queries,
        }
    return made


def _ranked(job: Any, student: Pretrained, when: str, workspace: Workspace) -> Run:
    """The student's ranking of the collection's test queries, kept as a part."""
    queries = workspace.judged.queries
    inputs = {
        "student": student.digest,
        "collection": workspace.collection.digest,
        "queries": queries.digest,
        "depth": job.depth,
        "index": job.index,
    }

    def make(folder: Path) -> None:
        first = None
        if student.spec.vectors is None:
            context = Context(
                workspace=workspace,
                queries=queries,
                student=student,
                model=lambda *_, **__: student,
                directory=workspace.directory,
            )
            first = BM25(depth=max(100, job.depth))(context)
        run = ranking.rank(
            student,
            queries,
            workspace,
            first_stage=first,
            depth=job.depth,
            directory=workspace.directory / "vectors",
            index=job.index,
        )
        run.write(folder / "run.trec")

    folder = workspace.directory / "evaluation" / when
    part(folder, inputs, make, what=f"ranking {when} elsewhere")
    return Run.read(folder / "run.trec", collection=workspace.collection)
