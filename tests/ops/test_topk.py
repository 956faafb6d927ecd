"""Top k against a full sort, on scores with many ties."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.ops import topk


def by_sort(scores, k):
    """Positions by score descending, then position ascending."""
    positions = np.arange(scores.shape[-1])
    return np.stack([np.lexsort((positions, -row))[:k] for row in scores])


@pytest.mark.parametrize(
    ("number", "k", "block"), [(50, 7, 128), (997, 5, 8), (64, 3, 8)]
)
def test_top_k_is_exact_with_ties(number, k, block):
    rng = np.random.default_rng(number)
    scores = rng.integers(0, 6, size=(20, number)).astype(np.float32)
    values, positions = topk.top_k(jnp.asarray(scores), k, block=block)
    expected = by_sort(scores, k)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, 1))


def test_more_than_there_are():
    values, positions = topk.top_k(jnp.asarray([[1.0, 3.0]]), 4)
    assert values.tolist() == [[3, 1, -np.inf, -np.inf]]
    assert positions.tolist() == [[1, 0, -1, -1]]
