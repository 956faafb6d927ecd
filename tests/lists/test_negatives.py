"""Filters and samples of hard negatives, by hand-made lists."""

from __future__ import annotations

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.errors import UserError
from distill_jax.labels.labels import TeacherLabels
from distill_jax.lists.negatives import REASONS, filter_negatives, sample_negatives
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


def many(count=200, queries=3):
    docs = [f"d{i}" for i in range(count)]
    rows = np.stack([np.arange(count)] * queries)
    scores = np.stack([np.arange(count, 0, -1.0)] * queries)
    return Run(tuple(f"q{i}" for i in range(queries)), rows, scores, docs)


@pytest.mark.parametrize("sampling", ["top", "random", "log_random", "stratified"])
def test_samples_lie_in_the_window_and_belong_to_the_query(sampling):
    run = many()
    sample = sample_negatives(run, 7, window=(10, 110), sampling=sampling, seed=1)
    assert sample.rows.shape == (3, 7)
    assert sample.rows.min() >= 10
    assert sample.rows.max() < 110
    assert (np.diff(sample.rows, axis=1) > 0).all()
    turned = Run(run.query_ids[::-1], run.rows, run.scores, run.doc_ids)
    again = sample_negatives(turned, 7, window=(10, 110), sampling=sampling, seed=1)
    np.testing.assert_array_equal(sample.rows, again.rows[::-1])
    if sampling != "top":
        other = sample_negatives(run, 7, window=(10, 110), sampling=sampling, seed=2)
        assert (sample.rows != other.rows).any()


def test_log_random_prefers_early_ranks_and_strata_cover_the_window():
    run = many(queries=400)
    near = sample_negatives(run, 1, window=(0, 128), sampling="log_random").rows
    # Half of log2(128) doublings lie below rank 2^3.5.
    assert 0.3 < (near < 11).mean() < 0.75
    spread = sample_negatives(run, 4, window=(0, 128), sampling="stratified").rows
    for part in range(4):
        assert (spread[:, part] // 32 == part).all()


def test_short_lists_give_all_they_have():
    run = run_of({"q1": [("a", 2.0), ("b", 1.0)]})
    for sampling in ("top", "random", "log_random", "stratified"):
        assert sample_negatives(run, 5, sampling=sampling).rows[0, :2].tolist() == [
            0,
            1,
        ]
    dense = sample_negatives(many(6), 5, sampling="stratified")
    assert (dense.where.sum(1) == 5).all()
    with pytest.raises(UserError, match="did you mean"):
        sample_negatives(run, 5, sampling="randm")
    with pytest.raises(UserError, match="window"):
        sample_negatives(run, 5, window=(5, 5))
