"""Where a query's candidates come from: one object a source, called for a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from distill_jax.collections.collection import Queries
from distill_jax.evaluation.diagnostics import intersection_rates
from distill_jax.io.draws import share
from distill_jax.io.errors import UserError
from distill_jax.io.reading import write_record
from distill_jax.io.values import Count, NotNegative, Share, Size, UserPath
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe.checkpoints import Model
from distill_jax.runs.run import Run
from distill_jax.workspace import indexes, ranking
from distill_jax.workspace.context import Workspace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """The context that every source is called with: queries, student, output folder.

    Attributes:
        qrels: judgements of the queries, if there are any.
        round_number: of the job, from 1.
        student: the current student, for sources that search with it; None where there
            is none yet.
        model: from a checkpoint's name to a model (``stage:NAME`` included).
    """

    workspace: Workspace
    queries: Queries
    student: Pretrained | None
    model: Any
    directory: Path
    qrels: Any = None
    round_number: int = 1


class Source(Protocol):
    """Where candidates come from."""

    def __call__(self, context: Context, /) -> Run:
        """The candidates of each query, best first."""
        ...


class Filter(Protocol):
    """What leaves candidates out."""

    def __call__(self, context: Context, run: Run, /) -> Run:
        """The run without what it leaves out."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class BM25:
    """Lucene's BM25 over titles and texts."""

    depth: Size = 100
    k1: NotNegative = 0.9
    b: Share = 0.4

    def __call__(self, context: Context) -> Run:
        index = indexes.bm25(context.workspace, self.k1, self.b)
        return index.search(context.queries, self.depth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """Search with a model: the current student, or a checkpoint.

    Attributes:
        checkpoint: a path or a ``checkpoints.Checkpoint``; None is the student as it is
            at this moment (re-mining).
        index: "exact" or "scann".
        doc_length: of a checkpoint's texts, as far as they are read; None reads as far
            as it says itself.
    """

    depth: Size = 100
    checkpoint: Model | None = None
    index: ranking.Index = "exact"
    doc_length: Size | None = None

    def __call__(self, context: Context) -> Run:
        model = model_of(self, context, doc_length=self.doc_length)
        if model.spec.vectors is None:
            raise UserError(
                f"a {model.spec.kind} cannot search a collection",
                "use BM25 candidates, or give a retriever's checkpoint",
            )
        return ranking.search(
            model,
            context.queries,
            context.workspace,
            depth=self.depth,
            directory=context.workspace.directory / "vectors",
            index=self.index,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reranked:
    """The first ``depth`` of another source, reordered by a model."""

    source: Source
    checkpoint: Model | None = None
    depth: Size = 100

    def __call__(self, context: Context) -> Run:
        model = model_of(self, context)
        candidates = self.source(context).top(self.depth)
        return ranking.rerank(model, context.queries, candidates, context.workspace)


def model_of(source: Any, context: Context, **overrides: Any) -> Pretrained:
    """The source's checkpoint, or the student where it names none."""
    if source.checkpoint:
        return context.model(source.checkpoint, **overrides)
    if context.student is None:
        name = f"candidates.{type(source).__name__}"
        raise UserError(
            f"{name} takes the student, and this job has none at this point",
            f"name a model: {name}.checkpoint = 'PATH'",
        )
    return context.student


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFile:
    """A TREC run from a file."""

    path: UserPath | None
    depth: Size | None = None

    def __call__(self, context: Context) -> Run:
        if self.path is None:
            raise UserError("candidates.RunFile has no path", "set --gin.RUN=FILE")
        run = Run.read(self.path, collection=context.workspace.collection)
        run = run.select(context.queries.ids)
        return run if self.depth is None else run.top(self.depth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    """What the user names: a run, else a retriever's search, else BM25."""

    run: UserPath | None = None
    checkpoint: Model | None = None
    depth: Size = 100
    index: ranking.Index = "exact"

    def __call__(self, context: Context) -> Run:
        return self.source(context)

    @property
    def source(self) -> Any:
        """The source of this round."""
        if self.run is not None:
            return RunFile(path=self.run, depth=self.depth)
        if not self.checkpoint:
            return BM25(depth=self.depth)
        return Search(depth=self.depth, checkpoint=self.checkpoint, index=self.index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fused:
    """Several sources as one: reciprocal rank fusion, or a sum of normalised scores.

    Attributes:
        normalise: None is reciprocal rank fusion (k = 60); "zscore" or "minmax" sums
            the normalised scores of each query.
    """

    sources: tuple[Source, ...]
    depth: Size = 100
    weights: tuple[NotNegative, ...] | None = None
    normalise: Literal["zscore", "minmax"] | None = None

    def __call__(self, context: Context) -> Run:
        runs = [source(context) for source in self.sources]
        if self.normalise is None:
            return Run.fuse(runs, weights=self.weights, depth=self.depth)
        weights = self.weights or (1.0,) * len(runs)
        return Run.combine(runs, weights, normalise=self.normalise).top(self.depth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """Each query asks one of the sources, chosen by the hash of its id (TWOLAR).

    Attributes:
        used: numbers of the sources (from 0) whose queries are taken; None takes all.
            What is left out changes nothing for the queries of the others.
        compared: number of queries that use all sources, for the table of how the first
            documents have in common (``sources.json``).
    """

    sources: tuple[Source, ...]
    used: tuple[Count, ...] | None = None
    compared: Count = 0

    def __call__(self, context: Context) -> Run:
        parts = np.asarray(
            [
                int(share(query, "source") * len(self.sources))
                for query in context.queries.ids
            ]
        )
        lists: dict[str, list[tuple[str, float]]] = {}
        if self.compared:
            self._compare(context)
        for number, source in enumerate(self.sources):
            rows = np.flatnonzero(parts == number)
            if len(rows) and (self.used is None or number in self.used):
                some = dataclasses.replace(
                    context, queries=context.queries.select(rows)
                )
                lists |= source(some).lists()
        ids = [query for query in context.queries.ids if query in lists]
        if not ids:
            raise UserError(
                f"no query uses one of the sources {self.used}",
                f"their numbers are 0 to {len(self.sources) - 1}",
            )
        return Run.from_lists(
            ids, [lists[query] for query in ids], context.workspace.collection.ids
        )

    def _compare(self, context: Context) -> None:
        rows = np.arange(min(self.compared, len(context.queries)))
        some = dataclasses.replace(context, queries=context.queries.select(rows))
        runs = {}
        for number, source in enumerate(self.sources):
            checkpoint = getattr(source, "checkpoint", None)
            name = type(source).__name__ + (f" {checkpoint}" if checkpoint else "")
            runs[f"{number} {name}"] = source(some)
        context.directory.mkdir(parents=True, exist_ok=True)
        write_record(context.directory / "sources.json", intersection_rates(runs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InRounds:
    """Another source in each round; the last one in all further rounds.

    A student that is still a plain language model cannot find documents to learn from:
    its first round learns from another's candidates, later ones from its own.
    """

    sources: tuple[Source, ...]

    def __call__(self, context: Context) -> Run:
        return self.sources[min(context.round_number, len(self.sources)) - 1](context)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithJudged:
    """A filter of a stage: adds the best judged document where it was not found.

    It comes last, below the last candidate's score, and is labelled like the others.
    """

    def __call__(self, context: Context, run: Run) -> Run:
        if context.qrels is None or not len(context.qrels):
            return run
        lists = run.lists()
        for query, docs in lists.items():
            grades = context.qrels.of(query)
            best = max(grades, key=lambda doc: grades[doc], default=None)
            if best is None or grades[best] <= 0:
                continue
            if any(grades.get(doc, 0) > 0 for doc, _ in docs):
                continue
            lowest = min((score for _, score in docs), default=0.0)
            docs.append((best, lowest - 1.0))
        ids = list(run.query_ids)
        return Run.from_lists(
            ids, [lists[query] for query in ids], context.workspace.collection.ids
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithoutKnown:
    """A stage filter that removes the known documents of each query.

    A cropped sentence is a verbatim span of its document. Any retriever finds
    that, and a list that holds it teaches to match strings; the order of the other
    documents is what there is to learn.

    Attributes:
        judged: whether documents that are judged for the collection's own training
            queries are removed as well.
    """

    judged: bool = True

    def __call__(self, context: Context, run: Run) -> Run:
        if context.qrels is None:
            return run
        if not self.judged and context.workspace.train is not None:
            return run
        run = run.on(context.workspace.collection)
        ids = context.workspace.collection.ids
        known = np.zeros(run.rows.shape, bool)
        for place, query in enumerate(run.query_ids):
            grades = context.qrels.of(query)
            known[place] = [
                row >= 0 and grades.get(ids[row], 0) > 0 for row in run.rows[place]
            ]
        rows = np.where(known, -1, run.rows)
        scores = np.where(known, -np.inf, run.scores)
        return Run(run.query_ids, rows, scores, run.doc_ids)
