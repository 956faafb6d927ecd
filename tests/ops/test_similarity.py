"""Similarities against plain loops, and the memory that tiling saves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.ops import similarity

Q, M, LQ, LD, D = 3, 8, 4, 6, 5


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(Q, LQ, D)).astype(np.float32)
    docs = rng.normal(size=(M, LD, D)).astype(np.float32)
    doc_where = rng.uniform(size=(M, LD)) < 0.7
    doc_where[3] = False
    query_where = rng.uniform(size=(Q, LQ)) < 0.8
    return query, docs, doc_where, query_where


def by_hand(query, docs, doc_where, query_where):
    out = np.zeros((len(query), len(docs)))
    for i, q in enumerate(query):
        for j, d in enumerate(docs):
            for token, counts in zip(q, query_where[i]):
                kept = d[doc_where[j]] @ token
                out[i, j] += counts * (max(kept) if len(kept) else similarity.NO_TOKEN)
    return out


@pytest.mark.parametrize("elements", [1, 200, 2**26])
def test_maxsim_of_all_pairs(vectors, elements):
    found = similarity.maxsim_cross(*vectors, elements=elements)
    np.testing.assert_allclose(found, by_hand(*vectors), rtol=1e-5, atol=1e-5)


def test_maxsim_of_lists_is_the_diagonal_of_all_pairs(vectors):
    query, docs, doc_where, query_where = vectors
    lists = docs[: 2 * Q].reshape(Q, 2, LD, D), doc_where[: 2 * Q].reshape(Q, 2, LD)
    cross = by_hand(*vectors)[:, : 2 * Q].reshape(Q, Q, 2)[np.arange(Q), np.arange(Q)]
    for block_size in (None, 2):
        found = similarity.maxsim_lists(
            query, *lists, query_where, block_size=block_size
        )
        np.testing.assert_allclose(found, cross, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("junk", [np.nan, np.inf], ids=str)
def test_masked_tokens_cannot_be_felt(vectors, junk):
    query, docs, doc_where, query_where = vectors
    clean = np.where(doc_where[..., None], docs, 0)
    spoilt = np.where(doc_where[..., None], docs, junk).astype(np.float32)
    query_spoilt = np.where(query_where[..., None], query, junk).astype(np.float32)

    def loss(query, docs):
        scores = similarity.maxsim_cross(
            query, docs, doc_where, query_where, elements=100
        )
        return jnp.sum(jnp.where(scores > -9000, scores, 0.0) ** 2)

    expected = jax.grad(loss, (0, 1))(query, clean)
    found = jax.grad(loss, (0, 1))(query_spoilt, spoilt)
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert (np.asarray(found[1])[~doc_where] == 0).all()


def test_tiled_gradient_equals_the_plain_one(vectors):
    query, docs, doc_where, _ = vectors
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(Q, M)).astype(np.float32)
    gradients = [
        jax.grad(
            lambda q, d, e=elements: jnp.sum(
                weights * similarity.maxsim_cross(q, d, doc_where, elements=e)
            ),
            (0, 1),
        )(query, docs)
        for elements in (1, 2**26)
    ]
    for tiled, plain in zip(*gradients):
        np.testing.assert_allclose(tiled, plain, rtol=1e-5, atol=1e-6)


def test_tiles_bound_the_memory_of_the_backward_pass():
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(16, 8, 4), (256, 16, 4)]]

    def temporaries(elements):
        def loss(query, docs):
            return similarity.maxsim_cross(query, docs, elements=elements).sum()

        step = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
        return step.memory_analysis().temp_size_in_bytes

    whole = 16 * 256 * 8 * 16 * 4
    assert temporaries(2**26) > whole
    assert temporaries(2**14) < whole / 4


def test_normalise_is_safe_at_zero():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(similarity.normalise(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    gradient = jax.grad(lambda x: similarity.normalise(x)[:, 0].sum())(x)
    np.testing.assert_allclose(gradient[0], [0.128, -0.096], rtol=1e-5)
    assert (gradient[1] == 0).all()
    assert similarity.normalise(x.astype(jnp.bfloat16)).dtype == jnp.float32
