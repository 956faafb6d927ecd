"""Every item once, static sizes, and little padding."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_jax.io.errors import UserError
from distill_jax.text.buckets import (
    LENGTH_BUCKETS,
    bucket_of,
    buckets_up_to,
    ladder,
    plan,
    waste,
)


@given(
    st.lists(st.integers(0, 512), max_size=300),
    st.integers(1, 4096),
    st.integers(1, 8),
)
def test_a_plan_holds_each_item_once_in_static_shapes(lengths, tokens, multiple):
    lengths = np.asarray(lengths, np.int64)
    batches = plan(lengths, tokens, multiple_of=multiple)
    rows = np.concatenate([b.rows[b.where] for b in batches] or [np.zeros(0, int)])
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    sizes = {}
    for batch in batches:
        assert batch.rows.shape == (batch.size,)
        assert batch.size % multiple == 0
        assert batch.length in LENGTH_BUCKETS
        assert lengths[batch.rows[batch.where]].max() <= batch.length
        assert sizes.setdefault(batch.length, batch.size) == batch.size
        assert batch.size == multiple or batch.size * batch.length <= tokens
    assert sum(not b.where.all() for b in batches) <= 1


def ms_marco_lengths(count):
    """A log-normal with MS MARCO passages' mean 68, 95th percentile 112, max 191."""
    draws = np.random.default_rng(0).lognormal(np.log(65.3), 0.33, count)
    lengths = np.clip(draws, 5, 191).astype(np.int64)
    assert abs(lengths.mean() - 68) < 1
    assert abs(np.percentile(lengths, 95) - 112) < 2
    return lengths


def test_waste_is_under_five_percent_on_ms_marco_lengths():
    lengths = ms_marco_lengths(400_000)
    buckets = ladder(lengths[:10_000])
    assert len(buckets) <= 16
    # The sample's longest text need not be the collection's.
    buckets = (*buckets[:-1], 192)
    assert waste(plan(lengths, 32_768, buckets), lengths) < 0.05
    assert waste(plan(lengths, 32_768, (192,)), lengths) > 0.6


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(1, 4),
)
def test_the_ladder_is_the_best_of_all(lengths, count):
    lengths = np.asarray(lengths)
    chosen = ladder(lengths, count, multiple_of=8)

    def cost(buckets):
        return sum(bucket_of(int(n), buckets) for n in lengths)

    top = -(-int(lengths.max()) // 8) * 8
    assert chosen[-1] == top
    assert len(chosen) <= count
    steps = range(8, top, 8)
    best = min(
        cost((*inner, top))
        for size in range(count)
        for inner in itertools.combinations(steps, size)
    )
    assert cost(chosen) == best


def test_too_long_a_text_is_refused():
    with pytest.raises(UserError, match="600 tokens"):
        plan(np.asarray([3, 600]), 1024)
    assert bucket_of(33) == 48
    assert buckets_up_to(100) == (32, 48, 64, 96, 100)
    assert plan(np.zeros(0, int), 64) == []
    assert waste([], np.zeros(0)) == 0.0
