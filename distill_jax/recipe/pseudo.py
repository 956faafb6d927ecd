"""Queries for collections that have none of their own."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.recipe.candidates import Context
from distill_jax.synthesis.sentences import words
from distill_jax.workspace.console import say
from distill_jax.workspace.context import Split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Titles:
    """A maker of ``queries.Synthetic``: a document's title asks for its text.

    Attributes:
        queries: how many documents' titles are taken; None takes all.
        min_words: shorter titles are not taken.
    """

    queries: int | None = None
    min_words: int = 3

    def make(self, context: Context, rows: np.ndarray, folder: Path) -> Any:
        from distill_jax.synthesis.crop import sampled
        from distill_jax.synthesis.synthetic import SyntheticQueries

        del folder
        collection, seed = context.workspace.collection, context.workspace.seed
        if self.queries is not None:
            rows = sampled(collection, rows, self.queries, seed)
        titles = [(int(row), collection.title(int(row)).strip()) for row in rows]
        long = [(row, text) for row, text in titles if words(text) >= self.min_words]
        dropped = collections.Counter({"title: too short": len(titles) - len(long)})
        return SyntheticQueries.of(
            [(row, "title", 0, text) for row, text in long], collection.ids, dropped
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnElseMade:
    """The collection's training queries, or generated ones where it has none.

    One command then serves both kinds of collections.
    """

    own: Any
    made: Any

    def __call__(self, context: Context) -> Split:
        if context.workspace.train is not None:
            return self.own(context)
        say("the collection has no training queries: they are generated from documents")
        return self.made(context)
