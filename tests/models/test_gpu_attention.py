"""The choice of the attention kernel on a GPU, as far as a CPU can hold it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from distill_jax.models import attention, gpu_attention
from distill_jax.models.gpu_attention import implementation

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
        {"devices": 8},
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
