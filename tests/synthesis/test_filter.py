"""Filters: who is kept, and that the funnel accounts for every query."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distill_jax.collections.collection import Queries
from distill_jax.io.errors import UserError
from distill_jax.runs.run import Run
from distill_jax.synthesis.filter import Funnel, source_ranks
from distill_jax.synthesis.synthetic import SyntheticQueries
from distill_jax.text.equality import text_key

DOCS = ["a", "b", "c", "d"]


def made_of(*records, dropped=None):
    return SyntheticQueries.of(records, DOCS, dropped)


@pytest.fixture
def made():
    return made_of(
        (0, "crop", 0, "What is A?"),
        (1, "crop", 0, "what is a"),
        (1, "t5", 0, "something on b"),
        (2, "t5", 0, "a query for C 1"),
        (2, "t5", 1, "a query for C 2"),
        dropped={"t5: query empty": 4},
    )


def run_of(made, lists, doc_ids=None):
    return Run.from_lists(
        made.ids,
        [[(d, -float(r)) for r, d in enumerate(docs)] for docs in lists],
        doc_ids=doc_ids,
    )


def test_duplicates_and_held_out_queries(made):
    funnel = Funnel(made).without_duplicates()
    assert list(funnel.made.texts) == [made.texts[i] for i in (0, 2, 3, 4)]
    funnel.without(Queries(["q"], ["Something, on B!"]), "test")
    assert funnel.steps == [
        ("made", 4, 5),
        ("asked before", 1, 4),
        ("among held-out queries (test)", 1, 3),
    ]
    assert text_key("  Ｗhat's  up, Doc? ") == "what s up doc"
    assert text_key("C 1") != text_key("C 2")


@pytest.mark.parametrize("doc_ids", [DOCS, ["d", "c", "b", "a", "other"]])
def test_round_trip(made, doc_ids):
    lists = [["b", "a"], ["a", "b"], ["b"], ["d", "a", "c"], ["d"]]
    run = run_of(made, lists, doc_ids)
    assert source_ranks(made, run).tolist() == [2, 2, 1, 3, 0]
    funnel = Funnel(made).round_trip(run, depth=2)
    assert funnel.made.ids == made.ids[:3]


def test_a_run_of_other_queries_is_refused(made):
    run = run_of(made_of((0, "x", 0, "y")), [["a"]], DOCS)
    with pytest.raises(UserError, match="lacks 5 of 5"):
        Funnel(made).round_trip(run)


def test_the_funnel_accounts_for_every_query(made):
    funnel = Funnel(made).without_duplicates().keep("odd", [True, False, True, True])
    steps = funnel.to_json()
    assert steps[0]["reasons"] == {"t5: query empty": 4}
    for before, after in itertools.pairwise(steps):
        assert after["dropped"] + after["kept"] == before["kept"]
    table = funnel.table().splitlines()
    assert len(table) == 5
    assert table[-1].split() == ["odd", "1", "3"]
    assert table[2].split()[-1] == "4"


def test_parts_are_joined():
    part = made_of((0, "x", 0, "p"), dropped={"empty": 1})
    other = made_of((1, "y", 0, "q"), dropped={"empty": 2, "failed": 1})
    joined = SyntheticQueries.join([part, other])
    assert joined.ids == ["a|x|0", "b|y|0"]
    assert joined.dropped == {"empty": 3, "failed": 1}
    assert joined.sources.tolist() == [0, 1]


def test_nothing_is_left():
    funnel = Funnel(made_of()).without_duplicates()
    funnel.round_trip(Run((), np.zeros((0, 1)), np.zeros((0, 1)), DOCS))
    assert len(funnel.made) == 0
