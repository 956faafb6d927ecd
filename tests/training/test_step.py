"""One step: the same numbers however the batch is split over time and devices."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from distill_jax import losses
from distill_jax.io.errors import UserError
from distill_jax.losses.mixture import Mixture, Term
from distill_jax.runtime import sharding
from distill_jax.training import optimizers, schedules
from distill_jax.training import state as states
from distill_jax.training.gradcache import join, split
from distill_jax.training.step import (
    make_gradient,
    row_keys,
    score_spread,
    train_step,
    uses_dropout,
)

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parent / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

DEVICES = jax.devices()


def gradient_of(objective, batch, *, rate=0.2, mesh=None, **options):
    """Loss, parts and gradient of one batch of the toy student."""
    graphdef, params = toy.student(rate)
    state = states.create(
        params,
        optimizers.adamw(learning_rate=1e-3),
        mesh or sharding.make_mesh(devices=DEVICES[:1]),
        seed=3,
    )
    if mesh is not None:
        batch = sharding.shard_batch(batch, mesh)
        options["rows"] = NamedSharding(mesh, sharding.BATCH)
    keys = row_keys(state, 16) if rate else None
    run = make_gradient(graphdef, objective, **options)
    run = jax.jit(run)
    (loss, (parts, _)), grads = run(state.params, batch, keys)
    return jax.device_get((loss, parts, grads))


def assert_same(one, other, tolerance=1e-5):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=1e-6),
        one,
        other,
    )


@functools.cache
def plain(objective_name, rate=0.2):
    return gradient_of(getattr(toy, objective_name), toy.batch(0), rate=rate)


@pytest.mark.parametrize("chunk", [1, 8])
def test_chunks_give_the_plain_gradient_with_dropout(chunk):
    assert_same(gradient_of(toy.GLOBAL, toy.batch(0), chunk=chunk), plain("GLOBAL"))


def test_chunks_give_the_plain_gradient_on_a_mesh():
    mesh = sharding.make_mesh("data=2,fsdp=2,model=2")
    found = gradient_of(toy.GLOBAL, toy.batch(0), chunk=8, mesh=mesh)
    assert_same(found, plain("GLOBAL"))


def test_lists_of_one_query_know_each_other_across_chunks_and_devices():
    one = toy.batch(0)
    targets = dataclasses.replace(one.targets, query_rows=np.arange(16) % 6)
    batch = dataclasses.replace(one, targets=targets)
    whole = gradient_of(toy.GLOBAL, batch)
    assert whole[1]["contrast"] < plain("GLOBAL")[1]["contrast"] - 1e-3
    mesh = sharding.make_mesh("data=2,fsdp=2,model=2")
    assert_same(gradient_of(toy.GLOBAL, batch, chunk=8, mesh=mesh), whole)


def test_dropout_changes_the_gradient():
    """Otherwise the tests above would say nothing of dropout."""
    dropped, kept = plain("GLOBAL"), plain("GLOBAL", rate=0.0)
    assert abs(dropped[0] - kept[0]) > 1e-4


@pytest.mark.parametrize("size", [2])
def test_micro_batches_give_the_plain_gradient(size):
    assert_same(gradient_of(toy.LISTS, toy.batch(0), micro_batch=size), plain("LISTS"))


def test_the_mean_of_micro_batch_means_would_be_wrong():
    """The counts of the micro-batches differ, so the exact sum is not for nothing."""
    batch = toy.batch(0)
    parts = split(batch, 2)
    means = [
        gradient_of(toy.LISTS, jax.tree.map(lambda leaf, i=i: leaf[i], parts), rate=0)[
            0
        ]
        for i in range(3)
    ]
    counts = toy.LISTS.counts(jax.tree.map(lambda leaf: leaf[0], parts))
    assert float(counts["pair"]) != float(
        toy.LISTS.counts(jax.tree.map(lambda leaf: leaf[1], parts))["pair"]
    )
    assert np.ptp(means) > 1e-3


def test_micro_batches_refuse_losses_across_queries():
    with pytest.raises(UserError, match="GradCache"):
        gradient_of(toy.GLOBAL, toy.batch(0), micro_batch=4)


def test_a_chunk_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(UserError, match="multiple of a chunk of 5"):
        gradient_of(toy.GLOBAL, toy.batch(0), chunk=5)


def test_chunk_and_micro_batch_together_are_refused():
    with pytest.raises(UserError, match="both"):
        make_gradient(None, toy.LISTS, chunk=2, micro_batch=2)


def test_split_and_join_are_inverse_and_interleaved():
    rows = jnp.arange(12)
    pieces = split(rows, 4)
    np.testing.assert_array_equal(pieces[0], [0, 3, 6, 9])
    np.testing.assert_array_equal(join(pieces), rows)


def train(mesh, steps=5, rate=0.1, optimizer=None, batches=toy.batch, **options):
    """Numbers of the first steps, and the states before and after each."""
    graphdef, params = toy.student(rate)
    optimizer = optimizer or optimizers.adamw(learning_rate=3e-2)
    state = states.create(params, optimizer, mesh, seed=3)
    options["rows"] = NamedSharding(mesh, sharding.BATCH)
    step = jax.jit(
        functools.partial(
            train_step,
            gradient=make_gradient(graphdef, toy.GLOBAL, **options),
            optimizer=optimizer,
            dropout=rate > 0,
        )
    )
    found, passed = [], [state]
    for number in range(steps):
        batch = sharding.shard_batch(batches(number), mesh)
        state, numbers = step(state, batch)
        found.append(jax.device_get(numbers))
        passed.append(state)
    return found, passed


def losses_of(spec, devices=DEVICES, **options):
    mesh = sharding.make_mesh(spec, devices=devices)
    return [float(numbers["loss"]) for numbers in train(mesh, **options)[0]]


@functools.cache
def losses_of_one_device():
    return losses_of("data=1", DEVICES[:1])


@pytest.mark.parametrize(
    "spec", ["data=2", "data=4", "data=8", "data=4,model=2", "data=2,fsdp=2,model=2"]
)
def test_losses_do_not_depend_on_the_mesh(spec):
    one = losses_of_one_device()
    assert abs(one[0] - one[-1]) > 1e-3
    np.testing.assert_allclose(losses_of(spec), one, rtol=1e-5)


def test_adafactor_trains_on_a_mesh_as_on_one_device():
    options = {
        "optimizer": optimizers.adafactor(learning_rate=1e-2),
        "steps": 3,
        "rate": 0,
    }
    one = losses_of("data=1", DEVICES[:1], **options)
    found = losses_of("fsdp=2,model=2", DEVICES[:4], **options)
    np.testing.assert_allclose(found, one, rtol=1e-5)
    assert one[0] != one[-1]


def test_a_step_that_is_not_finite_changes_nothing():
    """Neither parameters nor moments nor the step."""

    def batches(number):
        batch = toy.batch(number)
        if number == 1:
            batch.targets.labels[2, 0] = np.nan
        return batch

    mesh = sharding.make_mesh(devices=DEVICES[:1])
    found, (_, before, after) = train(mesh, 2, rate=0, batches=batches)
    assert found[0]["finite"]
    assert not found[1]["finite"]
    assert np.isnan(found[1]["loss"])
    for one, other in zip(
        jax.tree.leaves((before.step, before.params, before.opt_state)),
        jax.tree.leaves((after.step, after.params, after.opt_state)),
    ):
        np.testing.assert_array_equal(one, other)


def test_numbers_of_a_step():
    schedule = schedules.linear(peak=1e-2, warmup=2, steps=10)
    (first, second), (start, after, _) = train(
        sharding.make_mesh(devices=DEVICES[:1]),
        2,
        rate=0,
        optimizer=optimizers.adamw(learning_rate=schedule),
    )
    loss = float(first["list"]) + 0.5 * float(first["contrast"])
    assert float(first["loss"]) == pytest.approx(loss)
    assert float(first["learning_rate"]) == 0.0
    assert float(second["learning_rate"]) == pytest.approx(5e-3)
    assert float(first["gradient_norm"]) > 0
    assert float(first["score_spread"]) > 0
    # A learning rate of 0 moves nothing: the first update of a warm-up.
    np.testing.assert_array_equal(start.params["embedding"], after.params["embedding"])


def test_spread_counts_lists_of_two_docs_or_more():
    scores = jnp.array([[1.0, 3.0, jnp.inf], [5.0, 9.0, 9.0], [2.0, 2.5, 9.0]])
    where = jnp.array([[True, True, False], [True, False, False], [True, True, False]])
    total, count = score_spread(scores, where)
    assert float(total) == 2.5
    assert float(count) == 2


def test_dropout_is_found_by_tracing():
    batch = toy.batch(0)
    assert uses_dropout(*toy.student(0.1), batch)
    assert not uses_dropout(*toy.student(0.0), batch)


def temp_bytes(rows, chunk):
    """Memory of a compiled gradient besides its arguments and results."""
    graphdef, params = toy.student()
    batch = toy.batch(0, rows=rows, docs=8, length=32)
    objective = Mixture((Term("list", losses.kl_divergence),))
    run = jax.jit(make_gradient(graphdef, objective, chunk=chunk))
    analysis = run.lower(params, batch, None).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def test_memory_grows_with_the_chunk_not_with_the_batch():
    small, large = temp_bytes(64, 4), temp_bytes(64, 32)
    assert large > 4 * small
    # Four times the batch: its tokens and representations only.
    assert temp_bytes(256, 4) < 2 * small
