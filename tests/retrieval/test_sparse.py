"""Sparse retrieval against the dense product."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random

from distill_jax.io.errors import UserError
from distill_jax.retrieval import Sparse


def vectors(rows, width, seed, density=0.05):
    values = random(rows, width, density, "csr", np.float32, random_state=seed)
    values.data = np.round(values.data * 8 + 1)  # integers: exact sums, many ties
    return values


@pytest.mark.parametrize(("docs", "k"), [(500, 10), (40_000, 50), (3, 10)])
def test_equals_the_dense_product(docs, k):
    corpus, queries = vectors(docs, 60, 0), vectors(9, 60, 1, 0.1)
    ids = [str(i) for i in np.random.default_rng(2).permutation(docs)]
    run = Sparse.build(corpus, ids).search(queries, k)
    scores = (queries @ corpus.T).toarray()
    places = np.argsort(np.argsort(ids))
    for row in range(9):
        order = np.lexsort((-places, -scores[row]))[: min(k, docs)]
        order = np.where(scores[row, order] > 0, order, -1)
        np.testing.assert_array_equal(run.rows[row], order)


def test_saved_and_loaded(tmp_path):
    index = Sparse.build(vectors(50, 20, 0, 0.3), source="weights A")
    queries = vectors(5, 20, 1, 0.3)
    index.save(tmp_path)
    run = Sparse.load(tmp_path, source="weights A").search(queries, 5)
    np.testing.assert_array_equal(run.rows, index.search(queries, 5).rows)
    with pytest.raises(UserError, match="other vectors"):
        Sparse.load(tmp_path, source="weights B")


def test_bad_input_names_the_row():
    dense = np.ones((3, 4), np.float32)
    dense[1, 2] = -1
    with pytest.raises(UserError, match="'b'"):
        Sparse.build(csr_matrix(dense), ["a", "b", "c"])
    dense[1, 2] = np.nan
    with pytest.raises(UserError, match="'b'"):
        Sparse.build(dense, ["a", "b", "c"])
    index = Sparse.build(np.ones((3, 4), np.float32))
    with pytest.raises(UserError, match="5 features"):
        index.search(np.ones((1, 5)), 1)
    with pytest.raises(UserError, match="2 doc ids"):
        Sparse.build(np.ones((3, 4)), ["a", "b"])
    assert index.search(np.zeros((1, 4)), 2).where.sum() == 0
