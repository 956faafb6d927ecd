"""The optimizer and the schedule of a training, from the functions that a recipe names.

A function is called with the settings that it has parameters for; what a recipe binds
to the function itself goes before them::

    from __gin__ import dynamic_registration
    from distill_jax.training import optimizers

    OPTIMIZER = @optimizers.adamw
    optimizers.adamw.b2 = 0.98
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import optax

from distill_jax.io.errors import UserError
from distill_jax.io.values import Named
from distill_jax.training import optimizers, schedules

OptimizerMaker: TypeAlias = Annotated[
    Callable[..., Any], Named("distill_jax.training.optimizers")
]
ScheduleMaker: TypeAlias = Annotated[
    Callable[..., Any], Named("distill_jax.training.schedules")
]


def optimizer(
    make: OptimizerMaker | str,
    learning_rate: schedules.Schedule,
    *,
    weight_decay: float,
    clip: float | None,
) -> optimizers.Optimizer:
    """What ``make`` gives; an optax transformation is clipped here.

    Args:
        make: takes ``learning_rate``, and ``weight_decay`` and ``clip`` if it can.
        clip: greatest global norm of the gradient of the whole batch; None for none.
    """
    made = _called(
        _function(make, optimizers),
        {"learning_rate": learning_rate, "weight_decay": weight_decay, "clip": clip},
    )
    if isinstance(made, optimizers.Optimizer):
        return made
    if not isinstance(made, optax.GradientTransformation):
        raise UserError(
            f"the optimizer made a {type(made).__name__}",
            "needed is an optax.GradientTransformation",
        )
    return optimizers.Optimizer(
        transform=optimizers.clipped(made, clip), schedule=learning_rate
    )


def schedule(make: ScheduleMaker | str, **settings: Any) -> schedules.Schedule:
    """What ``make`` gives: the learning rate of each step.

    Args:
        settings: peak, warmup, steps, steps_per_epoch, epochs; None is unknown.
    """
    known = {name: value for name, value in settings.items() if value is not None}
    return _called(_function(make, schedules), known)


def _function(named: Any, module: Any) -> Callable[..., Any]:
    return getattr(module, named) if isinstance(named, str) else named


def _called(make: Callable[..., Any], settings: dict[str, Any]) -> Any:
    """``make`` with those of the settings that it has parameters for."""
    bound = make.keywords if isinstance(make, functools.partial) else {}
    parameters = inspect.signature(make).parameters
    given = {k: v for k, v in settings.items() if k in parameters and k not in bound}
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.KEYWORD_ONLY
        and name not in given
    ]
    if missing:
        function = inspect.unwrap(getattr(make, "func", make))
        raise UserError(
            f"{function.__name__} needs {', '.join(missing)}, which this recipe "
            "does not set",
            "epochs and steps_per_epoch come with --gin.EPOCHS=N; bind the others to "
            "the function",
        )
    return make(**given)
