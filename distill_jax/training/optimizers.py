"""Optimizers: functions of a learning rate, named or bound in a recipe."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import optax

from distill_jax.training.schedules import Schedule, constant
from distill_jax.training.trainable import ALL, Trainable

__all__ = ["adafactor", "adamw"]

# Norms and biases are not decayed: shrinking them does not regularise.
_UNDECAYED = re.compile(r"bias|norm|scale", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """A gradient transformation, its learning rate by step for the log, and of what.

    Attributes:
        trainable: the parameters that it changes; it has moments of these alone.
        zero: moments are divided over the ``data`` axis too (ZeRO stage 1, Rajbhandari
            et al. 2020): each device updates its share of a parameter.
    """

    transform: optax.GradientTransformation
    schedule: Schedule
    trainable: Trainable = ALL
    zero: bool = False

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
    return Optimizer(transform=clipped(transform, clip), schedule=schedule)


def adafactor(
    *,
    learning_rate: float | Schedule,
    relative: bool = True,
    decay_rate: float = 0.8,
    clip: float | None = None,
    weight_decay_rate: float | None = None,
) -> Optimizer:
    """Adafactor (Shazeer & Stern 2018), as T5 is fine-tuned: no first moment.

    Args:
        learning_rate: a number, or a function of the step.
        relative: scale each update by the root mean square of its parameter.
        clip: greatest global norm before the factored update clipping; None for none.
        weight_decay_rate: share of a matrix taken off in each step, whatever the
            learning rate.
    """
    schedule = _schedule(learning_rate)
    transform = optax.adafactor(
        schedule,
        multiply_by_parameter_scale=relative,
        decay_rate=decay_rate,
        weight_decay_rate=weight_decay_rate,
        weight_decay_mask=decayed,
    )
    return Optimizer(transform=clipped(transform, clip), schedule=schedule)


def decayed(params: Any) -> Any:
    """True for the parameters that weight decay shrinks: matrices of layers."""

    def of(path: Any, leaf: Any) -> bool:
        name = jax.tree_util.keystr(path)
        return leaf.ndim > 1 and not _UNDECAYED.search(name)

    return jax.tree_util.tree_map_with_path(of, params)


def _schedule(learning_rate: float | Schedule) -> Schedule:
    if callable(learning_rate):
        return learning_rate
    return constant(peak=learning_rate)


def clipped(
    transform: optax.GradientTransformation, clip: float | None
) -> optax.GradientTransformation:
    """Of gradients whose global norm is at most ``clip``; None changes nothing."""
    if clip is None:
        return transform
    return optax.chain(optax.clip_by_global_norm(clip), transform)
