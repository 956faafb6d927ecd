from __future__ import annotations

import numpy as np
import pytest

from distill_jax.io.errors import UserError
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.normalise import (
    NORMALISATIONS,
    above_percentile,
    minmax,
    normalise,
    percentile,
    ranks,
    zscore,
)


def test_minmax_percentile_1_99(cases):
    case = cases["minmax_percentile_1_99"]
    scores = np.array([case["inputs"]["scores"]])
    found = percentile(scores, np.ones_like(scores, bool))
    np.testing.assert_allclose(found[0], case["expected"]["normalised"], atol=1e-6)


def test_percentile25_query_filter(cases):
    case = cases["percentile25_query_filter"]
    scores = np.array(case["inputs"]["lists_first_is_positive"])
    where = np.ones_like(scores, bool)
    kept = above_percentile(scores, where)
    assert kept.tolist() == case["expected"]["kept"]
    # The percentiles are those of the whole file, before anything is dropped.
    found = percentile(scores, where)[kept]
    np.testing.assert_allclose(found, case["expected"]["normalised_kept"], atol=1e-6)


def test_minmax_per_query(cases):
    case = cases["minmax_per_query_jacolbert"]
    scores = np.array([case["inputs"]["scores"]])
    found = minmax(scores, np.ones_like(scores, bool))
    np.testing.assert_allclose(found[0], case["expected"]["normalised"])


def test_zscore_and_ranks():
    scores = np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 9.0]])
    where = np.array([[True] * 3, [True, True, False]])
    third = np.sqrt(8 / 3)  # deviation of 1, 3, 5
    np.testing.assert_allclose(
        zscore(scores, where), [[-2 / third, 0, 2 / third], [0, 0, np.nan]], rtol=1e-6
    )
    np.testing.assert_array_equal(ranks(scores, where), [[1, 2, 3], [2, 1, np.nan]])


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_padding_changes_nothing(name):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 7)).astype(np.float32)
    wide = np.concatenate([scores, np.full((5, 3), np.nan, np.float32)], 1)
    wide[:, -1] = 1e30
    where = np.zeros_like(wide, bool)
    where[:, :7] = True
    function = NORMALISATIONS[name]
    found = function(wide, where)
    np.testing.assert_array_equal(found[:, :7], function(scores, where[:, :7]))
    assert np.isnan(found[:, 7:]).all()
    assert np.isfinite(found[:, :7]).all()


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_equal_scores_empty_lists_and_order(name):
    function = NORMALISATIONS[name]
    scores = np.array([[0.1, 0.1, 0.1], [1, 2, 3]], np.float32)
    where = np.array([[True] * 3, [False] * 3])
    assert np.isfinite(function(scores, where)[0]).all()
    assert np.isnan(function(scores, where)[1]).all()
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(20, 9)).astype(np.float32) * 5
    found = function(scores, np.ones_like(scores, bool)).astype(np.float64)
    moves = np.diff(np.take_along_axis(found, np.argsort(scores, 1), 1), axis=1)
    assert (moves >= 0).all()


def test_labels_by_name():
    labels = TeacherLabels.from_lists(
        ["q"], [[("a", 2), ("b", 1), ("c", 3)]], kind="rank"
    )
    assert normalise(labels, "minmax").tolist() == [[0.5, 1.0, 0.0]]
    assert normalise(labels, None).tolist() == [[2.0, 3.0, 1.0]]
    with pytest.raises(UserError, match='did you mean "zscore"'):
        normalise(labels, "z-score")
