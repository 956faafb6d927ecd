"""Masked arithmetic: safe in value and gradient whatever the masked entries hold."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.ops import chunked, masked, pairs


def test_token_mask_keeps_a_pad_id_inside_the_text():
    tokens = jnp.asarray([[5, 0, 7, 0, 0], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]])
    assert masked.token_mask(tokens, 0).tolist() == [
        [True, True, True, False, False],
        [False] * 5,
        [True] * 5,
    ]
    lists = jnp.asarray([[[4, 9, 9], [4, 9, 5]], [[9, 9, 9], [4, 5, 9]]])
    assert masked.token_mask(lists, 9).sum(-1).tolist() == [[1, 3], [0, 2]]


@pytest.mark.parametrize("junk", [np.inf, -np.inf, np.nan], ids=str)
def test_reductions_ignore_junk(junk):
    x = jnp.asarray([[1.0, 2.0, junk], [junk, 4.0, junk]])
    where = jnp.asarray([[True, True, False], [False, True, False]])
    assert masked.mean(x, where) == pytest.approx(7 / 3)
    assert masked.count(x, where) == 3
    assert masked.total(x, where) == 7
    log_mass = masked.logsumexp(x, where)
    np.testing.assert_allclose(
        log_mass, [math.log(math.exp(1) + math.exp(2)), 4.0], rtol=1e-6
    )
    np.testing.assert_allclose(masked.softmax(x, where).sum(-1), [1, 1], rtol=1e-6)
    for function in (masked.mean, masked.logsumexp, masked.log_softmax, masked.softmax):
        gradient = jax.grad(lambda x, f=function: jnp.sum(f(x, where) ** 2))(x)
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[~np.asarray(where)] == 0).all()


def test_nothing_valid():
    x = jnp.asarray([[np.nan, np.inf]])
    nothing = jnp.zeros((1, 2), bool)
    assert masked.mean(x, nothing) == 0
    assert masked.logsumexp(x, nothing)[0] == np.float32(masked.LOWEST)
    assert masked.softmax(x, nothing).tolist() == [[0, 0]]
    gradient = jax.grad(lambda x: masked.logsumexp(x, nothing).sum())(x)
    assert (gradient == 0).all()


def test_logsumexp_along_any_axis_agrees_with_jax():
    x = jax.random.normal(jax.random.key(0), (3, 4)) * 50
    everywhere = jnp.ones(x.shape, bool)
    for axis in (0, 1, -1):
        np.testing.assert_allclose(
            masked.logsumexp(x, everywhere, axis),
            jax.nn.logsumexp(x, axis=axis),
            rtol=1e-6,
        )


def test_sums_and_counts_merge_into_the_mean_of_the_whole():
    x = jnp.arange(10.0)
    where = x % 3 > 0
    sums, counts = zip(
        *[
            masked.sum_and_count(x[part], where[part])
            for part in (slice(3), slice(3, 10))
        ]
    )
    assert sum(sums) / sum(counts) == pytest.approx(float(masked.mean(x, where)))


def test_middle_ranks_share_the_places_of_ties():
    labels = jnp.asarray([[2.0, 3.0, 2.0, 9.0, 1.0]])
    where = jnp.asarray([[True, True, True, False, True]])
    ranks = pairs.middle_ranks(labels, where)
    assert ranks[where].tolist() == [2.5, 1, 2.5, 4]


def test_preferences_are_strict():
    found = pairs.preferences(jnp.asarray([1.0, 2.0, 2.0]), jnp.asarray([True] * 3))
    assert found.astype(int).tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("block_size", [None, 1, 3, 7, 20])
def test_chunks_equal_the_whole(block_size, spread):
    x = jax.random.normal(jax.random.key(0), (7, 4))
    rows = jnp.arange(7)

    def function(x, rows):
        return {"y": jnp.sin(x) * rows[:, None], "sum": jnp.sum(x, -1)}

    def loss(x):
        out = chunked.map_rows(function, x, rows, block_size=block_size, spread=spread)
        return jnp.sum(out["y"] ** 2) + jnp.sum(out["sum"]), out

    whole = function(x, rows)
    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(x)
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    expected = 2 * whole["y"] * jnp.cos(x) * rows[:, None] + 1
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
