"""p-values equal those of statsmodels and of scipy's exact tests."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

from distill_jax.evaluation.significance import (
    bootstrap_interval,
    compare,
    compare_all,
    holm,
    p_text,
    randomisation_test,
    t_test,
)
from distill_jax.io.errors import UserError


def values(seed, n=60, shift=0.0):
    drawn = np.random.default_rng(seed).normal(shift, 1, n)
    return {f"q{i}": float(v) for i, v in enumerate(drawn)}


@pytest.mark.parametrize("n", [2, 3, 10, 300])
@pytest.mark.parametrize("shift", [0.0, 0.4, 5.0])
def test_t_test_is_statsmodels(n, shift):
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=n), rng.normal(shift, 1, n)
    expected = weightstats.DescrStatsW(b - a).ttest_mean(0)[1]
    assert t_test(b - a) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [2, 5, 9, 12])
def test_exact_randomisation_is_scipys(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=n), rng.normal(0.5, 1, n)
    expected = stats.permutation_test(
        (b, a),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue
    assert randomisation_test(b - a) == pytest.approx(expected, abs=1e-12)


def test_sampled_randomisation_agrees_with_scipys():
    rng = np.random.default_rng(0)
    differences = rng.normal(0.25, 1, 80)
    expected = stats.permutation_test(
        (differences, np.zeros(80)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        random_state=1,
    ).pvalue
    found = randomisation_test(differences, 20_000)
    # Two independent estimates of p: four standard errors of their difference.
    error = np.sqrt(2 * expected * (1 - expected) / 20_000)
    assert found == pytest.approx(expected, abs=4 * error)
    assert found == randomisation_test(differences, 20_000)  # seeded


def test_bootstrap_is_the_percentiles_of_means_of_redrawn_queries():
    differences = np.random.default_rng(3).exponential(1, 200)
    drawn = np.random.default_rng(0).integers(0, 200, (10_000, 200))
    expected = np.percentile(differences[drawn].mean(axis=1), [2.5, 97.5])
    found = bootstrap_interval(differences)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert bootstrap_interval(np.full(5, 0.25)) == (0.25, 0.25)


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_statsmodels(seed):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(seed).uniform(0, 0.1, 12).round(2)  # ties included
    expected = multitest.multipletests(p, method="holm")[1]
    np.testing.assert_allclose(holm(p), expected, atol=1e-15)
    assert holm([]).shape == (0,)


def test_degenerate_differences():
    assert t_test(np.zeros(5)) == 1.0
    assert t_test(np.full(5, 0.25)) == 0.0
    assert t_test(np.array([1.0])) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            t_test(np.array([0.4, 0.5, 0.9, 0.2]) + 0.1 - [0.4, 0.5, 0.9, 0.2]) < 1e-9
        )
    assert randomisation_test(np.zeros(5)) == 1.0
    assert randomisation_test(np.full(5, 0.25)) == 2 / 2**5
    one = compare({"q": 0.5}, {"q": 0.75}, measure="AP")
    assert one.p_holm is None
    assert "not shown to differ" in one.verdict()
    assert "not tested" in one.verdict()


def test_verdicts():
    before = values(0)
    better = {q: v + 0.1 + 0.01 * (i % 3) for i, (q, v) in enumerate(before.items())}
    found = compare(before, better, measure="nDCG@10")
    assert found.verdict() == (
        "after beats before: +0.110 nDCG@10 [0.108, 0.112], p < 0.001 (Holm),"
        " 60 wins / 0 losses of 60"
    )
    worse = compare(better, before, measure="nDCG@10", baseline="a", system="b")
    assert worse.verdict().startswith("b is worse than a: -0.110 nDCG@10 [-0.112, -0.1")
    same = compare(before, before, measure="nDCG@10")
    assert same.verdict() == (
        "after is not shown to differ from before: +0.000 nDCG@10 [0.000, 0.000],"
        " p = 1.00 (Holm), 0 wins / 0 losses of 60"
    )
    assert same.ties == 60
    assert [p_text(p) for p in (0.0004, 0.003, 0.31)] == [
        "p < 0.001",
        "p = 0.003",
        "p = 0.31",
    ]


def test_everything_is_corrected_together():
    systems = {
        "before": {"AP": values(0), "RR": values(1)},
        "one": {"AP": values(2, shift=0.5), "RR": values(3, shift=0.3)},
        "two": {"AP": values(4), "RR": values(5, shift=0.6)},
    }
    found = compare_all(systems, baseline="before", resamples=500)
    assert len(found) == 4
    assert {c.comparisons for c in found} == {4}
    np.testing.assert_allclose(
        [c.p_holm for c in found], holm([c.p_t for c in found]), rtol=0
    )
    assert all(c.p_holm >= c.p_t for c in found)


def test_a_system_under_two_names_is_tested_once():
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(40)]
    before, better, worse = (dict(zip(names, rng.random(40))) for _ in range(3))
    systems = {"before": {"m": before}, "round 1": {"m": better}, "r2": {"m": worse}}
    alone = {c.system: c for c in compare_all(systems, baseline="before")}
    systems["after"] = {"m": dict(better)}
    found = {c.system: c for c in compare_all(systems, baseline="before")}
    assert list(found) == ["round 1", "r2", "after"]
    assert {c.comparisons for c in found.values()} == {2}
    assert found["after"].p_holm == found["round 1"].p_holm == alone["round 1"].p_holm


def test_other_queries_are_refused():
    with pytest.raises(UserError, match="2 of them in one only"):
        compare({"a": 1.0, "b": 0.0}, {"b": 1.0, "c": 1.0})


def test_published_runs(shared):
    from distill_jax.collections.qrels import Qrels
    from distill_jax.evaluation.measures import evaluate_queries
    from distill_jax.runs.run import Run

    qrels = Qrels.read(shared / "runs" / "qrels" / "qrels.dl19-passage.txt.gz")
    per_query = {}
    for name in ("BM25", "BM25_RM3", "D_BERT_KD_TASB"):
        run = Run.read(shared / "runs" / "runs" / f"{name}.dl19.top100.trec.gz")
        per_query[name] = evaluate_queries(run, qrels, ["nDCG@10"])
    expansion, dense = compare_all(per_query, baseline="BM25")
    # SOURCE.md's figures of the three runs.
    assert round(dense.baseline_mean, 4) == 0.5058
    assert round(dense.system_mean, 4) == 0.7210
    assert dense.queries == 43
    assert dense.verdict().startswith("D_BERT_KD_TASB beats BM25: +0.215 nDCG@10 [0.1")
    assert round(expansion.system_mean, 4) == 0.5216
    assert "not shown to differ" in expansion.verdict()
