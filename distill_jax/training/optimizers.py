"""Optimisers and learning-rate schedules, each a function that a recipe can bind."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from distill_jax.io.errors import UserError
from distill_jax.training.trainable import ALL, Trainable

Schedule = Callable[[Any], Any]

# Norms and biases are not decayed: shrinking them is no regularisation.
_UNDECAYED = re.compile(r"bias|norm|scale", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """A gradient transformation, its learning rate by step for the log, and of what.

    Attributes:
        trainable: the parameters that it changes; it has moments of these alone.
    """

    transform: optax.GradientTransformation
    schedule: Schedule
    trainable: Trainable = ALL

    def init(self, params: dict) -> Any:
        """The moments before the first step, of a student's parameters."""
        return self.transform.init(self.trainable.parted(params)[0])


def adamw(
    *,
    learning_rate: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    clip: float | None = 1.0,
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019), decay on matrices only.

    Args:
        learning_rate: a number, or a function of the step (0 for the first update).
        clip: greatest global norm of the gradient of the whole batch; None for none.
    """
    schedule = _schedule(learning_rate)
    transform = optax.adamw(
        schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decayed
    )
    return Optimizer(transform=_clipped(transform, clip), schedule=schedule)


def adafactor(
    *,
    learning_rate: float | Schedule,
    relative: bool = True,
    decay_rate: float = 0.8,
    clip: float | None = None,
    weight_decay: float | None = None,
) -> Optimizer:
    """Adafactor (Shazeer & Stern 2018), as T5 is fine-tuned: no first moment.

    Args:
        learning_rate: a number, or a function of the step.
        relative: scale each update by the root mean square of its parameter.
        clip: greatest global norm before the factored update clipping; None for none.
    """
    schedule = _schedule(learning_rate)
    transform = optax.adafactor(
        schedule,
        multiply_by_parameter_scale=relative,
        decay_rate=decay_rate,
        weight_decay_rate=weight_decay,
        weight_decay_mask=decayed,
    )
    return Optimizer(transform=_clipped(transform, clip), schedule=schedule)


def constant(*, peak: float, warmup: int = 0) -> Schedule:
    """A linear rise from 0 over ``warmup`` steps, then ``peak``."""
    return lambda step: peak * _rise(step, warmup)


def linear(*, peak: float, warmup: int, steps: int) -> Schedule:
    """A linear rise over ``warmup`` steps, then linearly to 0 at ``steps``.

    The first update has learning rate 0 when there is a warm-up, as in
    ``transformers.get_linear_schedule_with_warmup``.
    """
    return linear_to_floor(peak=peak, warmup=warmup, steps=steps, floor=0.0)


def linear_to_floor(
    *, peak: float, warmup: int, steps: int, floor: float = 0.1
) -> Schedule:
    """As ``linear``, but never below ``floor * peak`` after the warm-up.

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
        return jnp.where(step < warmup, _rise(step, warmup), jnp.maximum(floor, fall))

    return lambda step: peak * multiplier(step)


def epochs_to_floor(
    *, peak: float, steps_per_epoch: int, epochs: int, floor: float = 0.1
) -> Schedule:
    """Half an epoch (at least 10 steps) of warm-up, then linear to a floor.

    Source: the schedule of the specialised retrievers (2025), 30 epochs.
    """
    _positive(steps_per_epoch=steps_per_epoch, epochs=epochs)
    warmup = max(10, steps_per_epoch // 2)
    total = max(steps_per_epoch * epochs, warmup)
    return linear_to_floor(peak=peak, warmup=warmup, steps=total, floor=floor)


def decayed(params: Any) -> Any:
    """True for the parameters that weight decay shrinks: matrices of layers."""

    def of(path: Any, leaf: Any) -> bool:
        name = jax.tree_util.keystr(path)
        return leaf.ndim > 1 and not _UNDECAYED.search(name)

    return jax.tree_util.tree_map_with_path(of, params)


def _rise(step: Any, warmup: int) -> Any:
    return (
        jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / max(1, warmup))
        if (warmup)
        else jnp.ones((), jnp.float32)
    )


def _schedule(learning_rate: float | Schedule) -> Schedule:
    if callable(learning_rate):
        return learning_rate
    return constant(peak=learning_rate)


def _clipped(
    transform: optax.GradientTransformation, clip: float | None
) -> optax.GradientTransformation:
    if clip is None:
        return transform
    return optax.chain(optax.clip_by_global_norm(clip), transform)


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(
                f"{name} is {value}: there are fewer queries than one batch holds, "
                "or nothing to train",
                "use a smaller batch or more queries",
            )
