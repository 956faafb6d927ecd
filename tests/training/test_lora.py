"""Adapters: the model with them is the merged model, and what they stand on stays."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.io.errors import UserError
from distill_jax.models import lora
from distill_jax.models.lora import LoRA
from distill_jax.models.pretrained import flatten, unflatten
from distill_jax.runtime import sharding
from distill_jax.training import optimizers
from distill_jax.training import state as states
from distill_jax.training.loop import Fit
from distill_jax.training.step import make_gradient
from distill_jax.training.trainable import Trainable
from tests.training.stored import read_params

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parent / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

ONE = sharding.make_mesh(devices=jax.devices()[:1])
SMALL = "lora:rank=4,alpha=12"
KERNELS = {"layers.0.ffn.wi.kernel", "layers.0.ffn.wo.kernel"}


def fit(directory, *, of=SMALL, steps=4, objective=toy.GLOBAL, **options):
    def feed(start):
        while True:
            yield toy.batch(start)
            start += 1

    graphdef, params = toy.student(options.pop("rate", 0.0))
    made = optimizers.adamw(learning_rate=1e-2)
    optimizer = optimizers.Optimizer(
        transform=made.transform, schedule=made.schedule, trainable=Trainable.of(of)
    )
    evaluate = options.pop("evaluate", None)
    fixed = {"directory": directory, "mesh": ONE, "show": False}
    run = Fit(**{**fixed, "optimizer": optimizer, "steps": steps, **options})
    return flatten(params), run(graphdef, params, objective, feed, evaluate)


def different(one, other) -> set[str]:
    one, other = (flatten(jax.device_get(tree)) for tree in (one, other))
    assert one.keys() == other.keys()
    return {k for k in one if np.asarray(one[k]).tobytes() != other[k].tobytes()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    return folder, *fit(folder)


def test_the_base_stays_and_the_student_is_the_base_with_the_product_added(trained):
    folder, before, result = trained
    stored = flatten(read_params(folder / "checkpoints", 4))
    base = {name: stored[name] for name in before}
    assert not different(unflatten(before), unflatten(base))
    after = flatten(jax.device_get(result.params))
    assert different(unflatten(before), result.params) == KERNELS
    for name in KERNELS:
        stem = name.removesuffix("kernel")
        a, b = (stored[f"{stem}lora_{x}"].astype(np.float64) for x in "ab")
        assert a.shape[1] == b.shape[0] == 4
        assert np.abs(b).max() > 0
        assert stored[f"{stem}lora_scale"] == 3.0
        np.testing.assert_array_equal(result.adapters[f"{stem}lora_a"], a)
        np.testing.assert_allclose(after[name], before[name] + 3 * (a @ b), atol=1e-6)


def test_the_gradient_is_that_of_a_low_rank_path_beside_each_layer():
    """Against the adapters written into the layers themselves."""

    class Beside(nnx.Module):
        def __init__(self, layer, a, b, scale):
            self.layer = layer
            self.lora_a, self.lora_b, self.scale = nnx.Param(a), nnx.Param(b), scale

        def __call__(self, x):
            return self.layer(x) + self.scale * ((x @ self.lora_a) @ self.lora_b)

    graphdef, params = toy.student()
    trainable = Trainable.of(SMALL)
    flat = flatten(trainable.prepared(params, 0))
    flat = {
        k: v + 0.1 * jnp.cos(jnp.arange(v.size)).reshape(v.shape)
        if k.endswith("lora_b")
        else v
        for k, v in flat.items()
    }
    adapted = unflatten(flat)
    student = nnx.merge(graphdef, nnx.State(params))
    ffn = student.layers[0]["ffn"]
    for name in ("wi", "wo"):
        stem = f"layers.0.ffn.{name}.lora_"
        layer = Beside(getattr(ffn, name), flat[stem + "a"], flat[stem + "b"], 3.0)
        setattr(ffn, name, layer)
    batch = toy.batch(0)
    beside, state = nnx.split(student)

    @jax.jit
    def by_hand(state):
        def loss(state):
            student = nnx.merge(beside, state)
            return toy.GLOBAL(student, student.represent(batch), batch)[0]

        return jax.value_and_grad(loss)(state)

    value, wanted = by_hand(state)
    wanted = flatten(nnx.to_pure_dict(wanted))
    trained, rest = trainable.parted(adapted)
    for options in ({}, {"chunk": 4}):
        run = jax.jit(make_gradient(graphdef, toy.GLOBAL, **options))
        (found, _), grads = run(trained, batch, None, rest)
        np.testing.assert_allclose(found, value, rtol=1e-5)
        grads = flatten(grads)
        assert len(grads) == 4
        for name, leaf in grads.items():
            np.testing.assert_allclose(leaf, wanted[name], rtol=1e-4, atol=1e-6)


def test_a_mesh_trains_the_same(tmp_path, trained):
    mesh = sharding.make_mesh("data=2,fsdp=2,model=2")
    _, result = fit(tmp_path, mesh=mesh, chunk=8)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.device_get(result.params),
        jax.device_get(trained[2].params),
    )


def test_a_resumed_run_ends_where_the_unbroken_one_does(tmp_path):
    _, unbroken = fit(tmp_path / "unbroken", rate=0.2)
    fit(tmp_path / "broken", steps=2, rate=0.2)
    _, resumed = fit(tmp_path / "broken", rate=0.2)
    assert not different(unbroken.params, resumed.params)
    assert not different(unbroken.adapters, resumed.adapters)


def test_an_evaluation_sees_the_merged_student_and_the_best_is_kept(tmp_path):
    seen = {}

    def evaluate(params, step):
        seen[step] = jax.device_get(params)
        return {"m": {1: 0.2, 2: 0.9, 3: 0.1}[step]}

    options = {"eval_period": 1, "best_measure": "m", "evaluate": evaluate}
    before, result = fit(tmp_path, steps=3, **options)
    assert flatten(seen[2]).keys() == before.keys()
    assert result.best_step == 2
    assert not different(seen[2], result.params)
    assert different(seen[3], result.params) == KERNELS


def test_a_head_is_trained_in_full_beside_adapters(tmp_path):
    """What an expression names has no adapter of its own."""
    before, result = fit(tmp_path, of=(SMALL, r"embedding", r"wo"))
    assert different(unflatten(before), result.params) == {"embedding", *KERNELS}
    assert {name.split(".")[3] for name in result.adapters} == {"wi"}


def test_moments_are_of_the_adapters_alone():
    _, params = toy.student()
    made = optimizers.adamw(learning_rate=1e-2)
    optimizer = optimizers.Optimizer(
        transform=made.transform, schedule=made.schedule, trainable=Trainable.of(SMALL)
    )
    state = states.create(params, optimizer, ONE, seed=0)
    floats = [
        x.size for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.float32
    ]
    assert sum(floats) == 2 * 2 * 4 * (toy.WIDTH + 2 * toy.WIDTH)


def test_adapters_begin_as_no_change():
    _, params = toy.student()
    adapted = LoRA().adapted(params, 0)
    assert not different(lora.merged(adapted), params)
    own, adapters = lora.parted(adapted)
    assert own.keys() == flatten(params).keys()
    a = np.asarray(adapters["layers.0.ffn.wi.lora_a"])
    assert 0.8 / np.sqrt(toy.WIDTH) < np.abs(a).max() <= 1 / np.sqrt(toy.WIDTH)
    other = lora.parted(LoRA().adapted(params, 1))[1]["layers.0.ffn.wi.lora_a"]
    assert not np.array_equal(a, other)
    second = np.asarray(adapters["layers.0.ffn.wo.lora_a"])
    assert not np.allclose(a[:16], second[:16])


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("lora", LoRA()),
        ("lora:rank=4", LoRA(rank=4)),
        ("lora:alpha=2.5,rank=64", LoRA(rank=64, alpha=2.5)),
        (r"lora:rank=2,targets=(a|b){1,2}=,", LoRA(rank=2, targets=r"(a|b){1,2}=,")),
    ],
)
def test_adapters_are_said_in_a_word(text, made):
    assert Trainable.of(text) == Trainable(lora=made)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lora:rnk=4", r'"rank"'),
        ("lora:rank", "no field 'rank'"),
        ("lora:rank=0", "above 0"),
        ("lora:rank=two", "rank is 'two'"),
        ("lora:alpha=inf", "above 0"),
        ("lora:targets=(", "not a regular expression"),
        ("lora:targets=layers.9", "match none of 2 matrices"),
        (("lora", ".*"), "match none of 0 matrices"),
    ],
)
def test_mistakes_say_what_fits(text, told):
    _, params = toy.student()
    with pytest.raises(UserError, match=told) as error:
        Trainable.of(text).prepared(params, 0)
    assert str(error.value).count("\n") <= 1
