"""Agreement with rax, where it has the loss."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import losses

rax = pytest.importorskip("rax")

B, N = 4, 7


@pytest.fixture
def lists():
    rng = np.random.default_rng(3)
    scores = jnp.asarray(rng.normal(size=(B, N)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 4, size=(B, N)), jnp.float32)
    where = jnp.asarray(np.arange(N)[None] < np.asarray([[7], [3], [5], [0]]))
    return scores, labels, where


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (losses.ranknet, rax.pairwise_logistic_loss),
        (losses.softmax_cross_entropy, rax.softmax_loss),
        (losses.listmle, rax.listmle_loss),
        (losses.pointwise_cross_entropy, rax.pointwise_sigmoid_loss),
    ],
)
def test_agrees_with_rax(lists, ours, theirs):
    scores, labels, where = lists
    if ours is losses.pointwise_cross_entropy:
        labels = labels / 3
    np.testing.assert_allclose(
        ours(scores, labels, where=where),
        theirs(scores, labels, where=where),
        rtol=1e-5,
    )


@pytest.mark.parametrize("k", [None, 1, 3])
def test_lambda_loss_agrees_with_rax(lists, k):
    scores, labels, where = lists
    weight = functools.partial(rax.dcg2_lambdaweight, topn=k, normalize=True)
    theirs = rax.pairwise_logistic_loss(
        scores, labels, where=where, lambdaweight_fn=weight, reduce_fn=jnp.sum
    )
    # rax multiplies its weights by the width of the list, and sums over lists.
    expected = theirs / N / 3
    found = losses.lambda_loss(scores, labels, where=where, k=k)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
