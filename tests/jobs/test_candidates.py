"""Filters of candidates."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np

from distill_jax.ir.collection import Collection, Queries
from distill_jax.ir.qrels import Qrels
from distill_jax.ir.run import Run
from distill_jax.jobs.candidates import Asked, WithoutKnown


def test_a_query_s_own_documents_are_left_out_and_the_others_keep_their_order():
    docs = Collection(["a", "b", "c"], ["one", "two", "three"])
    run = Run.from_lists(
        ["q1", "q2"], [[("a", 3.0), ("b", 2.0), ("c", 1.0)], [("b", 2.0), ("a", 1.0)]]
    )
    asked = Asked(
        setting=SimpleNamespace(collection=docs),  # type: ignore[arg-type]
        queries=Queries(["q1", "q2"], ["x", "y"]),
        student=None,  # type: ignore[arg-type]
        model=None,
        directory=None,  # type: ignore[arg-type]
        qrels=Qrels({"q1": {"b": 1, "c": 0}}),
    )
    found = WithoutKnown()(asked, run)
    assert found.lists() == {
        "q1": [("a", 3.0), ("c", 1.0)],
        "q2": [("b", 2.0), ("a", 1.0)],
    }
    nothing_known = dataclasses.replace(asked, qrels=None)
    np.testing.assert_array_equal(WithoutKnown()(nothing_known, run).rows, run.rows)
