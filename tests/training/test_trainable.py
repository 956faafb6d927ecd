"""What is not trained keeps every bit, and has neither gradient nor moments."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import flatten
from distill_jax.runtime import sharding
from distill_jax.training import optimizers
from distill_jax.training import state as states
from distill_jax.training.loop import Fit
from distill_jax.training.step import lower_step, make_gradient
from distill_jax.training.trainable import Trainable, joined
from tests.training.stored import read_params

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parent / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

ONE = sharding.make_mesh(devices=jax.devices()[:1])
WO = r"ffn\.wo"


def optimizer(name: str, of, **options) -> optimizers.Optimizer:
    make = {"adamw": optimizers.adamw, "adafactor": optimizers.adafactor}[name]
    made = make(learning_rate=1e-2, **options)
    return optimizers.Optimizer(
        transform=made.transform, schedule=made.schedule, trainable=Trainable.of(of)
    )


def fit(directory, *, of=WO, name="adamw", steps=4, objective=toy.GLOBAL, **options):
    def feed(start):
        while True:
            yield toy.batch(start)
            start += 1

    graphdef, params = toy.student(options.pop("rate", 0.0))
    fixed = {"directory": directory, "mesh": ONE, "show": False}
    run = Fit(**{**fixed, "optimizer": optimizer(name, of), "steps": steps, **options})
    return flatten(params), run(graphdef, params, objective, feed)


def moved(before, after) -> set[str]:
    after = flatten(jax.device_get(after))
    assert after.keys() == before.keys()
    return {
        name
        for name in before
        if np.asarray(before[name]).tobytes() != np.asarray(after[name]).tobytes()
    }


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
@pytest.mark.parametrize("how", [{}, {"chunk": 4}, {"objective": toy.LISTS}])
def test_what_no_expression_names_keeps_every_bit(tmp_path, name, how):
    before, result = fit(tmp_path, name=name, **how)
    assert moved(before, result.params) == {"layers.0.ffn.wo.kernel"}


def test_a_negative_expression_freezes_the_embeddings(tmp_path):
    before, result = fit(tmp_path, of="^(?!embedding)")
    assert moved(before, result.params) == {*before} - {"embedding"}


def test_several_expressions_train_all_that_they_name(tmp_path):
    before, result = fit(tmp_path, of=("embedding", WO), micro_batch=4,
                         objective=toy.LISTS)  # fmt: skip
    assert moved(before, result.params) == {"embedding", "layers.0.ffn.wo.kernel"}


@pytest.mark.parametrize("how", [{}, {"chunk": 8}])
def test_a_mesh_trains_the_same_and_keeps_the_same_bits(tmp_path, how):
    before, one = fit(tmp_path / "one", **how)
    mesh = sharding.make_mesh("data=2,fsdp=2,model=2")
    _, many = fit(tmp_path / "many", mesh=mesh, **how)
    assert moved(before, many.params) == {"layers.0.ffn.wo.kernel"}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.device_get(one.params),
        jax.device_get(many.params),
    )


@pytest.mark.parametrize("options", [{}, {"chunk": 4}])
def test_the_gradient_is_the_whole_ones_part(options):
    graphdef, params = toy.student()
    run = jax.jit(make_gradient(graphdef, toy.GLOBAL, **options))
    _, whole = run(params, toy.batch(0), None)
    trained, rest = Trainable.of(WO).parted(params)
    _, part = run(trained, toy.batch(0), None, rest)
    assert flatten(part).keys() == {"layers.0.ffn.wo.kernel"}
    for path, leaf in flatten(part).items():
        np.testing.assert_allclose(leaf, flatten(whole)[path], rtol=1e-5, atol=1e-7)


def test_the_step_is_adamw_on_the_part_alone(tmp_path):
    """Against optax by hand: no other parameter enters the norm that clips."""
    graphdef, params = toy.student()
    _, result = fit(tmp_path, steps=1)
    run = jax.jit(make_gradient(graphdef, toy.GLOBAL))
    _, whole = run(params, toy.batch(0), None)
    leaf, grad = (flatten(t)["layers.0.ffn.wo.kernel"] for t in (params, whole))
    adam = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.01)
    )
    update, _ = adam.update(grad, adam.init(leaf), leaf)
    found = flatten(result.params)["layers.0.ffn.wo.kernel"]
    np.testing.assert_allclose(found, leaf + update, rtol=1e-5, atol=1e-6)


def test_moments_are_kept_of_what_is_trained_alone():
    _, params = toy.student()
    state = states.create(params, optimizer("adamw", WO), ONE, seed=0)
    whole = states.create(params, optimizer("adamw", None), ONE, seed=0)
    count = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(params))
    size = flatten(params)["layers.0.ffn.wo.kernel"].size

    def floats(tree):
        leaves = jax.tree.leaves(tree.opt_state)
        return sum(leaf.size for leaf in leaves if leaf.dtype == np.float32)

    assert floats(state) == 2 * size
    assert floats(whole) == 2 * count


def test_no_gradient_is_computed_for_what_is_not_trained():
    graphdef, params = toy.student()
    flops = {}
    for of in (None, WO):
        how = optimizer("adamw", of)
        state = states.abstract(params, how, ONE)
        lowered = lower_step(
            state, toy.batch(0), graphdef=graphdef, objective=toy.LISTS,
            optimizer=how, mesh=ONE,
        )  # fmt: skip
        flops[of] = lowered.compile().cost_analysis()["flops"]
    assert flops[WO] < 0.9 * flops[None]


def test_a_resumed_run_ends_where_the_unbroken_one_does(tmp_path):
    _, unbroken = fit(tmp_path / "unbroken", steps=4, rate=0.2)
    fit(tmp_path / "broken", steps=2, rate=0.2)
    before, resumed = fit(tmp_path / "broken", steps=4, rate=0.2)
    assert not moved(flatten(jax.device_get(unbroken.params)), resumed.params)
    stored = read_params(tmp_path / "broken" / "checkpoints", 4)
    assert moved(before, stored) == {"layers.0.ffn.wo.kernel"}


def test_parting_loses_nothing():
    _, params = toy.student()
    for of in (None, WO, ".*"):
        again = joined(*Trainable.of(of).parted(params))
        assert jax.tree.structure(again) == jax.tree.structure(params)
        assert not moved(flatten(params), again)


@pytest.mark.parametrize(
    ("of", "what"),
    [
        ("layers.7", r"'layers.7' matches none of 3 parameters"),
        ((WO, "heads"), r"'heads' matches none of 3"),
        ("(", r"'\(' is not a regular expression"),
        ((), "not a regular expression"),
        (3, "not a regular expression"),
    ],
)
def test_what_names_no_parameter_is_refused_with_some_names(of, what):
    _, params = toy.student()
    with pytest.raises(UserError, match=what) as error:
        Trainable.of(of).parted(params)
    if "matches" in str(error.value):
        assert "layers.0.ffn.wi.kernel" in str(error.value)
    assert str(error.value).count("\n") <= 1
