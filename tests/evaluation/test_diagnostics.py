from __future__ import annotations

import math

import numpy as np
import pytest

from distill_jax.collections.qrels import Qrels
from distill_jax.evaluation.diagnostics import (
    disagreement,
    entropy,
    intersection_rates,
    score_report,
    suggested_temperature,
    teacher_report,
    tied_pairs,
)
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.runs.run import Run


def labels(lists, **more):
    return TeacherLabels.from_lists([f"q{i}" for i in range(len(lists))], lists, **more)


def test_entropy_is_of_the_valid_docs():
    scores = np.array([[0.0, 0.0, 9.0], [math.log(3), 0.0, np.nan]])
    where = np.array([[True, True, False], [True, True, False]])
    expected = [math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    np.testing.assert_allclose(entropy(scores, where), expected)
    # At temperature 2 the second list is softmax of log(3)/2, 0.
    p = math.sqrt(3) / (math.sqrt(3) + 1)
    expected = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert entropy(scores, where, 2.0)[1] == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 250.0])
def test_suggested_temperature_gives_half_the_entropy(scale):
    scores = scale * np.random.default_rng(0).normal(size=(50, 10))
    where = np.ones_like(scores, bool)
    found = suggested_temperature(scores, where)
    share = np.mean(entropy(scores, where, found) / math.log(10))
    assert share == pytest.approx(0.5, abs=1e-3)
    assert suggested_temperature(np.zeros((2, 3)), np.ones((2, 3), bool)) is None


def test_tied_pairs():
    scores = np.array([[1, 1, 1, 2, 2], [5, 5, 0, 0, 0.0]])
    where = np.array([[True] * 5, [True, True, False, False, False]])
    assert tied_pairs(scores, where) == (3 + 1 + 1, 10 + 1)


def test_score_report():
    made = labels(
        [[("a", 50.0), ("b", 0.0)], [("a", 1.0), ("b", 1.0)], [("a", 0)], [("a", 7)]],
        failed=[False, False, False, True],
    )
    report = score_report(made)
    assert report["lists"] == 4
    assert report["failed"] == 1
    assert report["docs"] == 5
    assert (report["lowest"], report["highest"]) == (0.0, 50.0)
    assert report["one_hot_lists"] == pytest.approx(2 / 3)
    assert report["all_tied_lists"] == pytest.approx(2 / 3)
    assert report["tied_pairs"] == 1 / 2
    assert sum(report["histogram"]["counts"]) == 5
    nothing = score_report(labels([[("a", 1)]], failed=[True]))
    assert nothing["docs"] == 0


def test_a_teacher_that_is_no_better_is_warned_of():
    qrels = Qrels({"q0": {"a": 1}, "q1": {"b": 1}})
    lists = [[("a", 1.0), ("b", 2.0)], [("a", 2.0), ("b", 1.0)]]
    better = [[("a", 2.0), ("b", 1.0)], [("a", 1.0), ("b", 2.0)]]
    first = Run.from_lists(("q0", "q1"), better)
    report = teacher_report(labels(lists), qrels=qrels, first_stage=first)
    assert report["nDCG@10"]["first_stage"] == 1.0
    assert report["nDCG@10"]["teacher"] == pytest.approx(1 / math.log2(3))
    assert "not better than the first stage" in report["warnings"][0]
    good = teacher_report(
        labels(better), qrels=qrels, student=Run.from_lists(("q0", "q1"), lists)
    )
    assert good["warnings"] == []


def test_lists_of_one_document_are_said_to_teach_nothing():
    report = teacher_report(labels([[("a", 1.0)], [("b", 2.0)]]))
    (warning,) = report["warnings"]
    assert "no list has two docs that differ" in warning


def test_disagreement_with_pairs_and_with_lists():
    one = labels([[("a", 3.0), ("b", 2.0), ("c", 1.0), ("d", 1.0)]])
    pairs = PairLabels(
        ("q0",),
        np.array([[0, 0, 1, 2, 0]]),
        np.array([[1, 2, 2, 3, 3]]),
        np.array([[0.9, 0.2, 0.5, 0.8, np.nan]]),
        ("a", "b", "c", "d"),
    )
    # a>b agrees, a>c does not, b-c is undecided, c-d is tied in the list, a-d failed.
    assert disagreement(one, pairs) == {"rate": 0.5, "pairs": 2, "ties": 2}
    other = labels([[("b", 1), ("a", 2), ("c", 3), ("d", 4)]], kind="rank")
    # Of six pairs a-b differs and c-d is tied.
    assert disagreement(one, other) == {"rate": 1 / 5, "pairs": 5, "ties": 1}
    assert disagreement(one, other, pairs_per_query=2)["pairs"] <= 2
    assert disagreement(one, labels([[("x", 1.0)]]))["rate"] is None


def test_intersection_rates():
    def run(*lists):
        ids = tuple(f"q{i}" for i in range(len(lists)))
        return Run.from_lists(ids, [[(d, -i) for i, d in enumerate(x)] for x in lists])

    rates = intersection_rates(
        {"one": run("abcd", "abcd"), "two": run("bxcy", "zabc"), "none": run()}, depth=3
    )
    # abc and bxc share 2 of 3; abc and zab share 2 of 3.
    assert rates["one"]["two"] == rates["two"]["one"] == pytest.approx(4 / 6)
    assert rates["one"]["one"] == 1.0
    assert rates["one"]["none"] is None


def test_lists_of_two_documents_have_a_temperature():
    # sigmoid(1 / T) = p, whose entropy is half of log 2.
    scores, where = np.asarray([[1.0, 0.0, 0.0]]), np.asarray([[True, True, False]])
    p = 0.8899721356
    found = suggested_temperature(scores, where, aim=0.5)
    assert found == pytest.approx(1 / math.log(p / (1 - p)), rel=1e-3)
