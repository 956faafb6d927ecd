"""T5X checkpoints: the legacy format and Orbax, against T5X's own encodings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.io.errors import UserError
from distill_jax.models import t5
from distill_jax.models.pretrained import build, flatten, initial_params
from distill_jax.weights import t5x

OWN = (r"projection_layer\.kernel",)


def checkpoint(shared):
    return shared / "reference/t5x/test_de_t5_tiny.checkpoint_1000"


def test_dual_encoder_encodings_are_t5x_own(shared):
    reference = np.load(shared / "reference/t5x/dual_encoder_tiny.npz")
    arrays = t5x.read_t5x(checkpoint(shared))
    sizes, params = t5x.read(arrays, ignore=OWN)
    assert (sizes.heads, sizes.relative_buckets, sizes.decoder_layers) == (2, 4, 0)
    module = nnx.eval_shape(lambda: build(sizes, nnx.Rngs(0)))
    model = nnx.merge(nnx.split(module)[0], nnx.State(params))
    for side in ("left", "right"):
        tokens = reference[f"{side}_tokens"]
        hidden = model.encoder(jnp.asarray(tokens))
        where = (tokens != 0)[..., None]
        mean = (hidden * where).sum(1) / where.sum(1)
        vector = mean @ arrays["projection_layer.kernel"]
        vector = vector / np.linalg.norm(vector, axis=-1, keepdims=True)
        want = reference[f"f32__{side}_encodings"]
        np.testing.assert_allclose(vector, want, atol=1e-5)
    left = model.encoder(jnp.asarray(reference["left_tokens"]))
    np.testing.assert_allclose(
        left[:, 0], reference["f32__left_first_token_hidden"], atol=1e-5
    )


def test_a_lost_array_and_a_path_that_leads_out_are_refused(shared, tmp_path):
    data = (checkpoint(shared) / "checkpoint").read_bytes()
    (tmp_path / "checkpoint").write_bytes(data)
    with pytest.raises(UserError, match="is missing"):
        t5x.read_t5x(tmp_path)


def test_no_checkpoint_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match="looked for"):
        t5x.read_t5x(tmp_path)


@pytest.mark.parametrize("gated", [False, True])
def test_orbax_layout_and_names_round_trip(tmp_path, gated):
    import orbax.checkpoint as ocp

    sizes = t5.T5Sizes(
        vocab_size=30,
        d_model=8,
        d_ff=12,
        heads=2,
        d_kv=4,
        encoder_layers=2,
        decoder_layers=1,
        gated=gated,
        tied=not gated,
        relative_buckets=6,
    )
    params = jax.tree.map(np.asarray, initial_params(sizes, 0))
    target: dict = {}
    for name, array in t5x.write(params).items():
        *path, last = name.split(".")
        node = target
        for part in path:
            node = node.setdefault(part, {})
        node[last] = array
    step = {"target": target, "state": {"step": np.asarray(7)}}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint_7" / "state", step)
    found, again = t5x.read(t5x.read_t5x(tmp_path))
    assert found == sizes
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(flatten(again)[name], leaf)
