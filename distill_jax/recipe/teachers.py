"""Teachers as a recipe names them: called with (context, run) for labels.

Each keeps its labels as a part of the stage, with its provenance, so that a change
of the student's training labels nothing again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.fingerprint import free
from distill_jax.io.values import Name, NotNegative, PromptName, Size, UserPath
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.recipe import checkpoints
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.checkpoints import Kind
from distill_jax.runs.run import Run
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.console import Counter, say
from distill_jax.workspace.describe import describe
from distill_jax.workspace.ranking import rerank


class Teacher(Protocol):
    """What labels candidates."""

    def __call__(self, context: Context, run: Run, /) -> TeacherLabels:
        """A label for each candidate that it can judge."""
        ...


class PairTeacher(Protocol):
    """What judges pairs of documents that a pointwise teacher has labelled."""

    def __call__(self, context: Context, labels: TeacherLabels, /) -> PairLabels:
        """The probability that the first of two documents is the better one."""
        ...


def _inputs(teacher: Any, context: Context, run: Run, **more: Any) -> dict:
    return {
        "teacher": describe(teacher),
        "candidates": run.digest,
        "collection": context.workspace.collection.digest,
        "queries": context.queries.digest,
        **more,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A reranker scores every candidate.

    Attributes:
        checkpoint: what ``distill_jax.load`` takes, ``stage:NAME``, or a
            ``checkpoints.Checkpoint`` of either, with how it is read.
        kind: what to make of it; a bare T5 becomes a reranker.
        prompt: the template; "instruction" is the zero-shot Yes/No form for Flan-T5.
        query_length, doc_length: tokens kept; None keeps the checkpoint's.
        cache: folder of scores by text, shared between jobs; None keeps one in
            ``MODEL_DIR/scores``, so that a re-mined round pays only for new pairs.
        tokens_per_batch: padded tokens computed at once; None chooses by platform.
    """

    checkpoint: checkpoints.Model
    kind: Kind | None = None
    prompt: PromptName | None = None
    query_length: Size | None = None
    doc_length: Size | None = None
    cache: UserPath | None = free(None)
    tokens_per_batch: Size | None = None

    def __call__(self, context: Context, run: Run) -> TeacherLabels:
        from distill_jax.teaching.scorers import label_run

        workspace = context.workspace
        model = context.model(self.checkpoint, **_overrides(self))
        encodes = model.spec.vectors is not None

        def make(folder: Path) -> dict:
            if encodes:
                _vector_labels(model, context, run).write(folder)
                return {}
            features = workspace.pair_features(model, context.queries)
            with Counter("labelling", run.where.sum(), "pairs") as counter:
                labels = label_run(
                    model,
                    features,
                    context.queries,
                    run,
                    folder,
                    mesh=workspace.mesh,
                    tokens_per_batch=self.tokens_per_batch,
                    cache=self.cache or workspace.directory / "scores",
                    progress=counter,
                )
            return {"counts": labels.provenance.get("counts", {})}

        folder = context.directory / "labels"
        part(
            folder,
            _inputs(self, context, run, weights=model.digest),
            make,
            what="labels",
        )
        return TeacherLabels.read(folder, collection=workspace.collection)


def _overrides(teacher: Any) -> dict[str, Any]:
    """The recipe's settings of how a checkpoint is read."""
    names = ("kind", "prompt", "query_length", "doc_length")
    values = {name: getattr(teacher, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _vector_labels(model: Any, context: Context, run: Run) -> TeacherLabels:
    """An encoder as a teacher: its similarity is the score."""
    scored = rerank(model, context.queries, run, context.workspace)
    return of_run(scored, {"teacher": model.source, "weights": model.digest})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """The candidates' own scores: any run, or fusion of runs, as a teacher.

    "Fuse BM25 and the dense retriever, teach the dense one" is this teacher over
    ``candidates.Fused``.
    """

    def __call__(self, context: Context, run: Run) -> TeacherLabels:
        folder = context.directory / "labels"
        labels = of_run(run, {"teacher": "the candidates' scores"})

        def make(folder: Path) -> None:
            labels.write(folder)

        part(folder, _inputs(self, context, run), make, what="labels")
        return TeacherLabels.read(folder, collection=context.workspace.collection)


def of_run(run: Run, provenance: dict) -> TeacherLabels:
    """A run's scores as labels."""
    scores = np.where(run.where, run.scores, np.nan).astype(np.float32)
    return TeacherLabels(
        run.query_ids,
        run.rows,
        scores,
        run.doc_ids,
        provenance={**provenance, "candidates": run.digest},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Several teachers as one: the weighted mean of their scores, or RRF.

    Attributes:
        teachers: each a teacher, or the checkpoint of a ``Model``.
        weights: one a teacher; None weighs all alike.
        normalise: of each teacher's scores per query: "zscore", "minmax", or "none" for
            the scores as they are (Hofstätter et al., 2020); None is reciprocal rank
            fusion.
    """

    teachers: tuple[Any, ...]
    weights: tuple[NotNegative, ...] | None = None
    normalise: Literal["zscore", "minmax", "none"] | None = "zscore"

    def __post_init__(self) -> None:
        teachers = tuple(
            Model(checkpoint=each) if isinstance(each, str) else each
            for each in self.teachers
        )
        object.__setattr__(self, "teachers", teachers)
        if self.weights is not None and (
            len(self.weights) != len(teachers) or not sum(self.weights) > 0
        ):
            raise UserError(
                f"{len(self.weights)} weights {self.weights} of {len(teachers)} "
                "teachers",
                "give each teacher one, and one of them above 0",
            )

    def __call__(self, context: Context, run: Run) -> TeacherLabels:
        if not self.teachers:
            raise UserError("an ensemble of no teachers", "set TEACHERS")
        runs, teachers = [], []
        for number, teacher in enumerate(self.teachers):
            place = context.directory / "labels" / f"teacher-{number}"
            labels = teacher(dataclasses.replace(context, directory=place), run)
            teachers.append(labels.provenance.get("teacher"))
            runs.append(labels.usable().to_run())
        if self.normalise is None:
            together = Run.fuse(runs, weights=self.weights)
        else:
            given = self.weights or (1.0,) * len(runs)
            weights = [weight / sum(given) for weight in given]
            scale = None if self.normalise == "none" else self.normalise
            together = Run.combine(runs, weights, normalise=scale)
            if scale is None:
                together = _in_all(together, runs)
        together = together.on(context.workspace.collection)
        labels = of_run(together, {"teacher": teachers, "candidates": run.digest})

        def make(folder: Path) -> None:
            labels.write(folder)

        folder = context.directory / "labels" / "ensemble"
        inputs = _inputs(self, context, run, labels=together.digest)
        part(folder, inputs, make, what="ensemble")
        return TeacherLabels.read(folder, collection=context.workspace.collection)


def _in_all(run: Run, runs: list[Run]) -> Run:
    """The documents that every run has: no score stands for one that is missing."""
    have = [
        {query: {doc for doc, _ in docs} for query, docs in each.lists().items()}
        for each in runs
    ]
    kept = {
        query: [
            (d, s) for d, s in docs if all(d in each.get(query, ()) for each in have)
        ]
        for query, docs in run.lists().items()
    }
    kept = {query: docs for query, docs in kept.items() if docs}
    return Run.from_lists(tuple(kept), list(kept.values()), doc_ids=run.doc_ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelFile:
    """Stored labels, of a label job or of another project.

    Attributes:
        path: a folder of shards, or a file that ``ir.label_readers`` knows.
    """

    path: UserPath
    format: Name | None = None

    def __call__(self, context: Context, run: Run) -> TeacherLabels:
        del run
        collection = context.workspace.collection
        if self.format is None:
            return TeacherLabels.read(self.path, collection=collection)
        from distill_jax.labels.readers import read_labels

        found = read_labels(
            self.path, form=self.format, collection=collection, unknown="drop"
        )
        for notice in found.notices:
            say(f"note: {notice}")
        return found.labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairModel:
    """A duo reranker judges sampled pairs of the pointwise order.

    Attributes:
        checkpoint, kind, prompt, query_length, doc_length: as of ``Model``.
        top_k, delta, pairs, both_orders: see ``teaching.pairs.label_pairs``.
        cache: folder of scores by text, shared between jobs; None keeps one in
            ``MODEL_DIR/scores``.
    """

    checkpoint: checkpoints.Model
    kind: Kind | None = "duo"
    prompt: PromptName | None = None
    query_length: Size | None = None
    doc_length: Size | None = None
    top_k: Size = 100
    delta: Size = 10
    pairs: Size = 50
    both_orders: bool = True
    cache: UserPath | None = free(None)

    def __call__(self, context: Context, labels: TeacherLabels) -> PairLabels:
        from distill_jax.teaching.pairs import label_pairs

        workspace = context.workspace
        model = context.model(self.checkpoint, **_overrides(self))
        run = labels.to_run()

        def make(folder: Path) -> dict:
            with Counter("labelling pairs", len(run), "queries") as counter:
                found = label_pairs(
                    model,
                    workspace.pair_features(model, context.queries),
                    context.queries,
                    labels,
                    folder,
                    top_k=self.top_k,
                    delta=self.delta,
                    pairs=self.pairs,
                    both_orders=self.both_orders,
                    seed=workspace.seed,
                    mesh=workspace.mesh,
                    cache=self.cache or workspace.directory / "scores",
                    progress=counter,
                )
            return {"counts": found.provenance.get("counts", {})}

        folder = context.directory / "labels" / "pairs"
        part(
            folder,
            _inputs(self, context, run, weights=model.digest, seed=workspace.seed),
            make,
            what="pair labels",
        )
        return PairLabels.read(folder, collection=workspace.collection)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairScores:
    """Pairs whose probability is the sigmoid of the pointwise teacher's difference."""

    top_k: Size = 100
    delta: Size = 10
    pairs: Size = 50

    def __call__(self, context: Context, labels: TeacherLabels) -> PairLabels:
        from distill_jax.teaching.pairs import pairs_of_scores

        found = pairs_of_scores(
            labels,
            top_k=self.top_k,
            delta=self.delta,
            pairs=self.pairs,
            seed=context.workspace.seed,
        )

        def make(folder: Path) -> None:
            found.write(folder)

        folder = context.directory / "labels" / "pairs"
        inputs = _inputs(self, context, labels.to_run(), seed=context.workspace.seed)
        part(folder, inputs, make, what="pair labels")
        return PairLabels.read(folder, collection=context.workspace.collection)
