"""Single jobs that make data: candidates, labels, pairs, queries."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from distill_jax import report
from distill_jax.evaluation import diagnostics
from distill_jax.io.values import Name, Seed, Size, UserPath
from distill_jax.jobs.names import CollectionName
from distill_jax.recipe.candidates import Context, Source
from distill_jax.recipe.queries import Training
from distill_jax.recipe.students import Student, load_model
from distill_jax.recipe.teachers import PairTeacher, Teacher
from distill_jax.runtime import sharding
from distill_jax.workspace.console import say
from distill_jax.workspace.context import Split, Workspace, open_workspace


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataJob:
    """What the jobs below share.

    Attributes:
        split: "train", "dev" or "test": whose queries are worked on.
        student: a model for sources that search with one; None where none does.
    """

    directory: UserPath
    collection: CollectionName
    split: Name = "train"
    student: Student | None = None
    seed: Seed = 0
    mesh: Name | None = None
    max_queries: Size | None = None

    def open(self) -> tuple[Workspace, Context]:
        """The workspace, and the context of its parts."""
        Path(self.directory).mkdir(parents=True, exist_ok=True)
        workspace = open_workspace(
            self.directory,
            self.collection,
            mesh=sharding.make_mesh(self.mesh),
            seed=self.seed,
            dev_share=0.0,
            need=(self.split,) if self.split != "none" else (),
        )
        split: Split | None = getattr(workspace, self.split, None)
        student = None
        if self.student is not None:
            texts = workspace.collection.full_texts
            student = self.student.make(texts, self.seed)
        context = Context(
            workspace=workspace,
            queries=split.queries if split else None,  # type: ignore[arg-type]
            qrels=split.qrels if split else None,
            student=student,  # type: ignore[arg-type]
            model=_loader(workspace),
            directory=Path(self.directory),
        )
        if self.max_queries is not None and split is not None:
            train = dataclasses.replace(workspace, train=split)
            some = Training(limit=self.max_queries)(
                dataclasses.replace(context, workspace=train)
            )
            context = dataclasses.replace(
                context, queries=some.queries, qrels=some.qrels
            )
        return workspace, context

    def note(self, config: str) -> None:
        if config and jax.process_index() == 0:
            (Path(self.directory) / "config.gin").write_text(config, encoding="utf-8")


def _loader(workspace: Workspace):
    loaded: dict[str, Any] = {}

    def load(model: Any, **overrides: Any) -> Any:
        key = repr((model, sorted(overrides.items())))
        if key not in loaded:
            loaded[key] = load_model(model, workspace, **overrides)
        return loaded[key]

    return load


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine:
    """Candidates of every query of a split, as a TREC run."""

    desk: DataJob
    candidates: Source

    def __call__(self, *, config: str = "", command: str = "") -> int:
        workspace, context = self.desk.open()
        self.desk.note(config)
        run = self.candidates(context)
        path = Path(self.desk.directory) / "run.trec"
        run.write(path)
        say(f"{len(run):,} queries, {int(run.where.sum()):,} candidates in {path}")
        _publish(self.desk, workspace, context, command, run=run)
        return 0

    def plan(self) -> int:
        return _planned(self.desk, self.candidates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """A teacher's labels over candidates; pairs on top where a pairwise one is named.

    Attributes:
        teacher: see ``recipe.teachers``.
        pairwise: see ``recipe.teachers``; None for none.
        tfds: also write the labels as a TensorFlow Datasets folder.
    """

    desk: DataJob
    candidates: Source
    teacher: Teacher
    pairwise: PairTeacher | None = None
    tfds: bool = False

    def __call__(self, *, config: str = "", command: str = "") -> int:
        workspace, context = self.desk.open()
        self.desk.note(config)
        run = self.candidates(context).on(workspace.collection)
        run.write(Path(self.desk.directory) / "run.trec")
        labels = self.teacher(context, run)
        say(
            f"{len(labels):,} lists, {int(labels.where.sum()):,} labels, "
            f"{int(labels.failed.sum())} failed: {self.desk.directory}/labels"
        )
        pairs = None
        if self.pairwise is not None:
            pairs = self.pairwise(context, labels)
            say(f"{int(pairs.where.sum()):,} pairs: {self.desk.directory}/labels/pairs")
        if self.tfds:
            from distill_jax.labels.tfds import to_tfds

            to_tfds(labels, Path(self.desk.directory) / "tfds")
        _publish(
            self.desk, workspace, context, command, run=run, labels=labels, pairs=pairs
        )
        return 0 if not labels.failed.any() else 3

    def plan(self) -> int:
        return _planned(self.desk, self.candidates, self.teacher)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthesize:
    """Generates queries from documents, as a BEIR folder that any job can train on."""

    desk: DataJob
    queries: Any

    def __call__(self, *, config: str = "", command: str = "") -> int:
        _, context = self.desk.open()
        self.desk.note(config)
        split = self.queries(context)
        say(
            f"{len(split.queries):,} queries: "
            f"--gin.COLLECTION=beir:{self.desk.directory}/queries"
        )
        return 0

    def plan(self) -> int:
        return _planned(self.desk, self.queries)


def _publish(
    desk, workspace, context, command, *, run, labels=None, pairs=None
) -> None:
    """The report of a job that measures nothing but its own data."""
    qrels: Any = context.qrels
    judged = qrels is not None and len(qrels) > 0
    data: dict[str, Any] = {
        "title": f"{workspace.collection.name}: data",
        "collection": desk.collection,
        "measures": {},
        "again": command,
        "notices": list(workspace.collection.notices),
    }
    if judged:
        assert qrels is not None
        from distill_jax.evaluation.measures import evaluate_queries

        names = ["nDCG@10", "RR@10", "R@100"]
        systems = {"candidates": evaluate_queries(run, qrels, names)}
        if labels is not None and not labels.failed.all():
            systems["teacher"] = evaluate_queries(labels.to_run(), qrels, names)
        measured = report.compare_systems(
            systems, baseline="candidates", system=list(systems)[-1]
        )
        data |= measured | {"notices": [*measured["notices"], *data["notices"]]}
    if labels is not None:
        found = diagnostics.teacher_report(
            labels,
            qrels=qrels if judged else None,
            first_stage=run if judged else None,
        )
        counts = labels.provenance.get("counts", {})
        data |= {"teacher": {**found, "counts": counts}}
        data["provenance"] = labels.provenance
        if pairs is not None:
            data["teacher"]["pairs"] = diagnostics.disagreement(labels, pairs)
    page = report.publish(desk.directory, data)
    if data["measures"]:
        print(report.summary(data), flush=True)
    for warning in (data.get("teacher") or {}).get("warnings", ()):
        say(f"teacher: {warning}")
    print(f"report: {page}")


def _planned(desk: DataJob, *parts: Any) -> int:
    """What a data job would do, in counts."""
    from distill_jax.workspace.describe import describe

    workspace, context = desk.open()
    queries = len(context.queries) if context.queries is not None else 0
    print(f"{queries:,} queries, {len(workspace.collection):,} documents")
    for part in parts:
        estimate = getattr(part, "estimate", None)
        print(json.dumps(describe(part), indent=1))
        if estimate is not None:
            print(estimate(context))
    return 0
