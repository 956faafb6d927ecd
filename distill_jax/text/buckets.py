"""Length buckets: few compiled shapes, little padding, constant tokens a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from distill_jax.io.errors import UserError

LENGTH_BUCKETS = (32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512)
"""Default: few shapes to compile. ``ladder`` pads less where many items pay for it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Items that run together, padded to one length.

    Attributes:
        rows: int32[size], positions of the items, -1 pads.
        length: tokens that every item is padded to.
        size: items of every batch of this length, the static shape.
    """

    rows: np.ndarray
    length: int
    size: int

    @property
    def where(self) -> np.ndarray:
        """bool[size]: which rows are items."""
        return self.rows >= 0


def bucket_of(length: int, buckets: Sequence[int] = LENGTH_BUCKETS) -> int:
    """The smallest bucket that holds ``length`` tokens.

    Raises:
        UserError: none does.
    """
    for bucket in buckets:
        if length <= bucket:
            return int(bucket)
    raise UserError(
        f"a text of {length} tokens is longer than the largest bucket, {buckets[-1]}",
        "set a smaller DOC_LENGTH or QUERY_LENGTH, or give larger buckets",
    )


def buckets_up_to(
    length: int, buckets: Sequence[int] = LENGTH_BUCKETS
) -> tuple[int, ...]:
    """The buckets below ``length``, then ``length`` itself, for texts cut there."""
    return (*(int(b) for b in buckets if b < length), int(length))


def ladder(
    lengths: np.ndarray, count: int = 16, multiple_of: int = 4
) -> tuple[int, ...]:
    """The ``count`` bucket lengths that pad these texts least (exact, by dynamic
    programming over multiples of ``multiple_of``).

    Args:
        lengths: int[M], token counts; a sample will do.
        count: compiled shapes allowed.
        multiple_of: granularity of the lengths.

    Returns:
        Ascending bucket lengths; the last one holds the longest text.
    """
    lengths = np.asarray(lengths)
    steps = np.maximum(-(-lengths // multiple_of), 1)
    if not len(steps):
        return (multiple_of,)
    top = int(steps.max())
    # items[b] = texts that need at most b steps.
    items = np.concatenate([[0], np.cumsum(np.bincount(steps, minlength=top + 1)[1:])])
    ends = np.arange(top + 1)
    best = np.where(ends == 0, 0.0, np.inf)
    choices = []
    for _ in range(min(count, top)):
        # cost[a, b]: everything in (a, b] padded to b.
        cost = best[:, None] + (items[None, :] - items[:, None]) * ends[None, :]
        cost = np.where(ends[:, None] < ends[None, :], cost, np.inf)
        choice = cost.argmin(0)
        candidate = cost[choice, ends]
        candidate[0] = 0.0
        choices.append(choice)
        best = candidate
    cuts, end = [], top
    for choice in reversed(choices):
        if end == 0:
            break
        cuts.append(end * multiple_of)
        end = int(choice[end])
    return tuple(sorted(cuts))


def plan(
    lengths: np.ndarray,
    tokens_per_batch: int,
    buckets: Sequence[int] = LENGTH_BUCKETS,
    multiple_of: int = 1,
) -> list[Batch]:
    """Batches of about constant token count, for work whose order is free.

    Every bucket length has one batch size, ``tokens_per_batch / length`` rounded down
    to ``multiple_of``, so there are at most ``len(buckets)`` compiled shapes. Items are
    taken longest first, and a batch that its bucket cannot fill continues with the next
    shorter ones: only the very last batch has empty places (-1).

    Args:
        lengths: int[M], tokens of each item.
        tokens_per_batch: padded tokens a batch holds at most (at least one item).
        buckets: allowed lengths, ascending.
        multiple_of: batch sizes are multiples of it (devices on the data axis).

    Returns:
        Batches, longest first: the largest shape compiles, and fails, first.

    Raises:
        UserError: an item is longer than the largest bucket.
    """
    lengths = np.asarray(lengths)
    if not len(lengths):
        return []
    allowed = sorted(int(b) for b in buckets)
    bucket_of(int(lengths.max()), allowed)
    bounds = np.asarray(allowed)
    order = np.argsort(-lengths, kind="stable").astype(np.int32)
    which = np.searchsorted(bounds, lengths[order])
    sizes = np.maximum(tokens_per_batch // bounds // multiple_of, 1) * multiple_of
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        length, size = allowed[which[start]], int(sizes[which[start]])
        rows = order[start : start + size]
        if len(rows) < size:
            rows = np.concatenate([rows, np.full(size - len(rows), -1, np.int32)])
        batches.append(Batch(rows, length, size))
        start += size
    return batches


def waste(batches: Sequence[Batch], lengths: np.ndarray) -> float:
    """The share of computed tokens that are padding, empty places included."""
    computed = sum(batch.length * batch.size for batch in batches)
    real = sum(int(np.asarray(lengths)[b.rows[b.where]].sum()) for b in batches)
    return 1.0 - real / computed if computed else 0.0
