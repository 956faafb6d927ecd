"""Optimisers and schedules against torch and against worked cases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.io.errors import UserError
from distill_jax.training import optimizers, schedules


def test_linear_schedule(cases):
    case = cases["schedule_linear_warmup"]
    schedule = schedules.linear(
        peak=1.0, warmup=case["inputs"]["warmup"], steps=case["inputs"]["total"]
    )
    found = [float(schedule(step)) for step in case["inputs"]["steps"]]
    np.testing.assert_allclose(found, case["expected"]["multiplier"], atol=1e-6)


def test_schedule_with_a_floor(cases):
    case = cases["schedule_with_a_floor"]
    schedule = schedules.epochs_to_floor(
        peak=2e-4,
        steps_per_epoch=case["inputs"]["steps_per_epoch"],
        epochs=case["inputs"]["epochs"],
    )
    found = [float(schedule(step)) / 2e-4 for step in case["inputs"]["steps"]]
    np.testing.assert_allclose(found, case["expected"]["multiplier"], atol=1e-6)


def test_no_step_in_an_epoch_is_an_error_of_the_user():
    with pytest.raises(UserError, match="steps_per_epoch is 0"):
        schedules.epochs_to_floor(peak=1.0, steps_per_epoch=0, epochs=3)


def test_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="warm-up of 20"):
        schedules.linear(peak=1.0, warmup=20, steps=10)


def test_constant_is_at_its_peak_from_the_first_step():
    assert float(schedules.constant(peak=0.5)(0)) == 0.5
    assert float(schedules.constant(peak=0.5, warmup=4)(1)) == 0.125


def test_the_gradient_is_clipped_once_after_accumulation(cases):
    case = cases["clip_per_microstep_trap"]
    inputs, expected = case["inputs"], case["expected"]
    gradient = jnp.mean(jnp.array(inputs["micro_grads"]), axis=0)
    optimizer = optimizers.clipped(optax.identity(), inputs["max_norm"])
    found, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose(
        found, expected["clip_once_after_accumulation"], atol=1e-5
    )


def test_adamw_is_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 3)).astype(np.float32)
    gradients = rng.normal(size=(5, 4, 3)).astype(np.float32)
    weight = torch.nn.Parameter(torch.tensor(start))
    theirs = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.1)
    ours = optimizers.adamw(learning_rate=1e-2, weight_decay=0.1, clip=1.0).transform
    params = {"kernel": jnp.array(start)}
    state = ours.init(params)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        theirs.step()
        updates, state = ours.update({"kernel": jnp.array(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["kernel"], weight.detach().numpy(), atol=1e-6)


def test_norms_and_biases_are_not_decayed():
    shape = jax.ShapeDtypeStruct
    matrix, vector = shape((3, 3), jnp.float32), shape((3,), jnp.float32)
    params = {
        "norm": {"scale": vector},
        "wi": {"kernel": matrix, "bias": vector},
        "relative_bias": {"embedding": matrix},
    }
    assert optimizers.decayed(params) == {
        "norm": {"scale": False},
        "wi": {"kernel": True, "bias": False},
        "relative_bias": {"embedding": False},
    }
