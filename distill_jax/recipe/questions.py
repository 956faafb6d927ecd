"""Questions with answers as training queries, and teachers that need no model.

Intermediate Distillation (Li et al., 2024) trains on questions whose answer is among
the first K documents but not at the top, and compares an LLM's order with three simple
ones: ROUGE-2, BM25 over the K documents, and documents with an answer first.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from distill_jax.evaluation import answers
from distill_jax.io.errors import UserError, near
from distill_jax.labels.labels import TeacherLabels
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.queries import Training
from distill_jax.runs.run import Run
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.console import say
from distill_jax.workspace.context import Split
from distill_jax.workspace.dependencies import dependencies
from distill_jax.workspace.describe import describe

WHERE = ("following", "first", "none", "any")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """Training questions selected by the rank of the first document with an answer.

    Attributes:
        candidates: the source whose first ``depth`` documents are looked at.
        where: "following": among them but not first; "first"; "none": not among them;
            "any": all questions.
        depth: documents that are looked at (K).
        limit: maximum number of questions, by the hash of their ids.
    """

    candidates: Any
    where: str = "following"
    depth: int = 5
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.where not in WHERE:
            raise UserError(
                f"no kind of questions {self.where!r}{near(self.where, WHERE)}",
                f"one of {', '.join(WHERE)}",
            )

    def __call__(self, context: Context) -> Split:
        every = Training()(context)
        if self.where == "any":
            return _limited(every, self.limit, context)
        if not any(every.queries.answers or ()):
            raise UserError(
                "no training question has answers",
                "give questions with answers (--gin.TRAIN_QUERIES=jsonl:PATH or "
                "tfds:NAME), or set --gin.ANSWERS=any",
            )
        expected = answers.accepted(every.queries)
        context = dataclasses.replace(context, queries=every.queries, qrels=every.qrels)
        folder = context.directory / "questions"
        inputs = {
            "questions": every.queries.digest,
            "answers": expected,
            "collection": context.workspace.collection.digest,
            "source": describe(self),
            **dependencies(self.candidates, context),
        }
        part(
            folder,
            inputs,
            lambda folder: self.candidates(context).write(folder / "run.trec"),
            what="questions",
        )
        run = Run.read(folder / "run.trec", collection=context.workspace.collection)
        ranks = first_answers(
            run, every.queries, context.workspace.collection, self.depth
        )
        wanted: Callable[[int | None], bool] = {
            "following": lambda rank: rank is not None and rank > 1,
            "first": lambda rank: rank == 1,
            "none": lambda rank: rank is None,
        }[self.where]
        kept = np.asarray([q in ranks and wanted(ranks[q]) for q in every.queries.ids])
        say(
            f"{int(kept.sum()):,} of {len(expected):,} questions with answers are of "
            f"the kind {self.where!r}"
        )
        if not kept.any():
            raise UserError(
                f"no question is {self.where!r} in its first {self.depth}",
                f"--gin.ANSWERS is one of {', '.join(WHERE)}",
            )
        return _limited(every.take(kept), self.limit, context)


def first_answers(
    run: Run, queries: Any, collection: Any, depth: int
) -> dict[str, int | None]:
    """Rank (from 1) of the first document with an answer; None where there is none."""
    expected = answers.accepted(queries)
    found: dict[str, int | None] = {}
    run = run.on(collection)
    for query, rows in zip(run.query_ids, run.rows):
        if query not in expected:
            continue
        ranks = (
            rank
            for rank, row in enumerate(rows[:depth].tolist(), 1)
            if row >= 0
            and answers.has_answer(collection.full_text(row), expected[query])
        )
        found[query] = next(ranks, None)
    return found


def _limited(split: Split, limit: int | None, context: Context) -> Split:
    workspace = dataclasses.replace(context.workspace, train=split)
    return Training(limit=limit)(dataclasses.replace(context, workspace=workspace))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plain(abc.ABC):
    """A teacher that reads texts and loads nothing."""

    def __call__(self, context: Context, run: Run) -> TeacherLabels:
        collection = context.workspace.collection
        run = run.on(collection)
        lists = []
        for query, rows in zip(run.query_ids, run.rows):
            kept = [int(row) for row in rows if row >= 0]
            texts = [collection.full_text(row) for row in kept]
            scores = self.scores(context, query, texts)
            ids = [collection.ids[row] for row in kept]
            lists.append(list(zip(ids, map(float, scores))))
        labels = TeacherLabels.from_lists(
            list(run.query_ids),
            lists,
            kind="score",
            provenance={"teacher": describe(self), "candidates": run.digest},
            collection=collection,
        )
        folder = context.directory / "labels"
        inputs = {
            "teacher": describe(self),
            "candidates": run.digest,
            "collection": collection.digest,
            "queries": context.queries.digest,
        }

        def make(folder: Any) -> None:
            labels.write(folder)

        part(folder, inputs, make, what="labels")
        return TeacherLabels.read(folder, collection=collection)

    @abc.abstractmethod
    def scores(self, context: Context, query: str, texts: list[str]) -> np.ndarray:
        """A score of each text for a question, higher for better: float[n]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rouge2(_Plain):
    """ROUGE-2 F1 of the document against the question, or against its answers.

    Attributes:
        against: "question" or "answers" (the best of them).
    """

    against: str = "question"

    def scores(self, context: Context, query: str, texts: list[str]) -> np.ndarray:
        row = context.queries.row(query)
        wanted = [context.queries.text(row)]
        if self.against == "answers":
            wanted = list((context.queries.answers or [[]])[row]) or wanted
        return np.asarray([max(rouge_2(w, text) for w in wanted) for text in texts])


@dataclasses.dataclass(frozen=True, kw_only=True)
class BM25Scores(_Plain):
    """BM25 of the question over the documents of its own list."""

    k1: float = 0.9
    b: float = 0.4

    def scores(self, context: Context, query: str, texts: list[str]) -> np.ndarray:
        from distill_jax.collections.collection import Collection, Queries
        from distill_jax.retrieval import BM25

        ids = [str(place) for place in range(len(texts))]
        index = BM25.build(Collection(ids, texts), k1=self.k1, b=self.b)
        text = context.queries.text(context.queries.row(query))
        run = index.search(Queries([query], [text]), len(texts))
        scores = np.zeros(len(texts))
        for place, score in zip(run.rows[0], run.scores[0]):
            if place >= 0:
                scores[place] = score
        return scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswersFirst(_Plain):
    """Documents with an answer first, then the others; each part as it was found."""

    def scores(self, context: Context, query: str, texts: list[str]) -> np.ndarray:
        expected = answers.accepted(context.queries).get(query, [])
        has = np.asarray([answers.has_answer(text, expected) for text in texts], bool)
        return has * len(texts) - np.arange(len(texts), dtype=np.float64)


def rouge_2(reference: str, text: str) -> float:
    """F1 of the bigrams that two texts share (Lin, 2004), of lower-cased words."""
    first, second = _bigrams(reference), _bigrams(text)
    common = sum((first & second).values())
    total = first.total() + second.total()
    return 2 * common / total if total else 0.0


def _bigrams(text: str) -> collections.Counter:
    words = answers.tokens(text)
    return collections.Counter(itertools.pairwise(words))
