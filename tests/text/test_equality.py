"""One rule says which texts are the same; every consumer follows it."""

from __future__ import annotations

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.lists.negatives import filter_negatives
from distill_jax.runs.run import Run
from distill_jax.synthesis.filter import Funnel
from distill_jax.synthesis.synthetic import SyntheticQueries
from distill_jax.text.equality import text_key
from distill_jax.workspace.context import Split, without_leaks

SAME = [
    ("How to prevent Shingles ?", "how to prevent shingles"),
    ("  Ｗhat's  up, Doc? ", "what s up doc"),
    ("STRASSE!", "straße"),
    ("?", " ? "),
    ("1 + 1 = 2", "1 1 2"),
]
DIFFERENT = [("version 1", "version 2"), ("?", "!"), ("résumé", "resume"), ("a", "")]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_texts_that_are_the_same_are_so_for_every_consumer(one, other):
    assert text_key(one) == text_key(other)
    assert leaks(one, other)
    assert repeats(one, other)
    assert copies(one, other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_texts_that_differ_do_so_for_every_consumer(one, other):
    assert text_key(one) != text_key(other)
    assert not leaks(one, other)
    assert not repeats(one, other)
    assert not copies(one, other)


def leaks(one: str, other: str) -> bool:
    """Whether a training query is left out for a test query's text."""
    train = Split(queries=Queries(["t", "u"], [one, "apart"]), qrels=Qrels({}))
    test = Split(queries=Queries(["s"], [other]), qrels=Qrels({}))
    left, _ = without_leaks(train, {"test": test})
    assert left is not None
    return "t" not in left.queries.ids


def repeats(one: str, other: str) -> bool:
    """Whether a made query is left out as a duplicate of another."""
    made = SyntheticQueries(
        ids=["a|crop|0", "b|crop|0"],
        texts=[one, other],
        sources=np.array([0, 1]),
        kinds=["crop", "crop"],
        doc_ids=["a", "b"],
    )
    return len(Funnel(made).without_duplicates().made.ids) == 1


def copies(one: str, other: str) -> bool:
    """Whether a candidate is no negative because a positive has its text."""
    docs = Collection(["p", "c", "z"], [one, other, "some other document"])
    run = Run.from_lists(["q"], [[("c", 2.0), ("z", 1.0)]], docs.ids)
    filtered = filter_negatives(
        run,
        qrels=Qrels({"q": {"p": 1}}),
        collection=docs,
        queries=Queries(["q"], ["a query"]),
    )
    return "c" not in {doc for doc, _ in filtered.run.lists()["q"]}
