"""Losses beside sums written out in numpy, one list and one document at a time."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import losses


@pytest.fixture
def lists():
    random = np.random.default_rng(5)
    scores = random.normal(size=(4, 6)).astype(np.float32)
    labels = random.normal(size=(4, 6)).astype(np.float32)
    where = np.arange(6)[None] < np.array([[6], [3], [1], [0]])
    scores[~where], labels[~where] = np.nan, np.inf
    return scores, labels, where


def each(scores, labels, where):
    for row in range(len(scores)):
        there = where[row]
        if there.any():
            yield scores[row][there].astype(float), labels[row][there].astype(float)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_mean_squared_error(lists, scale):
    scores, labels, where = lists
    squares = [
        (scale * s - y) ** 2 for row in each(*lists) for s, y in zip(*row, strict=True)
    ]
    found = losses.mean_squared_error(scores, labels, where=where, scale=scale)
    np.testing.assert_allclose(found, np.mean(squares), rtol=1e-5)


def test_p_listmle(lists):
    scores, labels, where = lists
    values = []
    for s, y in each(*lists):
        s, n = s[np.argsort(-y)], len(s)
        total = 0.0
        for j in range(1, n + 1):
            alone = np.log(np.exp(s[j - 1 :]).sum()) - s[j - 1]
            total += (2.0 ** (n - j) - 1) / max(2.0 ** (n - 1) - 1, 1.0) * alone
        values.append(total)
    found = losses.p_listmle(scores, labels, where=where)
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-5)


@pytest.mark.long
def test_p_listmle_of_lists_of_hundreds_is_finite():
    scores = jnp.linspace(3.0, -3.0, 400)[None]
    value, gradient = jax.value_and_grad(losses.p_listmle)(scores, scores)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_approx_ndcg(lists, temperature):
    scores, _, where = lists
    labels = np.random.default_rng(2).integers(0, 4, scores.shape)
    values = []
    for row in range(len(scores)):
        s, y = scores[row][where[row]].astype(float), labels[row][where[row]]
        gains = 2.0**y - 1
        if not gains.any():
            continue
        found = 0.0
        for i in range(len(s)):
            others = [s[j] for j in range(len(s)) if j != i]
            rank = 1 + sum(1 / (1 + np.exp((s[i] - o) / temperature)) for o in others)
            found += gains[i] / np.log2(1 + rank)
        ideal = sum(g / np.log2(2 + k) for k, g in enumerate(sorted(gains)[::-1]))
        values.append(1 - found / ideal)
    assert values
    found = losses.approx_ndcg(scores, labels, where=where, temperature=temperature)
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-5)


@pytest.mark.parametrize("confidence", [0.5, 1.0, 2.0])
def test_lists_count_by_the_teacher_s_confidence(lists, confidence):
    scores, labels, where = lists
    values = []
    for s, y in each(*lists):
        p, q = (np.exp(x) / np.exp(x).sum() for x in (y, s))
        entropy = -(p * np.log(p)).sum()
        sure = 1 - entropy / np.log(max(len(s), 2))
        values.append((p * np.log(p / q)).sum() * sure**confidence)
    found = losses.kl_divergence(scores, labels, where=where, confidence=confidence)
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-4)


def vectors(student: int, teacher: int):
    random = np.random.default_rng(1)
    where = np.array([True, True, False, True, True])
    s = random.normal(size=(5, student)).astype(np.float32)
    t = random.normal(size=(5, teacher)).astype(np.float32)
    s[2], t[2] = np.nan, np.inf
    batch = types.SimpleNamespace(
        targets=types.SimpleNamespace(where=jnp.asarray(where)[:, None])
    )
    return {"q": jnp.asarray(s), "d": jnp.asarray(t)[:, None]}, batch, where, s, t


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.mark.parametrize("metric", ["l2", "mse", "cosine"])
def test_embedding_distance(metric):
    rep, batch, where, s, t = vectors(4, 4)
    by_hand = {
        "l2": lambda a, b: np.sqrt(((a - b) ** 2).sum()),
        "mse": lambda a, b: ((a - b) ** 2).mean(),
        "cosine": lambda a, b: 1 - cosine(a, b),
    }[metric]
    expected = np.mean([by_hand(s[i], t[i]) for i in np.flatnonzero(where)])
    found = losses.embedding_distance(rep, batch, metric=metric)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_similarity_matrix_of_vectors_of_two_widths():
    rep, batch, where, s, t = vectors(4, 7)
    at = np.flatnonzero(where)
    squares = [
        (cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2 for i in at for j in at if i != j
    ]
    found = losses.similarity_matrix(rep, batch)
    np.testing.assert_allclose(found, np.mean(squares), rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.embedding_distance, losses.similarity_matrix])
def test_a_student_that_is_its_teacher_has_no_gradient(loss):
    rep, batch, *_ = vectors(4, 4)
    same = {"q": rep["q"], "d": rep["q"][:, None]}
    gradient = jax.grad(lambda q: loss({"q": q, "d": same["d"]}, batch))(same["q"])
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_kl_over_a_batch_has_temperatures_of_one():
    rng = np.random.default_rng(5)
    similarity, labels = rng.normal(size=(2, 2, 3)), rng.normal(size=(2, 3))
    expected = []
    for query in range(2):
        student = np.log(np.exp(similarity[query]) / np.exp(similarity[query]).sum())
        teacher = np.exp(labels[query]) / np.exp(labels[query]).sum()
        expected.append((teacher * (np.log(teacher) - student[query])).sum())
    found = losses.in_batch_kl(similarity, np.arange(6).reshape(2, 3), labels)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)
