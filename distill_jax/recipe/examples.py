"""What a stage learns from: judgements, a teacher's labels, or both, as lists."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.reading import write_record
from distill_jax.io.values import Count, Range, Size
from distill_jax.labels import normalise
from distill_jax.lists.building import (
    lists_from_judgements,
    lists_from_labels,
    with_judged_pairs,
)
from distill_jax.lists.lists import Lists, concatenate
from distill_jax.lists.negatives import filter_negatives
from distill_jax.recipe.candidates import Context, WithJudged
from distill_jax.recipe.teachers import PairTeacher, Teacher
from distill_jax.runs.run import Run
from distill_jax.workspace.console import say

Normalisation: TypeAlias = Literal["none", "minmax", "zscore", "percentile", "ranks"]
ListSize: TypeAlias = Annotated[int, Range(least=2)]
Percent: TypeAlias = Annotated[float, Range(least=0, below=100)]


class Examples(Protocol):
    """What a stage learns from."""

    def __call__(self, context: Context, run: Run, /) -> Lists:
        """Lists of documents with their judgements or labels."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromQrels:
    """Judged positives against hard negatives from a window of ranks.

    Attributes:
        size: candidates of a list, the positive included (N).
        window: ranks that negatives are drawn from, after filtering.
        per_query: maximum number of positives of a query.
        draws: lists of each positive, each with new random negatives; as many passes
            over the queries are one over the lists.
        sampling: how negatives are drawn from the window: "random", "log_random",
            "stratified" or "top", see ``negatives.places``.
        teacher: with one, a candidate that it scores higher than the best known
            positive less ``teacher_margin``, or above ``teacher_threshold``, is left
            out as a false negative; None asks none.
        absolute_margin, relative_margin: drop candidates that score too near to the
            positive; None keeps them. Known positives and equal texts are dropped.
    """

    size: ListSize = 8
    window: tuple[Count, Count] = (0, 100)
    per_query: Size | None = 4
    draws: Size = 1
    sampling: Literal["random", "log_random", "stratified", "top"] = "random"
    teacher: Teacher | None = None
    teacher_margin: float = 0.0
    teacher_threshold: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None

    def __call__(self, context: Context, run: Run) -> Lists:
        workspace = context.workspace
        if context.qrels is None or not len(context.qrels):
            raise UserError(
                "these queries have no judgements",
                "use a recipe that learns from a teacher, e.g. specialize.gin",
            )
        labels = None
        if self.teacher is not None:
            run = WithJudged()(context, run)
            labels = self.teacher(context, run)
        filtered = filter_negatives(
            run,
            teacher=labels,
            teacher_margin=self.teacher_margin,
            teacher_threshold=self.teacher_threshold,
            qrels=context.qrels,
            collection=workspace.collection,
            queries=context.queries,
            absolute_margin=self.absolute_margin,
            relative_margin=self.relative_margin,
        )
        write_record(
            context.directory / "negatives.json",
            {
                "funnel": filtered.funnel,
                "suspects": filtered.suspects(
                    20, context.queries, workspace.collection
                ),
            },
        )
        return concatenate(
            [
                lists_from_judgements(
                    filtered.run,
                    context.qrels,
                    context.queries,
                    workspace.collection,
                    size=self.size,
                    window=self.window,
                    seed=workspace.seed + draw * 7919,
                    per_query=self.per_query,
                    sampling=self.sampling,
                )
                for draw in range(self.draws)
            ]
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedPairs:
    """Pairs of a positive and a negative, in either order, for a duo reranker.

    Attributes:
        judged: the lists that pairs are drawn from.
        pairs: of a list; each is turned round by a draw that belongs to the query.
    """

    judged: FromQrels
    pairs: Size = 3

    def __call__(self, context: Context, run: Run) -> Lists:
        lists = self.judged(context, run)
        ids = context.queries.ids
        names = [str(ids[row]) for row in lists.query_rows]
        return with_judged_pairs(lists, names, self.pairs, context.workspace.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromTeacher:
    """A teacher's labels over the candidates, and a pairwise teacher's on top.

    Attributes:
        teacher: called with (context, run) for ``TeacherLabels``.
        pairwise: called with (context, labels) for ``PairLabels``; None for none.
        size: candidates of a list (N).
        depth: only candidates within this many ranks of the first stage, whatever
            was labelled (Rank-DistiLLM's sub-samples); None keeps all.
        sampling: which of the labelled candidates, see ``lists.building``: "top",
            "random", "spread", "quantile", "stratified" or "log_random".
        judgements: whether a judged positive is put first and contrasted with.
        trust_first: the teacher's best serves as a positive where none is judged.
        normalisation: of the scores, see ``ir.normalise``; "none" keeps raw logits.
        source_first: drop queries whose known document is not the teacher's first.
        drop_below_percentile: drop queries whose best score is below this percentile
            of all scores (004 uses 25); None keeps all.
    """

    teacher: Teacher | None
    pairwise: PairTeacher | None = None
    size: ListSize = 8
    depth: Size | None = None
    sampling: Literal[
        "top", "random", "spread", "quantile", "stratified", "log_random"
    ] = "top"
    judgements: bool = True
    trust_first: bool = False
    normalisation: Normalisation = "none"
    source_first: bool = False
    drop_below_percentile: Percent | None = None

    def __call__(self, context: Context, run: Run) -> Lists:
        workspace = context.workspace
        if self.teacher is None:
            raise UserError("nothing labels the candidates", "set TEACHER or LABELS")
        labels = self.teacher(context, run)
        if self.depth is not None:
            labels = _shallow(labels, run.top(self.depth), workspace.collection)
        if self.source_first:
            labels = _source_first(labels, context)
        pairs = None if self.pairwise is None else self.pairwise(context, labels)
        qrels = context.qrels if self.judgements else None
        lists = lists_from_labels(
            labels,
            context.queries,
            workspace.collection,
            size=self.size,
            pairs=pairs,
            qrels=qrels,
            sampling=self.sampling,
            seed=workspace.seed,
            trust_first=self.trust_first,
            values=normalise.normalise(labels, self.normalisation),
        )
        if self.drop_below_percentile is not None:
            lists = self._confident(labels, lists, context)
        return lists

    def _confident(self, labels: Any, lists: Lists, context: Context) -> Lists:
        """Without the queries whose best document the teacher does not believe in."""
        scores = labels.training_labels()
        kept = normalise.above_percentile(
            scores,
            labels.where,
            positive=np.argmax(np.where(labels.where, scores, -np.inf), axis=1),
            percent=self.drop_below_percentile or 0.0,
        )
        names = {query for query, keep in zip(labels.query_ids, kept) if keep}
        ids = context.queries.ids
        confident = [ids[row] in names for row in lists.query_rows]
        say(f"{len(names)} of {len(labels)} queries have a confident best document")
        return lists.take(np.flatnonzero(confident))


def _shallow(labels: Any, run: Run, collection: Any) -> Any:
    """The labels of the documents of a run; their order is the teacher's."""
    labels = labels.on(collection)
    kept = np.zeros(labels.rows.shape, bool)
    of = {query: row for row, query in enumerate(run.query_ids)}
    run = run.on(collection)
    for row, query in enumerate(labels.query_ids):
        if query in of:
            kept[row] = np.isin(labels.rows[row], run.rows[of[query]])
    return labels.keep(kept & labels.where)


def _source_first(labels: Any, context: Context) -> Any:
    """Drops the queries whose known document the teacher does not rank first."""
    scores = np.where(labels.where, labels.training_labels(), -np.inf)
    best = np.argmax(scores, axis=1)
    kept = [
        query
        for row, query in enumerate(labels.query_ids)
        if context.qrels is not None
        and context.qrels.of(query).get(labels.doc_ids[labels.rows[row, best[row]]], 0)
        > 0
    ]
    say(f"{len(kept)} of {len(labels)} queries: the teacher puts their document first")
    if not kept:
        raise UserError(
            "the teacher puts no query's own document first",
            "look at the teacher report, or set source_first to False",
        )
    return labels.select(kept)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed:
    """The lists of several sources together, e.g. labelled and unlabelled queries."""

    sources: tuple[Examples, ...]

    def __call__(self, context: Context, run: Run) -> Lists:
        return concatenate([source(context, run) for source in self.sources])
