"""Batches of several collections: rates, and the same batches after a restart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distill_jax.inputs.mixing import MixedFeed, mixing_rates
from distill_jax.io.errors import UserError


def numbered(name: str):
    return lambda start: ((name, number) for number in itertools.count(start))


def mixed(seed: int = 0, rates: tuple[float, ...] = (0.2, 0.5, 0.3)) -> MixedFeed:
    feeds = tuple(numbered(name) for name in "abc")
    return MixedFeed(feeds=feeds, rates=rates, seed=seed)


def take(feed: MixedFeed, start: int, count: int) -> list:
    return list(itertools.islice(feed(start), count))


def test_rates_are_proportional_to_the_lists_or_flattened_by_the_temperature():
    np.testing.assert_allclose(mixing_rates([300, 100]), [0.75, 0.25])
    # T = 2 by hand: sqrt(900) : sqrt(100) = 3 : 1.
    np.testing.assert_allclose(mixing_rates([900, 100], temperature=2), [0.75, 0.25])
    np.testing.assert_allclose(mixing_rates([900, 1], temperature=1e6), 0.5, atol=1e-4)
    np.testing.assert_allclose(mixing_rates([900, 1], (1, 3)), [0.25, 0.75])


@pytest.mark.parametrize("rates", [(1,), (1, 2, 3), (0, 0), (-1, 2), (np.nan, 1)])
def test_rates_that_mix_nothing_are_refused(rates):
    with pytest.raises(UserError, match="rates"):
        mixing_rates([10, 20], rates)


def test_a_collections_batches_come_in_its_own_order_without_a_gap():
    batches = take(mixed(), 0, 500)
    for name in "abc":
        numbers = [number for of, number in batches if of == name]
        assert numbers == list(range(len(numbers)))


def test_collections_are_drawn_at_their_rates():
    drawn = [of for of, _ in take(mixed(), 0, 9000)]
    shares = [drawn.count(name) / len(drawn) for name in "abc"]
    # Three standard deviations of a share of 9,000 draws are 0.016.
    np.testing.assert_allclose(shares, [0.2, 0.5, 0.3], atol=0.016)
    assert {of for of, _ in take(mixed(rates=(0.0, 1.0, 0.0)), 0, 50)} == {"b"}


@pytest.mark.parametrize("start", [0, 1, 37, 4095, 4096, 9001])
def test_a_resumed_feed_goes_on_with_the_same_batches(start):
    whole = take(mixed(), 0, start + 60)
    assert take(mixed(), start, 60) == whole[start:]


def test_another_seed_draws_other_collections():
    assert take(mixed(0), 0, 60) != take(mixed(1), 0, 60)
