"""The collections of a training job: one part each, and one table of them at the end.

A job of one collection has one part, in ``MODEL_DIR`` itself. Of several, each has its
splits, candidates, lists and rankings in ``MODEL_DIR/collections/NAME``, and the
student is trained on all of them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax import report
from distill_jax.inputs.mixing import mixing_rates
from distill_jax.io.errors import UserError
from distill_jax.io.files import atomic_write
from distill_jax.jobs import reporting
from distill_jax.jobs.rankings import Rankings
from distill_jax.jobs.tables import short, slug
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe.models import Models
from distill_jax.recipe.stage import StageResult
from distill_jax.report.grid import (
    Values,
    latex,
    significance,
    table_of,
    text,
    write_tsv,
)
from distill_jax.runs.run import Run
from distill_jax.workspace import cached_step
from distill_jax.workspace.console import print_at_end, say
from distill_jax.workspace.context import Workspace

MEAN = "mean"


@dataclasses.dataclass(frozen=True)
class Part:
    """One collection of a job.

    Attributes:
        name: of the collection, for people.
        job: a ``Distill`` of this collection alone: its folder, its sources.
        first: the first stage's ranking of the test queries.
    """

    name: str
    job: Any
    workspace: Workspace
    rankings: Rankings
    table: reporting.Table
    first: Run

    @classmethod
    def begin(
        cls,
        job: Any,
        workspace: Workspace,
        models: Models,
        student: Pretrained,
        *,
        command: str,
        started: float,
    ) -> Part:
        """Measures what there is before training."""
        rankings = Rankings(job, workspace, models)
        table = reporting.Table(job, workspace, command=command, started=started)
        first = rankings.first_stage(student)
        part = cls(short(job.collection), job, workspace, rankings, table, first)
        table.add("first_stage", first)
        table.add("before", rankings.of(student, "before", first))
        if (sentence := rankings.lead(student)) is not None:
            part.note(sentence)
        rankings.add(table, "before", student)
        return part

    def end(self, before: Pretrained, after: Pretrained) -> None:
        """Measures what there is after training."""
        self.rankings.add(self.table, "after", after)
        self.rankings.add_second(self.table, before, after)
        if not len(self.workspace.judged.qrels):
            self.rankings.add_teacher(self.table, before)
        self.table.calibration = self.rankings.calibration(after)

    def note(self, sentence: str) -> None:
        """Says a sentence, which the report has as well."""
        say(sentence)
        self.table.notices.append(sentence)


def jobs_of(job: Any) -> list[Any]:
    """A job for each collection of a ``Distill``; of one alone it is the job itself.

    Raises:
        UserError: a collection twice, other rates than one a collection, or what is of
            one collection alone.
    """
    names = job.collections
    if not names:
        return [job]
    if len(set(names)) < len(names):
        raise UserError("COLLECTIONS has a collection twice", "leave one out")
    if job.elsewhere or job.most_risk is not None or job.budget is not None:
        raise UserError(
            "ELSEWHERE, MOST_RISK and BUDGET are of a job of one collection, and there "
            "are several",
            "take them out; evaluate.gin measures the student on further collections",
        )
    mixing_rates([1] * len(names), job.mixing.rates)
    for stage in job.stages:
        if hasattr(stage, "run") or stage.labels is not None:
            raise UserError(
                f"stage {stage.name} learns from texts or labels of one collection",
                "give COLLECTION alone, or a recipe that labels its own candidates",
            )
    folder = Path(job.directory) / "collections"
    return [
        dataclasses.replace(
            job,
            collection=name,
            collections=(),
            directory=str(folder / f"{number}_{slug(short(name))}"),
        )
        for number, name in enumerate(names, 1)
    ]


def dev_value(parts: Sequence[Part], student: Pretrained, number: int) -> float:
    """Mean of the stop measure over the collections whose dev queries are judged."""
    values = [
        part.rankings.dev_value(student, number)
        for part in parts
        if part.rankings.judges_dev
    ]
    if len(values) > 1:
        say(f"dev, mean of {len(values)} collections: {np.mean(values):.4f}")
    return float(np.mean(values)) if values else 0.0


def means(parts: Sequence[Part]) -> dict[str, dict[str, float]]:
    """Mean over the collections of each measure of each system that all have."""
    found = [part.table.means() for part in parts]
    return {
        system: {
            measure: float(np.mean([each[system][measure] for each in found]))
            for measure in row
        }
        for system, row in found[0].items()
        if all(system in each for each in found)
    }


def publish(
    job: Any,
    parts: Sequence[Part],
    best: Sequence[StageResult],
    export: Any,
    command: str,
) -> None:
    """Each collection's report in its folder, and one table of all in ``MODEL_DIR``."""
    for part, result in zip(parts, best, strict=True):
        part.table.finish(result, export=None, shown=False)
    directory = Path(job.directory)
    cached_step.check(directory)
    measured = {measure: _values(parts, measure) for measure in job.measures}
    primary = job.measures[0]
    columns = [
        (part.name, (part.job.collection,)) for part in parts if part.table.values
    ]
    if not columns:
        print_at_end("VERDICT: NOT_MEASURED")
        return
    cells = {measure: _cells(found, columns) for measure, found in measured.items()}
    everywhere = (MEAN, tuple(spec for _, specs in columns for spec in specs))
    tests = significance(measured[primary], "before", [*columns, everywhere])
    marks = {(test.system, test.measure): test for test in tests}
    rows = []
    for measure, found in cells.items():
        for system, row in found.items():
            for column, value in row.items():
                test = marks.get((system, column)) if measure == primary else None
                p = "" if test is None else test.p_holm
                rows.append((measure, system, column, value, "", p))
    write_tsv(directory / "table.tsv", rows)
    with atomic_write(directory / "table.tex") as out:
        out.write(latex(cells[primary], marks, {}, primary))
    verdicts = [test.verdict() for test in tests if test.system == "after"]
    data = {
        "title": f"{best[0].student.spec.kind}: {len(columns)} collections",
        "measures": {
            system: {c: v for c, v in row.items() if v is not None}
            for system, row in cells[primary].items()
        },
        "primary": MEAN,
        "baseline": "before",
        "system": "after",
        "significance": [test.as_dict() for test in tests],
        "verdict": "\n".join(verdicts),
        "export": reporting.export_entry(export),
        "again": command,
        "notices": [f"{part.name}: {n}" for part in parts for n in part.table.notices],
    }
    data = {name: value for name, value in data.items() if value is not None}
    logs = [directory / "metrics.jsonl", *directory.glob("rounds/**/metrics.jsonl")]
    page = report.publish(directory, data, logs)
    print(text(cells[primary], marks, {}))
    print(f"* differs from before: p < 0.05, Holm over {len(tests)} tests")
    print("\n".join(verdicts))
    print(f"report: {page}")
    print_at_end(reporting.decision(data))


def _values(parts: Sequence[Part], measure: str) -> Values:
    """``{system: {collection: {query: value}}}``, what the job started from first."""
    found: dict[str, dict[str, Any]] = {"before": {}}
    for part in parts:
        for system, values in part.table.values.items():
            found.setdefault(system, {})[part.job.collection] = values[measure]
    return found


def _cells(values: Values, columns: Any) -> dict[str, dict[str, float | None]]:
    cells = table_of(values, columns)
    return {
        system: {name: row[name] for name in [*(c for c, _ in columns), MEAN]}
        for system, row in cells.items()
    }
