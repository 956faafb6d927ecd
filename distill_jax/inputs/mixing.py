"""Batches of several collections: each batch is of one, drawn at its rate.

So negatives of a batch are documents of the query's own collection, and row numbers
mean what they mean there. Which collection a step draws depends on the seed and the
step alone: a resumed run continues with the same batches.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError

_BLOCK = 4096  # steps drawn by one generator, so that a late step is found fast


def mixing_rates(
    sizes: Sequence[int], rates: Sequence[float] = (), temperature: float = 1.0
) -> np.ndarray:
    r"""The share of batches of each collection; they sum to 1.

    .. math::
        r_k = \frac{n_k^{1/T}}{\sum_j n_j^{1/T}}

    Source: Raffel et al. 2020, section 3.5.2: examples-proportional mixing is T = 1,
    and the greater T the more equal are the rates.

    Args:
        sizes: number of lists of each collection, n.
        rates: relative rates in place of these, one a collection; () for none.
        temperature: T, above 0.

    Returns:
        float64[K].

    Raises:
        UserError: another number of rates than of collections, or none is above 0.
    """
    if len(rates):
        if len(rates) != len(sizes):
            raise UserError(
                f"{len(rates)} rates for {len(sizes)} collections",
                "give RATES one number a collection, or leave it out",
            )
        weights = np.asarray(rates, np.float64)
    else:
        weights = np.asarray(sizes, np.float64) ** (1.0 / temperature)
    if not (np.all(weights >= 0) and weights.sum() > 0):
        raise UserError(
            f"rates {tuple(rates)}: numbers from 0, and one of them above 0",
            "e.g. RATES=(3, 1)",
        )
    return weights / weights.sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedFeed:
    """Training batches of several feeds, from any step on.

    Attributes:
        feeds: ``feed(s)`` yields a collection's own batches s, s + 1, ...
        rates: share of the batches of each, which sum to 1.
        seed: of the draws.
    """

    feeds: tuple[Callable[[int], Iterator[Any]], ...]
    rates: tuple[float, ...]
    seed: int = 0

    def drawn(self, start: int) -> Iterator[int]:
        """Number of the feed of steps ``start``, ``start + 1``, ..."""
        first, skipped = divmod(start, _BLOCK)
        for block in itertools.count(first):
            key = np.asarray([self.seed & (2**64 - 1), block], np.uint64)
            random = np.random.Generator(np.random.Philox(key=key))
            draws = random.choice(len(self.feeds), size=_BLOCK, p=self.rates)
            yield from draws[skipped:].tolist()
            skipped = 0

    def __call__(self, start: int) -> Iterator[Any]:
        before = np.bincount(
            list(itertools.islice(self.drawn(0), start)), minlength=len(self.feeds)
        )
        batches = [
            feed(int(taken)) for feed, taken in zip(self.feeds, before, strict=True)
        ]
        for number in self.drawn(start):
            yield next(batches[number])
