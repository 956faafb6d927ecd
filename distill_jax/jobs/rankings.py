"""The rankings that a training job measures: each is made once and kept as a part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill_jax.collections.collection import Queries
from distill_jax.evaluation import calibration
from distill_jax.evaluation.measures import evaluate_queries
from distill_jax.evaluation.significance import compare, correct
from distill_jax.io.errors import UserError
from distill_jax.io.files import digest
from distill_jax.jobs import beside, reporting, unjudged
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe.candidates import BM25, Context
from distill_jax.recipe.models import Models
from distill_jax.recipe.teachers import Scores
from distill_jax.runs.run import Run
from distill_jax.workspace import compact, ranking
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.console import say
from distill_jax.workspace.context import Workspace
from distill_jax.workspace.dependencies import dependencies
from distill_jax.workspace.describe import describe


@dataclasses.dataclass(frozen=True)
class Rankings:
    """Ranks a job's test and dev queries by its first stage and by its students.

    Attributes:
        job: a ``Distill``: its depth, sources and folders are used.
    """

    job: Any
    workspace: Workspace
    models: Models
    _dev: dict[str, Run] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def judges_dev(self) -> bool:
        """Whether dev judgements choose among rounds."""
        return self.job.stop_measure is not None and self.workspace.dev_is_judged

    def context(self, student: Pretrained, queries: Queries | None = None) -> Context:
        """What a source is called with; of the test queries where none are given."""
        return Context(
            workspace=self.workspace,
            queries=self.workspace.judged.queries if queries is None else queries,
            student=student,
            model=self.models.load,
            directory=Path(self.job.directory),
        )

    def first_stage(
        self, student: Pretrained, source: Any = None, name: str = "first_stage"
    ) -> Run:
        """A source's ranking of the test queries; the job's first stage by default."""
        source = source or first_source(self.job)
        context = self.context(student)
        inputs = {
            "collection": self.workspace.collection.digest,
            "queries": context.queries.digest,
            "source": describe(source),
            **dependencies(source, context),
        }
        return self._kept(
            Path(self.job.directory) / "evaluation" / name,
            inputs,
            lambda: source(context),
            name.replace("_", " "),
        )

    def of(
        self, student: Pretrained, name: str, first: Run, place: Path | None = None
    ) -> Run:
        """The student's ranking of the test queries.

        Args:
            name: of the row in the table.
            first: what a reranker reorders.
            place: the stage's folder; None is the job's.
        """
        inputs = {
            "student": student.digest,
            "collection": self.workspace.collection.digest,
            "queries": self.workspace.judged.queries.digest,
            "first stage": first.digest,
            "depth": self.job.depth,
            "index": self.job.index,
        }
        short = "before" if name == "before" else "after"
        folder = (place or Path(self.job.directory)) / "evaluation" / short
        if self.job.shared is not None and name == "before":
            folder = Path(self.job.shared) / "evaluation" / digest(inputs)[:16]

        def make() -> Run:
            return ranking.rank(
                student,
                self.workspace.judged.queries,
                self.workspace,
                first_stage=first,
                depth=self.job.depth,
                directory=self.workspace.directory / "vectors",
                index=self.job.index,
            )

        return self._kept(folder, inputs, make, f"ranking {name}")

    def _kept(
        self, folder: Path, inputs: dict[str, Any], make: Callable[[], Run], what: str
    ) -> Run:
        part(
            folder, inputs, lambda folder: make().write(folder / "run.trec"), what=what
        )
        return Run.read(folder / "run.trec", collection=self.workspace.collection)

    def of_dev(self, student: Pretrained) -> Run:
        """The student's ranking of the dev queries; no file keeps it."""
        assert self.workspace.dev is not None
        queries = self.workspace.dev.queries
        if student.digest not in self._dev:
            self._dev.clear()
            self._dev[student.digest] = ranking.rank(
                student,
                queries,
                self.workspace,
                first_stage=first_source(self.job)(self.context(student, queries)),
                depth=self.job.depth,
                directory=self.workspace.directory / "vectors",
            )
        return self._dev[student.digest]

    def dev_value(self, student: Pretrained, number: int) -> float:
        """The stop measure on dev queries, 0 where they choose nothing.

        Args:
            number: of the round; 0 is before the first.
        """
        if not self.judges_dev:
            return 0.0
        assert self.workspace.dev is not None
        measure = str(self.job.stop_measure)
        values = evaluate_queries(
            self.of_dev(student), self.workspace.dev.qrels, [measure]
        )[measure]
        mean = sum(values.values()) / max(len(values), 1)
        name = f"round {number}" if number else "before"
        say(f"{name}: dev {measure} {mean:.4f}")
        return mean

    def lead(self, student: Pretrained) -> str | None:
        """What the first stage's teacher knows more than the student, on dev queries.

        None where nothing is judged, or where it takes a model or an LLM to find out.
        """
        stage = self.job.stages[0]
        if not self.judges_dev or not isinstance(stage.list_teacher, Scores):
            return None
        assert self.workspace.dev is not None
        queries, qrels = self.workspace.dev.queries, self.workspace.dev.qrels
        measure = str(self.job.stop_measure)
        order = stage.candidates(self.context(student, queries))
        known, taught = (
            evaluate_queries(run, qrels, [measure])[measure]
            for run in (self.of_dev(student), order)
        )
        (found,) = correct(
            [
                compare(
                    known,
                    taught,
                    measure=measure,
                    baseline="the student",
                    system="the teacher",
                )
            ]
        )
        sentence = f"before training, on dev queries: {found.verdict()}"
        if found.significant() and found.difference > 0:
            return sentence
        return f"{sentence}. A teacher without a lead has little to teach."

    def calibration(self, student: Pretrained) -> dict[str, Any] | None:
        """What the student's scores mean, by the judged dev queries."""
        if self.job.most_risk is None:
            return None
        if not self.workspace.dev_is_judged:
            say("no dev query is judged: scores are not calibrated")
            return None
        assert self.workspace.dev is not None
        run = self.of_dev(student)
        found = calibration.report(run, self.workspace.dev.qrels, self.job.most_risk)
        if found is None:
            say("no dev document that was found is relevant: nothing is calibrated")
        else:
            say(f"threshold: {calibration.sentence(found)}")
        return found

    def add(self, table: reporting.Table, when: str, student: Pretrained) -> None:
        """Adds a student's rows behind its own: fused, and by smaller vectors.

        Args:
            when: "before" or "after".
        """
        if not self.job.beside:
            table.add_fused(when)
        for name, source in self.job.beside.items():
            run = beside.ranked(
                name, when, source, self.context(student), self.job.depth
            )
            table.add(f"{when}, {name}", run)
        found = compact.search(
            student,
            self.workspace.judged.queries,
            self.workspace,
            self.job.compact,
            depth=self.job.depth,
            directory=self.workspace.directory / "vectors",
        )
        for name, run in found.items():
            table.add(f"{when}{reporting.WITH}{name}", run)
        if when == "after":
            width = student.spec.width if self.job.compact else 0
            table.notices += [
                compact.bytes_of(form, width) for form in self.job.compact
            ]

    def add_second(
        self, table: reporting.Table, before: Pretrained, after: Pretrained
    ) -> None:
        """Adds the second first stage's rows: itself, and reranked."""
        if self.job.second_stage is None:
            return
        if before.spec.vectors is not None:
            raise UserError(
                f"a {before.spec.kind} searches by itself, it reorders no second stage",
                "take SECOND_STAGE out",
            )
        folder = Path(self.job.directory) / "second_stage"
        first = self.first_stage(before, self.job.second_stage, folder.name)
        table.add("second_stage", first)
        for name, model in (("before", before), ("after", after)):
            run = self.of(model, name, first, folder)
            table.add(f"{name} over second_stage", run)

    def add_teacher(self, table: reporting.Table, student: Pretrained) -> None:
        """Adds the teacher's ranking of unjudged queries, if it costs nothing."""
        folder = Path(self.job.directory) / "evaluation" / unjudged.TEACHER
        context = self.context(student)
        run = unjudged.teacher_run(self.job.stages[-1], context, folder)
        if run is not None:
            table.add(unjudged.TEACHER, run)


def first_source(job: Any) -> Any:
    """What a job's rerankers reorder: what it names, or BM25."""
    return job.first_stage or BM25(depth=max(100, job.depth))
