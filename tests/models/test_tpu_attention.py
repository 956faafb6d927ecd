"""The kernel for TPUs, interpreted on a CPU, and what libtpu makes of it."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from distill_jax.models import attention, tpu_attention
from distill_jax.runtime import compiled, placement, sharding, targets

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


def inputs(rows, length, heads, width, dtype=jnp.float32):
    rng = np.random.default_rng(length + heads)
    shape = (rows, length, heads, width)
    q, k, v, weights = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4))
    bias = jnp.asarray(rng.normal(size=(1, heads, length, length)), jnp.float32)
    lengths = rng.integers(1, length + 1, rows)
    lengths[0], lengths[-1] = length, 0  # a row of padding
    mask = jnp.asarray(np.arange(length) < lengths[:, None])
    return q, k, v, bias, mask, weights


def by_hand(q, k, v, bias, mask, scale):
    """The definition, a row and a head at a time, in float64."""
    out = np.zeros(v.shape)
    for row in range(q.shape[0]):
        for head in range(q.shape[2]):
            scores = scale * np.float64(q[row, :, head]) @ np.float64(k[row, :, head]).T
            scores = scores + (0 if bias is None else np.float64(bias[0, head]))
            scores = np.where(mask[row], scores, -np.inf if mask[row].any() else 0.0)
            powers = np.exp(scores - scores.max(-1, keepdims=True))
            weights = powers / powers.sum(-1, keepdims=True)
            out[row, :, head] = weights @ np.float64(v[row, :, head])
    return out


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "length", "heads", "width"),
    [(3, 48, 4, 32), (5, 16, 2, 64), (2, 32, 2, 128), (2, 16, 1, 256)],
)
def test_the_kernel_is_the_formula(rows, length, heads, width, with_bias):
    q, k, v, bias, mask, _ = inputs(rows, length, heads, width)
    bias = bias if with_bias else None
    found = tpu_attention.attend(
        q, k, v, scale=0.3, bias=bias, mask=mask, interpret=True
    )
    expected = by_hand(q, k, v, bias, np.asarray(mask), 0.3)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_every_gradient_is_that_of_the_plain_form(with_bias, dtype):
    """Of query, key, value and the bias, which sums over the rows."""
    q, k, v, bias, mask, weights = inputs(6, 32, 4, 64, dtype)

    def total(attend, q, k, v, bias):
        found = attend(
            q, k, v, scale=0.125, bias=bias if with_bias else None, mask=mask
        )
        return jnp.sum(found.astype(jnp.float32) * weights)

    def kernel(*arrays, **how):
        return tpu_attention.attend(*arrays, **how, interpret=True)

    ours = jax.grad(lambda *a: total(kernel, *a), (0, 1, 2, 3))(q, k, v, bias)
    plain = jax.grad(lambda *a: total(attention.attend, *a), (0, 1, 2, 3))(
        q, k, v, bias
    )
    near = 2e-5 if dtype == "float32" else 0.06
    for one, other in zip(ours, plain):
        assert one.dtype == other.dtype
        one, other = np.float32(one), np.float32(other)
        np.testing.assert_allclose(one, other, rtol=near, atol=near)
    assert bool(np.any(ours[3])) == with_bias


@pytest.mark.parametrize("mesh", ["data=8", "data=2,fsdp=2,model=2"])
@pytest.mark.parametrize("by_row", [False, True])
def test_each_device_computes_its_share(mesh, by_row):
    """Also under the ``vmap`` over lists that dropout needs; on eight devices."""
    devices = sharding.make_mesh(mesh)
    if devices.size != 8:
        pytest.skip("needs eight devices")
    q, k, v, bias, mask, weights = inputs(16, 16, 4, 64)

    def total(how, q, k, v, bias):
        def one(q, k, v, mask, weights):
            found = how(q, k, v, scale=1.0, bias=bias, mask=mask)
            return jnp.sum(found * weights)

        lists = [x.reshape(8, 2, *x.shape[1:]) for x in (q, k, v, mask, weights)]
        if by_row:
            return jnp.sum(placement.over_rows(one, 8)(*lists))
        return one(q, k, v, mask, weights)

    def kernel(*arrays, **how):
        return tpu_attention.attend(*arrays, **how, interpret=True)

    def step(*arrays):
        with placement.computing_on(devices):
            return jax.value_and_grad(lambda *a: total(kernel, *a), (0, 1, 2, 3))(
                *arrays
            )

    split = NamedSharding(devices, sharding.BATCH)
    whole = NamedSharding(devices, PartitionSpec())
    places = (split, split, split, whole)
    program = jax.jit(step, in_shardings=places).lower(q, k, v, bias).compile()
    value, ours = program(*map(jax.device_put, (q, k, v, bias), places))
    expected, plain = jax.value_and_grad(
        lambda *a: total(attention.attend, *a), (0, 1, 2, 3)
    )(q, k, v, bias)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    for one, other in zip(ours, plain):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    # Nothing of the batch is gathered: what travels is the bias's gradient at most.
    for _, shapes, _ in compiled.Program(program.as_text()).collectives():
        for dtype, shape in shapes:
            assert compiled.bytes_of(dtype, shape) <= bias.nbytes


@pytest.mark.parametrize(
    "changes",
    [
        {"query": (8, 1, 12, 64)},
        {"query": (8, 520, 12, 64), "key": (8, 520, 12, 64)},
        {
            "query": (8, 512, 12, 32),
            "key": (8, 512, 12, 32),
            "bias": (1, 12, 512, 512),
        },
        {"query": (8, 40, 12, 64), "key": (8, 40, 12, 64)},
        {"query": (8, 48, 12, 80), "key": (8, 48, 12, 80)},
        {"query": (8, 48, 11, 64), "key": (8, 48, 11, 64)},
        {"mask": (8, 1, 48, 48)},
        {"bias": (8, 12, 48, 48)},
    ],
    ids=str,
)
def test_other_shapes_are_left_to_the_compiler(changes):
    shape = (8, 48, 12, 64)
    fields = {"query": shape, "key": shape, "mask": shape[:2]}
    with placement.computing_on(sharding.make_mesh("data=1")):
        assert tpu_attention.fits(**fields, bias=(1, 12, 48, 48))
        assert not tpu_attention.fits(**{**fields, **changes})
    assert not tpu_attention.fits(**fields)  # eight devices, and no mesh


@pytest.mark.long
@needs_libtpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("machine", "mesh", "length"),
    [
        ("v4:2x2x1", "data=4", 512),  # the least memory on the chip
        ("v5e:2x4", "data=4,model=2", 48),
        ("v6e:1", "data=1", 192),
    ],
)
def test_no_scores_are_written_on_a_tpu(machine, mesh, length, dtype):
    """Forward and backward are one kernel each in what libtpu compiles."""
    heads = 4
    with targets.planning_for(machine):
        devices = sharding.make_mesh(mesh)

        def total(q, k, v, bias, mask):
            with placement.computing_on(devices):
                found = attention.attend(q, k, v, scale=0.125, bias=bias, mask=mask)
            return jnp.square(found.astype(jnp.float32)).sum()

        def of(shape, dtype, spec):
            place = NamedSharding(devices, spec)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

        x = of((8, length, heads, 64), dtype, sharding.BATCH)
        bias = of((1, heads, length, length), "float32", PartitionSpec())
        mask = of((8, length), bool, sharding.BATCH)
        step = jax.jit(jax.grad(total, (0, 1, 2, 3)))
        text = step.lower(x, x, x, bias, mask).compile().as_text()
    program = compiled.Program(text)
    kernels = [
        one for one, _ in program.instructions() if "tpu_custom_call" in one.text
    ]
    assert len(kernels) == 2
    rows = 8 // sharding.data_devices(devices)
    written = {shape for one, _ in program.instructions() for _, shape, _ in one.shapes}
    for heads_here in (heads, heads // devices.shape["model"]):
        assert (rows, heads_here, length, length) not in written
