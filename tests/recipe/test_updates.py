"""Optimizers and schedules of a recipe: by name, with bindings, of one's own."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import losses
from distill_jax.cli.config import configured_job
from distill_jax.cli.flags import parse_flags
from distill_jax.io.errors import UserError
from distill_jax.losses import Listwise
from distill_jax.recipe.training import Training
from distill_jax.training import optimizers, schedules
from distill_jax.workspace.describe import describe

PARAMS = {"kernel": jnp.ones((2, 2))}
GRADIENTS = [{"kernel": jnp.array([[3.0, -4.0], [0.5, g]])} for g in (1.0, -2.0, 0.1)]


def made(steps: int = 10, **settings):
    objective = Listwise(losses.ranknet)
    return Training(objective=objective, **settings).build_optimizer(steps)


def moved(transform) -> np.ndarray:
    state, params = transform.init(PARAMS), PARAMS
    for gradient in GRADIENTS:
        updates, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["kernel"])


def test_a_factory_takes_the_settings_that_it_has_parameters_for():
    found = made(
        optimizer=functools.partial(optimizers.adamw, b2=0.9),
        learning_rate=0.1,
        schedule="constant",
        warmup=0,
        weight_decay=0.2,
        clip=None,
    )
    theirs = optax.adamw(0.1, b2=0.9, weight_decay=0.2)
    np.testing.assert_allclose(moved(found.transform), moved(theirs), rtol=1e-6)


def test_what_is_bound_to_the_factory_goes_before_the_setting():
    make = functools.partial(optimizers.adamw, weight_decay=0.5, clip=None)
    found = made(optimizer=make, weight_decay=0.0, schedule="constant", warmup=0)
    theirs = optax.adamw(1e-4, weight_decay=0.5)
    np.testing.assert_allclose(moved(found.transform), moved(theirs), rtol=1e-6)


def test_a_transformation_of_optax_is_clipped_as_ours_are():
    found = made(
        optimizer=optax.sgd, learning_rate=0.5, schedule="constant", warmup=0, clip=1.0
    )
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.5))
    np.testing.assert_allclose(moved(found.transform), moved(theirs), rtol=1e-6)


def test_a_schedule_takes_bindings_and_ones_own_is_called_alike():
    least = functools.partial(schedules.floor, least=0.5)
    found = made(schedule=least, learning_rate=2.0, warmup=0, steps=10)
    assert float(found.schedule(9)) == pytest.approx(1.0)

    def halved(*, peak, steps):
        return lambda step: peak * 0.5 ** (step / steps)

    found = made(schedule=halved, learning_rate=2.0)
    assert found.schedule(10) == pytest.approx(1.0)


def test_a_schedule_by_epochs_asks_for_epochs():
    with pytest.raises(UserError, match="epochs_to_floor needs steps_per_epoch"):
        made(schedule="epochs_to_floor", steps=10)
    found = made(schedule="epochs_to_floor", epochs=5, steps=200, learning_rate=1.0)
    assert float(found.schedule(10)) == pytest.approx(0.5)


def test_a_factory_that_makes_no_optimizer_is_refused():
    with pytest.raises(UserError, match="made a float"):
        made(optimizer=lambda *, learning_rate: 1.0)


def settings_of(tmp_path, *lines: str) -> Training:
    overlay = tmp_path / "mine.gin"
    overlay.write_text(
        "from __gin__ import dynamic_registration\n"
        "from distill_jax.training import optimizers\n"
        "from distill_jax.training import schedules\n" + "\n".join(lines)
    )
    argv = ["--gin_file=quickstart.gin", f"--gin_file={overlay}"]
    argv += [f"--gin.MODEL_DIR={tmp_path / 'run'}"]
    job, _ = configured_job(parse_flags(argv))
    return job.stages[0].training


def test_bindings_of_an_optimizer_reach_it_and_its_record(tmp_path):
    plain = settings_of(tmp_path, "OPTIMIZER = 'adamw'")
    bound = settings_of(tmp_path, "OPTIMIZER = 'adamw'", "optimizers.adamw.b2 = 0.9")
    by_object = settings_of(
        tmp_path, "OPTIMIZER = @optimizers.adamw", "optimizers.adamw.b2 = 0.9"
    )
    scheduled = settings_of(
        tmp_path, "SCHEDULE = @schedules.floor", "schedules.floor.least = 0.3"
    )
    assert describe(bound) == describe(by_object) != describe(plain)
    assert moved(bound.build_optimizer(3).transform).tolist() != (
        moved(plain.build_optimizer(3).transform).tolist()
    )
    rate = scheduled.build_optimizer(100).schedule
    assert float(rate(99)) == pytest.approx(0.3 * scheduled.learning_rate)


def test_a_binding_of_an_optimizer_that_is_not_used_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing reads"):
        settings_of(tmp_path, "optimizers.adafactor.decay_rate = 0.9")
