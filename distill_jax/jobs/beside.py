"""Extra rows beside the student's own: its results combined with other searches.

A student may have learnt only what fusion with BM25 gives for free. So the same
sources are measured with the student before and after training, and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_jax.evaluation.significance import compare, correct
from distill_jax.recipe.candidates import Context
from distill_jax.runs.run import Run
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.dependencies import dependencies
from distill_jax.workspace.describe import describe


def ranked(name: str, when: str, source: Any, context: Context, depth: int) -> Run:
    """A source's ranking of the context's queries, kept as a part of the job.

    Args:
        name: of the source, for its folder and for people.
        when: "before" or "after": which student ``context`` holds.
    """
    folder = Path(context.directory) / "evaluation" / "beside" / name / when
    inputs = {
        "collection": context.workspace.collection.digest,
        "queries": context.queries.digest,
        "source": describe(source),
        "depth": depth,
        "student": None if context.student is None else context.student.digest,
        **dependencies(source, context),
    }

    def make(folder: Path) -> None:
        source(context).top(depth).write(folder / "run.trec")

    part(folder, inputs, make, what=f"ranking {when} {name}")
    return Run.read(folder / "run.trec", collection=context.workspace.collection)


def sentences(
    values: Mapping[str, Mapping[str, Mapping[str, float]]],
    names: tuple[str, ...],
    measure: str,
) -> list[str]:
    """What each source gained, and whether the best of them after training beats the
    best of those that need none; corrected together by Holm.

    Args:
        values: ``{system: {measure: {query: value}}}`` with "before" and "after", alone
            and each with ", NAME" appended.
        names: of the sources.
    """
    pairs = [(f"before, {name}", f"after, {name}") for name in names]
    best = {
        when: max(
            [when, *(f"{when}, {name}" for name in names)],
            key=lambda system: _mean(values[system][measure]),
        )
        for when in ("before", "after")
    }
    found = [
        compare(
            values[old][measure],
            values[new][measure],
            measure=measure,
            baseline=old,
            system=new,
        )
        for old, new in dict.fromkeys([*pairs, (best["before"], best["after"])])
    ]
    return [comparison.verdict() for comparison in correct(found)]


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / max(len(values), 1)
