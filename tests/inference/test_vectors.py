"""Each form of vectors: parts are joined in order, pairs are scored as written out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from distill_jax.inference.vectors import Ragged, form_of
from distill_jax.ops.vector_form import VectorForm

RANDOM = np.random.default_rng(0)
DENSE = RANDOM.normal(size=(7, 4)).astype(np.float32)
TOKENS = [RANDOM.normal(size=(n, 4)).astype(np.float32) for n in (3, 1, 2, 5, 0, 4, 2)]
QUERIES, DOCS = [0, 2, 0, 1, 2, 0], [3, 4, 5, 3, 6, 3]


def of(form: VectorForm):
    return form_of(SimpleNamespace(vectors=form))


def max_sim(query: np.ndarray, doc: np.ndarray) -> float:
    """Each query token's greatest product with a token of the document, summed."""
    best = [max((float(q @ d) for d in doc), default=0.0) for q in query]
    return sum(best)


@pytest.mark.parametrize("form", VectorForm, ids=lambda form: form.name)
def test_pairs_are_scored_as_written_out(form):
    if form is VectorForm.PER_TOKEN:
        vectors = TOKENS
        wanted = [max_sim(TOKENS[q], TOKENS[d]) for q, d in zip(QUERIES, DOCS)]
    else:
        vectors = csr_matrix(DENSE) if form is VectorForm.SPARSE else DENSE
        wanted = [sum(DENSE[q] * DENSE[d]) for q, d in zip(QUERIES, DOCS)]
    rows = np.array(QUERIES), np.array(DOCS)
    found = of(form).pair_scores(vectors, vectors, *rows)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", VectorForm, ids=lambda form: form.name)
def test_all_are_scored_with_all(form):
    full = [text for text in TOKENS if len(text)]
    some = {VectorForm.PER_TOKEN: full, VectorForm.SPARSE: csr_matrix(DENSE)}
    vectors = some.get(form, DENSE)
    wanted = DENSE @ DENSE.T
    if form is VectorForm.PER_TOKEN:
        wanted = [[max_sim(q, d) for d in full] for q in full]
    found = of(form).similarity(vectors, vectors)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_parts_are_joined_in_the_order_of_the_rows():
    order = np.array([3, 0, 2, 1])
    dense = of(VectorForm.ONE).join([DENSE[:3], DENSE[3:4]], order)
    np.testing.assert_array_equal(dense, DENSE[order])
    halves = [csr_matrix(DENSE[:3]), csr_matrix(DENSE[3:4])]
    sparse = of(VectorForm.SPARSE).join(halves, order)
    np.testing.assert_array_equal(sparse.toarray(), DENSE[order])
    parts = [
        Ragged(np.concatenate(texts), np.array([len(text) for text in texts]))
        for texts in (TOKENS[:3], TOKENS[3:4])
    ]
    found = of(VectorForm.PER_TOKEN).join(parts, order)
    for text, row in zip(found, order, strict=True):
        np.testing.assert_array_equal(text, TOKENS[row])
