"""Learning rates as functions of the step, named or bound in a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from distill_jax.io.errors import UserError

__all__ = ["constant", "epochs_to_floor", "floor", "linear"]

Schedule = Callable[[Any], Any]


def constant(*, peak: float, warmup: int = 0) -> Schedule:
    """A linear rise from 0 over ``warmup`` steps, then ``peak``."""
    return lambda step: peak * _rise(step, warmup)


def linear(*, peak: float, warmup: int, steps: int) -> Schedule:
    """A linear rise over ``warmup`` steps, then linearly to 0 at ``steps``.

    The first update has learning rate 0 when there is a warm-up, as in
    ``transformers.get_linear_schedule_with_warmup``.
    """
    return floor(peak=peak, warmup=warmup, steps=steps, least=0.0)


def floor(*, peak: float, warmup: int, steps: int, least: float = 0.1) -> Schedule:
    """As ``linear``, but never below ``least * peak`` after the warm-up.

    The fall is a straight line from 1 at ``warmup`` towards 0 at ``steps``, held at
    the floor once it gets there.
    """
    _positive(steps=steps)
    if warmup > steps:
        raise UserError(
            f"a warm-up of {warmup} steps is longer than the {steps} steps",
            "lower the warm-up or train for longer",
        )

    def multiplier(step: Any) -> Any:
        step = jnp.asarray(step, jnp.float32)
        fall = (steps - step) / max(1, steps - warmup)
        return jnp.where(step < warmup, _rise(step, warmup), jnp.maximum(least, fall))

    return lambda step: peak * multiplier(step)


def epochs_to_floor(
    *, peak: float, steps_per_epoch: int, epochs: int, least: float = 0.1
) -> Schedule:
    """Half an epoch (at least 10 steps) of warm-up, then linear to a floor.

    Source: the schedule of the specialised retrievers (2025), 30 epochs.
    """
    _positive(steps_per_epoch=steps_per_epoch, epochs=epochs)
    warmup = max(10, steps_per_epoch // 2)
    total = max(steps_per_epoch * epochs, warmup)
    return floor(peak=peak, warmup=warmup, steps=total, least=least)


def _rise(step: Any, warmup: int) -> Any:
    if not warmup:
        return jnp.ones((), jnp.float32)
    return jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / warmup)


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(
                f"{name} is {value}: there are fewer queries than one batch holds, "
                "or nothing to train",
                "use a smaller batch or more queries",
            )
