"""Scores as probabilities, and thresholds, against sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distill_jax.collections.qrels import Qrels
from distill_jax.evaluation import calibration
from distill_jax.runs.run import Run

linear_model = pytest.importorskip("sklearn.linear_model")


def drawn(count=4000, scale=0.7, shift=-2.0, seed=0):
    """Scores whose documents are relevant with a known probability."""
    random = np.random.default_rng(seed)
    scores = random.normal(3.0, 4.0, count)
    chance = 1 / (1 + np.exp(-(scale * scores + shift)))
    return scores, random.random(count) < chance


def test_a_known_scale_is_found_again():
    found = calibration.fit(*drawn(40_000))
    assert found.scale == pytest.approx(0.7, rel=0.05)
    assert found.shift == pytest.approx(-2.0, rel=0.05)


def test_the_scale_is_that_of_logistic_regression():
    scores, relevant = drawn()
    other = linear_model.LogisticRegression(C=np.inf).fit(scores[:, None], relevant)
    found = calibration.fit(scores, relevant)
    # Apart from the smoothed targets, which 4,000 documents hardly feel.
    assert found.scale == pytest.approx(other.coef_[0, 0], rel=0.02)
    assert found.shift == pytest.approx(other.intercept_[0], rel=0.02)


@pytest.mark.parametrize("sign", [1, -1])
def test_no_order_changes_even_where_scores_mislead(sign):
    scores, relevant = drawn(500)
    found = calibration.fit(sign * scores, relevant)
    assert found.scale > 0
    order = np.argsort(sign * scores)
    assert (np.diff(found(sign * scores)[order]) >= 0).all()


def test_separable_scores_keep_a_finite_scale():
    found = calibration.fit(np.arange(10.0), np.arange(10) > 4)
    assert 0 < found.scale < 1e3
    assert np.isfinite(found(np.asarray([-1e9, 1e9]))).all()


@pytest.mark.parametrize("relevant", [True, False])
def test_there_is_no_scale_of_one_kind(relevant):
    assert calibration.fit(np.arange(3.0), np.full(3, relevant)) is None


def test_the_expected_error_is_a_sum_over_bins():
    random = np.random.default_rng(1)
    p, relevant = random.random(60), random.random(60) < 0.3
    order = sorted(range(60), key=lambda i: p[i])
    total = 0.0
    for start in range(0, 60, 6):
        part = order[start : start + 6]
        mean = sum(p[i] for i in part) / 6
        share = sum(bool(relevant[i]) for i in part) / 6
        total += abs(mean - share) * 6 / 60
    assert calibration.expected_error(p, relevant) == pytest.approx(total)


def test_risk_and_coverage_of_every_threshold():
    random = np.random.default_rng(2)
    scores = random.integers(0, 6, 30).astype(float)
    right = random.random(30) < 0.6
    thresholds, coverage, risk = calibration.risk_coverage(scores, right)
    assert thresholds.tolist() == sorted(set(scores.tolist()), reverse=True)
    for threshold, covered, wrong in zip(thresholds, coverage, risk):
        said = [bool(r) for s, r in zip(scores, right) if s >= threshold]
        assert covered == pytest.approx(len(said) / 30)
        assert wrong == pytest.approx(said.count(False) / len(said))


def world(queries=60, seed=3):
    """A run whose first scores tell how often its first document is relevant."""
    random = np.random.default_rng(seed)
    names = [f"q{i}" for i in range(queries)]
    lists, grades = [], {}
    for name in names:
        scores = np.sort(random.normal(0, 3, 5))[::-1]
        lists.append([(f"d{i}", float(s)) for i, s in enumerate(scores)])
        good = random.random(5) < 1 / (1 + np.exp(-scores))
        grades[name] = {f"d{i}": int(g) for i, g in enumerate(good)}
    return Run.from_lists(names, lists, [f"d{i}" for i in range(5)]), Qrels(grades)


def test_the_threshold_is_the_lowest_of_that_risk():
    run, qrels = world()
    found = calibration.report(run, qrels, 0.2)
    first = run.scores[:, 0]
    right = [
        qrels.of(q)[run.doc_ids[r]] > 0 for q, r in zip(run.query_ids, run.rows[:, 0])
    ]

    def risk(threshold):
        said = [r for s, r in zip(first, right) if s >= threshold]
        return said.count(False) / len(said)

    fits = [float(t) for t in first if risk(t) <= 0.2]
    assert found["threshold"] == pytest.approx(min(fits))
    assert found["risk"] == pytest.approx(risk(min(fits)))
    assert found["coverage"] == pytest.approx(np.mean(first >= min(fits)))
    assert found["risk_without"] == pytest.approx(risk(-math.inf))
    expected = 1 / (1 + math.exp(-(found["scale"] * min(fits) + found["shift"])))
    assert found["probability"] == pytest.approx(expected)
    assert found["ece"] < 0.2
    assert f"{found['coverage']:.0%}" in calibration.sentence(found)


def test_a_risk_that_no_threshold_has_suggests_none():
    run, qrels = world()
    wrong = Qrels({q: {d: int(d == "d4") for d in qrels.of(q)} for q in qrels})
    found = calibration.report(run, wrong, 0.1)
    assert found["threshold"] is None
    assert "no threshold" in calibration.sentence(found)


def test_nothing_relevant_is_nothing_to_calibrate():
    run, _ = world()
    assert calibration.report(run, Qrels({"q1": {"x": 1}}), 0.1) is None
