"""The loss of held-out batches is that of all of them as one batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from distill_jax.io.errors import UserError
from distill_jax.runtime import sharding
from distill_jax.training.memory import compiled_step, planned
from distill_jax.training.optimizers import adamw
from distill_jax.training.step import make_gradient
from distill_jax.training.validation import validation

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parent / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

MESH = sharding.make_mesh("data=2", devices=jax.devices()[:2])


def test_unequal_batches_count_by_their_lists_and_pairs():
    graphdef, params = toy.student(0.3)
    halves = [toy.batch(0), toy.batch(1)]
    both = jax.tree.map(lambda *leaves: np.concatenate(leaves), *halves)
    run = jax.jit(make_gradient(graphdef, toy.LISTS))
    (loss, (parts, _)), _ = run(params, both, None)
    measure = validation(graphdef, toy.LISTS, lambda: iter(halves), MESH)
    found = measure(params)
    assert found["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert found["pair"] == pytest.approx(float(parts["pair"]), rel=1e-5)


def test_losses_across_queries_are_a_mean_over_lists_not_over_batches():
    """Empty lists that fill the last batch, as for many devices, count for nothing."""
    graphdef, params = toy.student()

    @jax.jit
    def loss(batch):
        student = nnx.merge(graphdef, nnx.State(params))
        return toy.GLOBAL(student, student.represent(batch), batch)[0]

    def filled(leaf):
        return np.concatenate([leaf, np.zeros((12, *leaf.shape[1:]), leaf.dtype)])

    full, short = toy.batch(0), toy.batch(1, rows=4)
    batches = [full, jax.tree.map(filled, short)]
    # The second list of either is empty: fifteen and three count.
    expected = float(15 * loss(full) + 3 * loss(short)) / 18
    assert expected != pytest.approx(float(loss(full) + loss(short)) / 2, rel=1e-2)
    measure = validation(graphdef, toy.GLOBAL, lambda: iter(batches), MESH)
    assert measure(params)["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def represented(monkeypatch) -> list[int]:
    """How many queries each call of ``represent`` was given."""
    found, inner = [], toy.Towers.represent

    def noted(self, batch, *, rngs=None):
        found.append(batch.targets.labels.shape[0])
        return inner(self, batch, rngs=rngs)

    monkeypatch.setattr(toy.Towers, "represent", noted)
    return found


@pytest.mark.parametrize("name", ["GLOBAL", "LISTS"])
@pytest.mark.parametrize("size", [4, 3, None])
def test_a_batch_is_represented_in_pieces(monkeypatch, represented, name, size):
    """What training splits, for memory, its evaluation does not take whole."""
    graphdef, params = toy.student()
    objective, batch = getattr(toy, name), toy.batch(0)
    whole = validation(graphdef, objective, lambda: iter([batch]), MESH)(params)
    assert {*represented} == {16}
    represented.clear()
    if size is None:  # 5 queries' tokens a device at once: 8 of 16 on two of them
        tokens = batch.query_tokens.size + batch.doc_tokens.size
        monkeypatch.setattr(
            "distill_jax.training.validation.default_tokens_per_batch",
            lambda mesh: tokens * 5 // 16,
        )
    pieces = validation(graphdef, objective, lambda: iter([batch]), MESH, at_once=size)(
        params
    )
    # Not three: they neither divide 16 nor share out over two devices.
    assert {*represented} == {{4: 4, 3: 2, None: 8}[size]}
    assert pieces == pytest.approx(whole, rel=1e-6)


def test_no_batch_is_an_error_of_the_user():
    graphdef, params = toy.student()
    with pytest.raises(UserError, match="no held-out batch"):
        validation(graphdef, toy.LISTS, lambda: iter(()), MESH)(params)


def test_memory_of_a_step_from_shapes_alone():
    graphdef, params = toy.student()
    shapes = jax.eval_shape(lambda: params)
    batch = jax.eval_shape(lambda: toy.batch(0, rows=64, docs=8, length=32))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    step = compiled_step(
        graphdef,
        shapes,
        toy.GLOBAL,
        adamw(learning_rate=1e-3),
        batch,
        mesh=mesh,
        chunk=8,
    )
    found = planned(step)
    floats = sum(leaf.size for leaf in jax.tree.leaves(params))
    tokens = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
    # Parameters and two moments of four bytes each, the batch, two counters and a key.
    assert found.state == pytest.approx(12 * floats + tokens, abs=256)
    assert 0 < found.temporary < found.peak
    assert "GiB a device" in str(found)
