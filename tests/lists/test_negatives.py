"""Filters and samples of hard negatives, by hand-made lists."""

from __future__ import annotations

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.errors import UserError
from distill_jax.labels.labels import TeacherLabels
from distill_jax.lists.negatives import REASONS, filter_negatives, places
from distill_jax.runs.run import Run

DOCS = Collection(
    ["a", "b", "c", "d", "e", "q1"],
    ["Red fox.", "red  FOX", "blue bird", "Blue bird!", "green frog 1", "green frog 2"],
)
QUERIES = Queries(["q1", "q2"], ["what is red", "blue, bird"])


def run_of(lists):
    return Run.from_lists(list(lists), list(lists.values()), DOCS.ids)


def kept(filtered):
    return {q: [doc for doc, _ in docs] for q, docs in filtered.run.lists().items()}


RUN = run_of(
    {
        "q1": [("a", 5.0), ("b", 4.0), ("c", 3.0), ("d", 2.0), ("e", 1.0), ("q1", 0.5)],
        "q2": [("e", 9.0), ("q1", 8.0), ("c", 1.0)],
    }
)


def test_known_positives_and_own_documents_go():
    filtered = filter_negatives(RUN, qrels=Qrels({"q1": {"a": 1, "c": 0}}))
    assert kept(filtered) == {"q1": ["b", "c", "d", "e"], "q2": ["e", "q1", "c"]}
    assert filtered.funnel["candidates"] == 9
    assert filtered.funnel["after known positive"] == 8
    assert filtered.funnel["after own document"] == 7
    assert filtered.funnel["queries with a negative"] == 2


def test_a_positive_of_one_query_stays_with_the_others():
    run = run_of({"q1": [("c", 1.0)], "q2": [("b", 2.0), ("a", 1.0)]})
    # The collection's last document is judged, for the first query only.
    filtered = filter_negatives(run, qrels=Qrels({"q1": {"q1": 1}}))
    assert kept(filtered) == {"q1": ["c"], "q2": ["b", "a"]}


def test_copies_of_positives_queries_and_better_candidates_go():
    filtered = filter_negatives(
        RUN, qrels=Qrels({"q1": {"a": 1}}), collection=DOCS, queries=QUERIES
    )
    # b is a's text; d is c's; "1" and "2" differ; c is q2's own text.
    assert kept(filtered) == {"q1": ["c", "e"], "q2": ["e", "q1"]}


@pytest.mark.parametrize("shift", [0.0, -100.0, -3.0])
def test_margins_mean_the_same_wherever_scores_lie(shift):
    moved = Run(RUN.query_ids, RUN.rows, RUN.scores + np.float32(shift), RUN.doc_ids)
    judged = Qrels({"q1": {"a": 1}})
    filtered = filter_negatives(moved, qrels=judged, absolute_margin=2.0)
    assert kept(filtered)["q1"] == ["c", "d", "e"]
    assert kept(filtered)["q2"] == ["e", "q1", "c"]  # no positive to compare with
    assert filtered.without_positive == 1


def test_relative_margin_of_negative_scores():
    lists = {"q1": [("a", -10.0), ("b", -10.4), ("c", -11.0), ("d", -20.0)]}
    filtered = filter_negatives(
        run_of(lists), qrels=Qrels({"q1": {"a": 1}}), relative_margin=0.05
    )
    # Below -10 - 0.5, not below -10 * 0.95 = -9.5, which would keep everything.
    assert kept(filtered)["q1"] == ["c", "d"]


def test_the_teacher_suspects():
    rows = np.array([[0, 1, 2, 3]], np.int32)
    scores = np.array([[2.0, 1.9, 3.0, -5.0]], np.float32)
    labels = TeacherLabels(("q1",), rows, scores, DOCS.ids)
    judged = Qrels({"q1": {"a": 1}})
    filtered = filter_negatives(RUN, qrels=judged, teacher=labels)
    assert kept(filtered)["q1"] == ["b", "d", "e"]
    filtered = filter_negatives(RUN, qrels=judged, teacher=labels, teacher_margin=0.5)
    assert kept(filtered)["q1"] == ["d", "e"]
    worst = filtered.suspects(1, QUERIES, DOCS)
    assert worst[0]["doc_id"] == "c"
    assert worst[0]["doc"] == "blue bird"
    assert worst[0]["above_positive"] == pytest.approx(1.0)
    assert worst[0]["reason"] == REASONS[-1]


SAMPLINGS = ["top", "random", "log_random", "stratified"]


def drawn(many, count, sampling, times=1):
    random = np.random.default_rng(1)
    return np.stack([places(many, count, sampling, random) for _ in range(times)])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_candidates_are_drawn_without_replacement(sampling):
    found = drawn(100, 7, sampling, times=200)
    assert found.shape == (200, 7)
    assert found.min() >= 0
    assert found.max() < 100
    assert all(len(set(row)) == 7 for row in found.tolist())
    if sampling == "top":
        assert found[0].tolist() == [*range(7)]
    else:
        assert len({tuple(sorted(row)) for row in found.tolist()}) > 190


def test_chances_fall_with_the_rank_and_strata_cover_the_window():
    near = drawn(128, 1, "log_random", times=4000)[:, 0]
    chances = 1 / np.arange(1, 129)
    for rank in (0, 1, 3):
        wanted = chances[rank] / chances.sum()
        assert (near == rank).mean() == pytest.approx(wanted, abs=0.02)
    any_rank = drawn(128, 1, "random", times=4000)[:, 0]
    assert any_rank.mean() == pytest.approx(63.5, abs=3)
    spread = drawn(128, 4, "stratified", times=400)
    for part in range(4):
        assert (spread[:, part] // 32 == part).all()


def test_windows_that_are_hardly_wider_than_the_draw():
    for sampling in SAMPLINGS:
        assert sorted(drawn(5, 5, sampling)[0].tolist()) == [*range(5)]
    assert all(len(set(row)) == 5 for row in drawn(6, 5, "stratified", 50).tolist())
    with pytest.raises(UserError, match="did you mean"):
        drawn(5, 2, "randm")
