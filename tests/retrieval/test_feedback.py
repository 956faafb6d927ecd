"""Feedback moves a query to what was found for it first."""

from __future__ import annotations

import numpy as np
import pytest

from distill_jax.io.errors import UserError
from distill_jax.retrieval import feedback


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_hand(query, docs, scores, alpha, temperature):
    """Rocchio with softmax weights, one query at a time."""
    if len(docs) == 0:
        return query
    weights = np.exp(scores / temperature)
    weights = weights / weights.sum()
    total = query.copy()
    for weight, doc in zip(weights, docs):
        total = total + alpha * weight * doc
    return total / np.sqrt((total**2).sum())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_it_is_rocchio_with_softmax_weights(alpha, temperature):
    random = np.random.default_rng(0)
    queries, docs = (
        unit(random.normal(size=(4, 8))),
        unit(random.normal(size=(4, 3, 8))),
    )
    scores = random.normal(size=(4, 3))
    where = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool)
    docs[~where], scores[~where] = np.nan, np.nan
    found = feedback.moved(
        queries, docs, scores, where, alpha=alpha, temperature=temperature
    )
    assert found.dtype == np.float32
    for row in range(4):
        there = where[row]
        expected = by_hand(
            queries[row], docs[row][there], scores[row][there], alpha, temperature
        )
        np.testing.assert_allclose(found[row], expected, atol=1e-6)


def test_scores_of_any_size_are_safe():
    queries, docs = np.eye(2, 4)[None, 0], np.eye(2, 4)[None]
    found = feedback.moved(
        queries, docs, np.array([[5000.0, -5000.0]]), np.ones((1, 2), bool)
    )
    np.testing.assert_allclose(found, queries, atol=1e-6)


def test_settings_that_mean_nothing_are_refused():
    some = np.ones((1, 2)), np.ones((1, 1, 2)), np.ones((1, 1)), np.ones((1, 1), bool)
    with pytest.raises(UserError, match="alpha"):
        feedback.moved(*some, alpha=-1.0)
    with pytest.raises(UserError, match="temperature"):
        feedback.moved(*some, temperature=0.0)
