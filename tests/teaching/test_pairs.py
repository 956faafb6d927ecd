"""Pairs: how many, which, and what their votes say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.errors import UserError
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.teaching.pairs import (
    aggregate,
    bradley_terry,
    label_pairs,
    neighbours,
    pairs_of_scores,
    rank_by_votes,
    sample_pairs,
    sigmoid,
)
from distill_jax.text.features import Features
from distill_jax.text.token_store import TokenStore
from tests.export.forms import student


def labels_of(queries=4, docs=30, depth=12, seed=0):
    rng = np.random.default_rng(seed)
    ids = [f"d{i}" for i in range(docs)]
    rows = np.stack([rng.permutation(docs)[:depth] for _ in range(queries)])
    scores = rng.normal(size=rows.shape)
    return TeacherLabels([f"q{i}" for i in range(queries)], rows, scores, ids)


@pytest.mark.parametrize(
    "key", ["K100_delta10", "K20_delta6", "K64_delta10", "K5_delta10"]
)
def test_counts_of_pairs(cases, key):
    expected = cases["pair_sampling_counts"]["expected"]
    count, delta = (int(n) for n in key[1:].split("_delta"))
    pairs = neighbours(count, delta)
    assert len(pairs) == expected[f"{key}_unordered"]
    apart = pairs[:, 1] - pairs[:, 0]
    assert ((apart > 0) & (apart < delta)).all()


@pytest.mark.parametrize("delta", [6, 10])
def test_documents_that_sampled_pairs_cover(cases, delta):
    """Drawing without replacement: P(a doc is in no pair) is hypergeometric."""
    known = cases["pair_coverage_expectation"]
    count, drawn = known["inputs"]["K"], known["inputs"]["n_pairs"]
    pairs = neighbours(count, delta)
    degrees = np.bincount(pairs.ravel(), minlength=count)
    without = [math.comb(len(pairs) - d, drawn) for d in degrees.tolist()]
    distinct = sum(1 - n / math.comb(len(pairs), drawn) for n in without)
    expected = known["expected"][f"expected_distinct_docs_delta{delta}"]
    assert distinct == pytest.approx(expected)
    labels = labels_of(queries=400, docs=count, depth=count)
    first, second = sample_pairs(labels, top_k=count, delta=delta, pairs=drawn, seed=0)
    found = [len(np.unique([a, b])) for a, b in zip(first, second)]
    assert np.mean(found) == pytest.approx(expected, abs=5 * np.std(found) / 20)


def test_a_querys_pairs_belong_to_its_id_and_the_seed():
    labels = labels_of()
    draw = {"top_k": 10, "delta": 4, "pairs": 8}
    first, second = sample_pairs(labels, seed=1, **draw)
    some = labels.select(["q2", "q0"])
    a, b = sample_pairs(some, seed=1, **draw)
    np.testing.assert_array_equal(a, first[[2, 0]])
    np.testing.assert_array_equal(b, second[[2, 0]])
    other, _ = sample_pairs(labels, seed=2, **draw)
    assert (other != first).any()
    run = labels.to_run()
    for line in range(4):
        rank = {int(row): n for n, row in enumerate(run.rows[line])}
        drawn = list(zip(first[line].tolist(), second[line].tolist()))
        assert len(set(drawn)) == 8
        for i, j in drawn:
            assert 0 < rank[j] - rank[i] < 4
            assert rank[j] < 10


def test_failed_and_short_lists_have_few_pairs_or_none():
    labels = labels_of(depth=2)
    failed = np.asarray([True, False, False, False])
    labels = TeacherLabels(
        labels.query_ids, labels.rows, labels.scores, labels.doc_ids, failed=failed
    )
    first, _ = sample_pairs(labels, top_k=10, delta=4, pairs=8, seed=0)
    assert (first >= 0).sum(axis=1).tolist() == [0, 1, 1, 1]


def test_pairs_of_scores_are_sigmoids_of_differences():
    labels = labels_of()
    pairs = pairs_of_scores(labels, top_k=10, delta=4, pairs=8, seed=0)
    for line in range(4):
        of = dict(zip(labels.rows[line].tolist(), labels.scores[line].tolist()))
        for i, j, p in pairs.by_query()[f"q{line}"]:
            assert p >= 0.5
            assert p == pytest.approx(1 / (1 + np.exp(of[j] - of[i])), rel=1e-5)


def test_votes_equal_duot5s(cases):
    found = cases["duot5_one_direction_aggregate"]
    pairs = np.asarray(
        [[int(n) for n in k.split(",")] for k in found["inputs"]["p_ij"]]
    )
    wins = np.asarray([list(found["inputs"]["p_ij"].values())], np.float32)
    votes = aggregate(wins, pairs, np.ones_like(wins, bool), 3)
    np.testing.assert_allclose(votes[0], found["expected"]["scores"], rtol=1e-6)


def all_pairs(count):
    return np.triu_indices(count, 1)


def test_bradley_terry_recovers_known_strengths():
    rng = np.random.default_rng(0)
    true = rng.normal(size=8) * 1.5
    first, second = all_pairs(8)
    wins = 1 / (1 + np.exp(true[second] - true[first]))
    found = bradley_terry(wins, first, second, 8, prior=1e-6, iterations=5000)
    np.testing.assert_allclose(found - found.mean(), true - true.mean(), atol=1e-3)


def test_bradley_terry_is_at_the_optimum_of_its_likelihood():
    rng = np.random.default_rng(1)
    first, second = all_pairs(7)
    kept = rng.random(len(first)) < 0.6
    first, second = first[kept], second[kept]
    wins = rng.random(len(first)).round(1)

    def loss(b, prior=0.1):
        gap = b[first] - b[second]
        likelihood = -wins * np.logaddexp(0, -gap) - (1 - wins) * np.logaddexp(0, gap)
        draws = -np.logaddexp(0, -b) - np.logaddexp(0, b)
        return -likelihood.sum() - prior * draws.sum()

    best = minimize(loss, np.zeros(7), tol=1e-12)
    found = bradley_terry(wins, first, second, 7, iterations=5000)
    assert loss(found) == pytest.approx(best.fun, abs=1e-8)
    np.testing.assert_allclose(found, best.x, atol=1e-3)


def test_bradley_terry_stays_finite():
    first, second = all_pairs(4)
    found = bradley_terry(np.ones(6), first, second, 5)
    assert np.isfinite(found).all()
    assert (np.diff(found[:4]) < 0).all()
    # Nothing is known of the fifth: it is average.
    assert found[4] == pytest.approx(0.0, abs=1e-6)


def duo_world():
    model = student("t5_duo")
    texts = ["water boils", "the city council", "bone pain", "bus lane", "japan"]
    collection = Collection([f"d{i}" for i in range(5)], texts)
    queries = Queries(["q0", "q1"], ["how does water boil", "what is the vote"])
    features = Features(
        model.spec.template,
        model.tokenizer,
        query=TokenStore.build(queries.texts, model.tokenizer),
        document=TokenStore.build(texts, model.tokenizer),
    )
    rows = np.asarray([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
    scores = np.asarray([[5, 4, 3, 2, 1]] * 2, np.float32)
    labels = TeacherLabels(queries.ids, rows, scores, collection.ids)
    return model, features, queries, labels


def test_both_orders_average_the_position_bias_out(tmp_path):
    model, features, queries, labels = duo_world()
    how = {"top_k": 5, "delta": 5, "pairs": 10, "seed": 0}
    both = label_pairs(model, features, queries, labels, tmp_path / "both", **how)
    assert both.where.all()
    assert "position_bias_logits" in both.provenance["counts"]
    one = label_pairs(
        model, features, queries, labels, tmp_path / "one", both_orders=False, **how
    )
    turned = TeacherLabels(
        labels.query_ids, labels.rows, -labels.scores, labels.doc_ids
    )
    other = label_pairs(
        model, features, queries, turned, tmp_path / "other", both_orders=False, **how
    )
    ids = both.doc_ids, one.doc_ids, other.doc_ids

    def logits(pairs, doc_ids):
        return {
            (q, doc_ids[i], doc_ids[j]): np.log(p / (1 - p))
            for q, found in pairs.by_query().items()
            for i, j, p in found
        }

    averaged, forward, backward = (
        logits(pairs, doc_ids) for pairs, doc_ids in zip((both, one, other), ids)
    )
    assert len(averaged) == 20
    for (q, i, j), logit in averaged.items():
        expected = (forward[q, i, j] - backward[q, j, i]) / 2
        assert logit == pytest.approx(expected, abs=1e-4)


def test_pair_labels_go_on_where_they_were(tmp_path):
    model, features, queries, labels = duo_world()
    how = {"top_k": 5, "delta": 3, "pairs": 4, "seed": 0, "shard_queries": 1}

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_pairs(
            model, features, queries, labels, tmp_path / "a", progress=stop, **how
        )
    found = label_pairs(model, features, queries, labels, tmp_path / "a", **how)
    whole = label_pairs(model, features, queries, labels, tmp_path / "b", **how)
    np.testing.assert_array_equal(found.probability, whole.probability)
    # Counts are those of both runs together.
    counts, expected = (labels.provenance["counts"] for labels in (found, whole))
    assert counts["pairs"] == expected["pairs"] == 8
    bias = "position_bias_logits"
    assert counts[bias] == pytest.approx(expected[bias], rel=1e-6)
    assert counts[bias] != 0
    assert len(list((tmp_path / "a").glob("*.parquet"))) == 2


def test_lists_without_pairs_do_not_stop_the_rest(tmp_path):
    model, features, queries, labels = duo_world()
    failed = TeacherLabels(
        labels.query_ids,
        labels.rows,
        labels.scores,
        labels.doc_ids,
        failed=np.asarray([True, False]),
    )
    found = label_pairs(
        model, features, queries, failed, tmp_path, shard_queries=1, pairs=4
    )
    assert isinstance(found, PairLabels)
    assert {q: len(p) for q, p in found.by_query().items()} == {"q0": 0, "q1": 4}


def test_pairs_of_queries_that_were_not_asked_for_are_left_out(tmp_path):
    model, features, queries, labels = duo_world()
    more = TeacherLabels(["x", "q1"], labels.rows, labels.scores, labels.doc_ids)
    found = label_pairs(model, features, queries, more, tmp_path / "a", pairs=2)
    assert {q: len(p) for q, p in found.by_query().items()} == {"q1": 2}
    none = TeacherLabels(["x", "y"], labels.rows, labels.scores, labels.doc_ids)
    with pytest.raises(UserError, match=r"2 of 2 queries .*'x'"):
        label_pairs(model, features, queries, none, tmp_path / "b", pairs=2)
    with pytest.raises(UserError, match=r"1 of 2 queries .*'x'"):
        rank_by_votes(model, features, queries, more.to_run(), top_k=2)


def test_votes_reorder_the_head_and_leave_the_rest_below():
    model, features, queries, labels = duo_world()
    run = labels.to_run()
    voted = rank_by_votes(model, features, queries, run, top_k=3)
    for line in range(2):
        assert set(voted.rows[line, :3]) == set(run.rows[line, :3])
        assert voted.rows[line, 3:].tolist() == run.rows[line, 3:].tolist()


def test_sigmoid_does_not_overflow():
    with np.errstate(all="raise", under="ignore"):
        found = sigmoid(np.asarray([-1e4, -1.0, 0.0, 1.0, 1e4]))
    np.testing.assert_allclose(found, [0, 0.26894142, 0.5, 0.7310586, 1], rtol=1e-6)
