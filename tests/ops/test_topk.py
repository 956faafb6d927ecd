"""Top k against a full sort, on scores with many ties."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.ops import topk


def by_sort(scores, k, ties):
    """Positions by score descending, then position ascending or descending."""
    positions = np.arange(scores.shape[-1])
    second = positions if ties == "lowest" else -positions
    return np.stack([np.lexsort((second, -row))[:k] for row in scores])


@pytest.mark.parametrize("ties", ["lowest", "highest"])
@pytest.mark.parametrize(
    ("number", "k", "block"), [(50, 7, 128), (997, 5, 8), (64, 3, 8)]
)
def test_top_k_is_exact_with_ties(number, k, block, ties):
    rng = np.random.default_rng(number)
    scores = rng.integers(0, 6, size=(20, number)).astype(np.float32)
    values, positions = topk.top_k(jnp.asarray(scores), k, ties=ties, block=block)
    expected = by_sort(scores, k, ties)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, 1))


def test_more_than_there_are():
    values, positions = topk.top_k(jnp.asarray([[1.0, 3.0]]), 4)
    assert values.tolist() == [[3, 1, -np.inf, -np.inf]]
    assert positions.tolist() == [[1, 0, -1, -1]]


@pytest.mark.parametrize("ties", ["lowest", "highest"])
@pytest.mark.parametrize("block_size", [7, 16, 100, 1000])
def test_search_reads_blocks_and_keeps_ties(block_size, ties):
    rng = np.random.default_rng(1)
    queries = rng.integers(-2, 3, size=(9, 3)).astype(np.float32)
    docs = rng.integers(-2, 3, size=(101, 3)).astype(np.float32)
    scores = queries @ docs.T
    values, rows = topk.search(
        jnp.asarray(queries), jnp.asarray(docs), 10, block_size=block_size, ties=ties
    )
    expected = by_sort(scores, 10, ties)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, 1))


def test_search_for_more_than_there_are():
    docs = jnp.eye(3)
    values, rows = topk.search(docs[:1], docs, 5, block_size=2)
    assert rows.tolist() == [[0, 1, 2, -1, -1]]
    assert values[0, :3].tolist() == [1, 0, 0]
