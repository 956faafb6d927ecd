"""Weights between those that a training started from and those that it ended with.

What a model knew of other texts is lost by degrees as it learns; a mean of both keeps
most of the one and of the other (Wortsman et al. 2022, WiSE-FT; Xiao et al. 2023,
LM-Cocktail).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.workspace.console import say


def between(start: Any, trained: Any, share: float) -> Any:
    """``share * trained + (1 - share) * start``, leaf by leaf, in float32 and back.

    Args:
        start, trained: trees of parameters of one shape.
        share: 0 is the start and 1 the trained, exactly.
    """

    def mean(old: Any, new: Any) -> np.ndarray:
        old, new = np.asarray(old), np.asarray(new)
        if share in (0.0, 1.0) or np.array_equal(old, new):
            return new if share else old  # what was not trained keeps its bits
        mixed = share * new.astype(np.float32) + (1 - share) * old.astype(np.float32)
        return mixed.astype(new.dtype)

    return jax.tree.map(mean, start, trained)


def chosen(
    start: Any,
    trained: Any,
    shares: Sequence[float],
    evaluate: Callable[[Any, int], dict[str, float]] | None,
    measure: str | None,
) -> tuple[Any, dict[str, Any]]:
    """The mean that measures best, and what each measured.

    Args:
        shares: of the trained weights, in [0, 1].
        evaluate: ``(params, step) -> {measure: value}``; None takes the greatest share.
        measure: its name; less is better of "loss", more of any other.

    Raises:
        UserError: a share outside [0, 1].
    """
    if not all(0 <= share <= 1 for share in shares):
        raise UserError(
            f"averages {tuple(shares)}: shares of the trained weights lie in [0, 1]",
            "e.g. averages = (0.0, 0.5, 1.0)",
        )
    ordered = sorted(set(shares))
    if evaluate is None or measure is None:
        return between(start, trained, ordered[-1]), {"share": ordered[-1]}
    sign = -1.0 if measure == "loss" else 1.0
    values = {}
    for share in ordered:
        values[share] = evaluate(between(start, trained, share), -1)[measure]
    best = max(ordered, key=lambda share: (sign * values[share], -share))
    told = ", ".join(f"{share:g}: {found:.4f}" for share, found in values.items())
    say(f"{measure} on dev by the share of trained weights: {told}; {best:g} is kept")
    return between(start, trained, best), {
        "share": best,
        "measured": {f"{share:g}": value for share, value in values.items()},
    }
