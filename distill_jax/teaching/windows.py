"""Ordering long lists through a window that slides from the back to the front."""

from __future__ import annotations

from collections.abc import Sequence

from distill_jax.io.errors import UserError


def windows(count: int, window: int, step: int) -> list[tuple[int, int]]:
    """(start, end) of each window of ``count`` ranks, in the order of the calls.

    The last one is clamped to the front, so that every rank is in a window whatever
    ``count`` is; a list of one needs none. As rank_llm; RankGPT's own loop leaves the
    top of most lists out.
    """
    check(window, step)
    if count < 2:
        return []
    found, end = [], count
    start = count - window
    while True:
        found.append((max(start, 0), end))
        if start <= 0:
            return found
        start, end = start - step, start - step + window


def chunks(count: int, window: int) -> list[tuple[int, int]]:
    """Windows that do not overlap: each document is scored once."""
    check(window, window)
    return [(at, min(at + window, count)) for at in range(0, count, window)]


def check(window: int, step: int) -> None:
    """Raises UserError for windows that would leave documents out or never end."""
    if window < 2 or not 1 <= step <= window:
        raise UserError(
            f"windows of {window} with a step of {step}",
            "give a window of 2 or more, and a step from 1 to the window",
        )


def kendall_tau(first: Sequence[int], second: Sequence[int]) -> float:
    """Agreement of two orders of the same things in [-1, 1]; 1.0 for fewer than 2."""
    place = {thing: rank for rank, thing in enumerate(second)}
    ranks = [place[thing] for thing in first]
    n = len(ranks)
    if n < 2:
        return 1.0
    discordant = sum(ranks[i] > ranks[j] for i in range(n) for j in range(i + 1, n))
    return 1.0 - 4.0 * discordant / (n * (n - 1))
