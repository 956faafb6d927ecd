"""Late interaction against MaxSim written out."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from distill_jax.io.errors import UserError
from distill_jax.retrieval import LateInteraction
from distill_jax.retrieval.muvera import FixedDimensional
from distill_jax.retrieval.residual import Codec
from distill_jax.retrieval.scann import recall_of
from distill_jax.retrieval.token_vectors import TokenVectors


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def texts(count, seed, low=1, high=12, width=16, topics=20):
    """Token sets about topics, so that some docs are nearer than others."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(topics, width))
    sets = []
    for _ in range(count):
        topic = random.integers(topics, size=2)
        tokens = random.integers(low, high)
        base = centres[random.choice(topic, tokens)]
        noise = random.normal(size=(tokens, width)) * 0.6
        sets.append(unit(base + noise).astype(np.float32))
    return sets


def maxsim(query, doc):
    return (query @ doc.T).max(1).sum()


def truth(queries, docs):
    return np.array([[maxsim(q, d) for d in docs] for q in queries])


@pytest.mark.parametrize("exhaustive", [True, False])
def test_scores_are_maxsim(exhaustive):
    docs, queries = texts(300, 0), texts(7, 1)
    index = LateInteraction.build(docs, compression=None)
    run = index.search(queries, 5, exhaustive=exhaustive, candidates=100)
    scores = truth(queries, docs)
    for row in range(7):
        expected = scores[row][run.rows[row]]
        np.testing.assert_allclose(run.scores[row], expected, rtol=1e-5)
        if exhaustive:
            assert set(run.rows[row]) == set(np.argsort(-scores[row])[:5])


def test_candidates_find_what_exhaustive_search_finds():
    docs, queries = texts(600, 2), texts(30, 3)
    index = LateInteraction.build(docs, compression=None)
    found = index.search(queries, 10, candidates=150)
    assert recall_of(found, index.search(queries, 10, exhaustive=True)) > 0.95


@pytest.mark.skipif(find_spec("scann") is None, reason="scann is not installed")
def test_scann_candidates():
    docs, queries = texts(600, 2), texts(30, 3)
    index = LateInteraction.build(docs, compression=None, index="scann", repetitions=8)
    found = index.search(queries, 10, candidates=200)
    assert recall_of(found, index.search(queries, 10, exhaustive=True)) > 0.9


def test_encoding_is_linear_in_query_tokens_and_near_maxsim():
    docs, queries = texts(60, 4), texts(10, 5)
    encoding = FixedDimensional(width=16, repetitions=40, bits=4, projection=None)
    together = encoding.encode(TokenVectors.of(queries), "query")
    tokens = [query[i : i + 1] for query in queries for i in range(len(query))]
    apart = encoding.encode(TokenVectors.of(tokens), "query")
    owner = np.repeat(np.arange(10), [len(query) for query in queries])
    sums = np.stack([apart[owner == query].sum(0) for query in range(10)])
    np.testing.assert_allclose(together, sums, atol=1e-4)
    near = together @ encoding.encode(TokenVectors.of(docs), "doc").T / 40
    exact = truth(queries, docs)
    assert np.corrcoef(near.ravel(), exact.ravel())[0, 1] > 0.85
    # An average over a bucket cannot exceed the bucket's best token.
    assert (near <= exact + 1e-4).all()


@pytest.mark.parametrize("compression", ["float16", 8, 4, 2])
def test_compression_says_what_it_loses(compression, tmp_path):
    docs, queries = texts(400, 6), texts(12, 7)
    index = LateInteraction.build(docs, compression=compression)
    limit = {"float16": 1e-3, 8: 0.02, 4: 0.12, 2: 0.4}[compression]
    assert index.report["relative_error"] < limit
    wanted = {"float16": 32, 8: 18, 4: 10, 2: 6}[compression]
    assert index.report["bytes_per_token"] == wanted
    whole = LateInteraction.build(docs)
    truth = whole.search(queries, 10, exhaustive=True)
    recall = recall_of(index.search(queries, 10, exhaustive=True), truth)
    least = {"float16": 0.98, 8: 0.95, 4: 0.85, 2: 0.7}[compression]
    assert recall >= least
    index.save(tmp_path)
    loaded = LateInteraction.load(tmp_path)
    before = index.search(queries, 5, candidates=50)
    after = loaded.search(queries, 5, candidates=50)
    np.testing.assert_array_equal(before.rows, after.rows)


def test_codes_come_back_bit_by_bit():
    random = np.random.default_rng(0)
    centroids = unit(random.normal(size=(8, 16))).astype(np.float32)
    cuts, levels = np.float32([-0.1, 0, 0.1]), np.float32([-0.2, -0.05, 0.05, 0.2])
    codec = Codec(centroids, cuts, levels)
    which = random.integers(0, 8, 50)
    residual = levels[random.integers(0, 4, (50, 16))] * 0.5
    codes = codec.encode(centroids[which] + residual)
    assert codes.packed.shape == (50, 4)
    left = centroids[which] + residual - centroids[codes.ids]
    chosen = levels[np.searchsorted(cuts, left)]
    np.testing.assert_allclose(codes[:], unit(centroids[codes.ids] + chosen), atol=1e-6)


def test_docs_and_queries_without_tokens():
    docs = [*texts(3, 0), np.zeros((0, 16), np.float32)]
    index = LateInteraction.build(docs)
    run = index.search([docs[0], np.zeros((0, 16))], 4)
    assert run.rows[0, -1] == 3
    assert run.rows[0, 0] == 0
    assert (run.rows[1] == -1).all()
    assert LateInteraction.build(docs[:1]).search([docs[0]], 9).rows.tolist() == [[0]]
    only_empty = LateInteraction.build([np.zeros((0, 16), np.float32)] * 2)
    assert only_empty.search([docs[0]], 1).rows.shape == (1, 1)


def test_all_forms_of_docs_are_alike():
    docs, queries = texts(20, 0), texts(3, 1)
    flat = np.concatenate(docs)
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in docs])])
    forms = [docs, (flat, offsets), TokenVectors(flat, offsets)]
    runs = [LateInteraction.build(form).search(queries, 5).rows for form in forms]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


def test_bad_input():
    docs = texts(5, 0)
    docs[3][0, 0] = np.nan
    with pytest.raises(UserError, match="'d'"):
        LateInteraction.build(docs, list("abcde"))
    index = LateInteraction.build(texts(5, 0))
    with pytest.raises(UserError, match="dimension 8"):
        index.search(texts(1, 0, width=8), 1)
    with pytest.raises(UserError, match="over no docs"):
        LateInteraction.build([])
    with pytest.raises(UserError, match="offsets"):
        LateInteraction.build((np.zeros((5, 4)), np.array([0, 9])))
    with pytest.raises(UserError, match="3 bits"):
        LateInteraction.build(texts(5, 0), compression=3)
