"""The choice of the attention kernel on a GPU, as far as a CPU can hold it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.sharding import NamedSharding, PartitionSpec

from distill_jax.models import attention, gpu_attention
from distill_jax.models.gpu_attention import implementation
from distill_jax.runtime import compiled, placement, sharding

SHAPE = (8, 180, 12, 64)
BIAS = (1, 12, 180, 180)
HOPPER = {"capability": 9.0}


def test_what_the_recipes_run_goes_to_the_kernel():
    mask = SHAPE[:2]
    for width in (32, 64, 128):
        shape = (*SHAPE[:3], width)
        for bias in (None, BIAS):
            found = implementation(
                shape, shape, "bfloat16", bias=bias, mask=mask, **HOPPER
            )
            assert found == "cudnn"
    assert implementation(SHAPE, SHAPE, "bfloat16", capability=8.0) == "cudnn"


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float32"},
        {"capability": 7.5},
        {"capability": 0.0},
        {"shared": False},
        {"deterministic": True},
        {"query": (8, 179, 12, 64), "key": (8, 179, 12, 64)},
        {"query": (8, 180, 12, 60), "key": (8, 180, 12, 60)},
        {"query": (8, 180, 12, 256), "key": (8, 180, 12, 256)},
        {"query": (8, 1, 12, 64)},
        {"query": (8, 32, 12, 64)},
        {"mask": (8, 1, 180, 180)},
        {"mask": (1, 1, 180, 180)},
        {"bias": (8, 12, 180, 180)},
        {"bias": (1, 1, 180, 180)},
    ],
    ids=str,
)
def test_in_doubt_it_is_xla(changes):
    fields = {"query": SHAPE, "key": SHAPE, "dtype": "bfloat16", **HOPPER, **changes}
    assert implementation(**fields) == "xla"


@pytest.fixture
def card(monkeypatch):
    """A Hopper with cuDNN as far as tracing asks; nothing can be run on it."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    no = lambda _: False  # noqa: E731
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", no)
    monkeypatch.setattr(gpu_attention, "cuda_capability", lambda: 9.0)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize("with_bias", [False, True])
def test_jax_takes_what_is_sent_to_the_kernel(card, with_bias):
    """jax's own checks of the kernel's shapes, forward and backward, pass."""
    x = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)
    bias = jax.ShapeDtypeStruct(BIAS, jnp.float32) if with_bias else None
    mask = jax.ShapeDtypeStruct(SHAPE[:2], bool)

    def total(q, k, v, bias, mask):
        found = attention.attend(q, k, v, scale=0.125, bias=bias, mask=mask)
        return found.astype(jnp.float32).sum()

    arguments = (0, 1, 2, 3) if with_bias else (0, 1, 2)
    step = jax.grad(total, arguments)
    kernel = str(jax.make_jaxpr(step)(x, x, x, bias, mask))
    assert "dot_product_attention_bwd" in kernel
    gradients = jax.eval_shape(step, x, x, x, bias, mask)
    assert [g.dtype for g in gradients][:3] == [jnp.bfloat16] * 3
    if with_bias:
        assert gradients[3].shape == BIAS
        assert gradients[3].dtype == jnp.float32
    odd = jax.ShapeDtypeStruct((8, 179, 12, 64), jnp.bfloat16)
    if not with_bias:
        shorter = jax.ShapeDtypeStruct((8, 179), bool)
        plain = str(jax.make_jaxpr(step)(odd, odd, odd, None, shorter))
        assert "dot_product_attention_bwd" not in plain


@pytest.mark.parametrize("general", [False, True])
def test_every_form_is_one_formula(general, monkeypatch):
    """XLA's form and lengths in the place of a mask, against the CPU's form."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(3, 6, 2, 8)), jnp.float32) for _ in "qkv")
    bias = jnp.asarray(rng.normal(size=(1, 2, 6, 6)), jnp.float32)
    lengths = np.array([6, 3, 1])
    mask = jnp.asarray(np.arange(6) < lengths[:, None])
    given = mask
    if general:
        given = mask[:, None, None, :] & jnp.tril(jnp.ones((6, 6), bool))[None, None]
    ours = attention.attend(q, k, v, scale=0.5, bias=bias, mask=given)
    xla = gpu_attention.attend(q, k, v, scale=0.5, bias=bias, mask=given, chosen="xla")
    np.testing.assert_allclose(xla, ours, rtol=1e-5, atol=1e-6)
    if general:
        return
    # The kernel itself runs on a GPU only; what it is given means the same to XLA.
    real = jax.nn.dot_product_attention

    def on_xla(*args, implementation, **more):
        assert implementation == "cudnn"
        return real(*args, implementation="xla", **more)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_xla)
    kernel = gpu_attention.attend(
        q, k, v, scale=0.5, bias=bias, mask=mask, chosen="cudnn"
    )
    np.testing.assert_allclose(kernel, ours, rtol=1e-5, atol=1e-6)
    nothing = jnp.zeros((3, 6), bool)
    empty = gpu_attention.attend(q, k, v, scale=0.5, mask=nothing, chosen="cudnn")
    assert np.isfinite(empty).all()


def on_several(monkeypatch):
    """The kernel's calls on a mesh, in XLA's form; notes the shapes of each call."""
    real, seen = jax.nn.dot_product_attention, []

    def on_xla(query, *args, implementation, bias=None, **more):
        assert implementation == "cudnn"
        seen.append((query.shape, None if bias is None else bias.shape))
        return real(query, *args, bias=bias, implementation="xla", **more)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_xla)
    monkeypatch.setattr(gpu_attention, "cuda_capability", lambda: 9.0)
    return seen


@pytest.mark.parametrize("mesh", ["data=8", "data=2,fsdp=2,model=2"])
@pytest.mark.parametrize("by_row", [False, True])
def test_each_of_several_cards_computes_its_rows_and_heads(mesh, by_row, monkeypatch):
    """Values and every gradient, also under the ``vmap`` over lists of dropout."""
    devices = sharding.make_mesh(mesh)
    if devices.size != 8:
        pytest.skip("needs eight devices")
    rng = np.random.default_rng(0)
    shape = (16, 6, 4, 8)
    q, k, v, weights = (
        jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(4)
    )
    bias = jnp.asarray(rng.normal(size=(1, 4, 6, 6)), jnp.float32)
    mask = jnp.asarray(np.arange(6) < rng.integers(1, 7, 16)[:, None])

    def total(q, k, v, bias):
        def one(q, k, v, mask, weights):
            found = gpu_attention.attend(q, k, v, scale=0.5, bias=bias, mask=mask)
            return jnp.sum((found * weights).astype(jnp.float32))

        lists = [x.reshape(8, 2, *x.shape[1:]) for x in (q, k, v, mask, weights)]
        if by_row:
            return jnp.sum(placement.over_rows(one, 8)(*lists))
        return one(q, k, v, mask, weights)

    step = jax.value_and_grad(total, (0, 1, 2, 3))
    expected, plain = step(q, k, v, bias)  # eight devices and no mesh: XLA
    seen = on_several(monkeypatch)

    def on_mesh(*arrays):
        with placement.computing_on(devices):
            return step(*arrays)

    split = NamedSharding(devices, sharding.BATCH)
    whole = NamedSharding(devices, PartitionSpec())
    places = (split, split, split, whole)
    program = jax.jit(on_mesh, in_shardings=places).lower(q, k, v, bias).compile()
    value, ours = program(*map(jax.device_put, (q, k, v, bias), places))
    assert float(value) == pytest.approx(float(expected), rel=0.02)
    for one, other in zip(ours, plain):
        np.testing.assert_allclose(
            np.float32(one), np.float32(other), rtol=0.05, atol=0.05
        )
    assert np.any(np.float32(ours[3]))
    heads = 4 // devices.shape["model"]
    rows = 2 if by_row else 16 // sharding.data_devices(devices)
    assert seen
    assert set(seen) == {((rows, 6, heads, 8), (1, heads, 6, 6))}
    # Nothing of the batch is gathered: what travels is the bias's gradient at most.
    for _, shapes, _ in compiled.Program(program.as_text()).collectives():
        for dtype, found in shapes:
            assert compiled.bytes_of(dtype, found) <= bias.nbytes


@pytest.mark.parametrize("mesh", ["data=8", "data=2,fsdp=2,model=2"])
def test_the_kernel_is_lowered_for_several_cards(card, mesh):
    """Each device's program has the forward and the backward kernel, on its share."""
    devices = sharding.make_mesh(mesh)
    if devices.size != 8:
        pytest.skip("needs eight devices")
    split = NamedSharding(devices, sharding.BATCH)
    whole = NamedSharding(devices, PartitionSpec())

    def of(shape, dtype, place):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def total(q, k, v, bias, mask):
        with placement.computing_on(devices):
            found = gpu_attention.attend(q, k, v, scale=0.1, bias=bias, mask=mask)
        return found.astype(jnp.float32).sum()

    x = of((16, 180, 12, 64), jnp.bfloat16, split)
    bias = of((1, 12, 180, 180), jnp.float32, whole)
    mask = of((16, 180), bool, split)
    step = jax.jit(jax.grad(total, (0, 1, 2, 3)))
    lowered = step.trace(x, x, x, bias, mask).lower(lowering_platforms=("cuda",))
    calls = [line for line in lowered.as_text().splitlines() if "__cudnn$fmha" in line]
    rows = 16 // sharding.data_devices(devices)
    heads = 12 // devices.shape["model"]
    assert len(calls) == 2
    for call in calls:
        assert f"tensor<{rows}x180x{heads}x64xbf16>" in call
