"""Layers that are compiled once and scanned compute what they do one by one."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from distill_jax.models import bert, t5
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.pretrained import graphdef_of, initial_params
from distill_jax.models.reranker import RerankerSpec
from distill_jax.models.stack import SCANNED, through
from distill_jax.models.t5 import T5Sizes
from distill_jax.runtime import placement, sharding

pytestmark = pytest.mark.long

LAYERS = SCANNED + 1
SPECS = {
    "t5": RerankerSpec(
        backbone=T5Sizes(
            vocab_size=64,
            d_model=16,
            d_ff=32,
            heads=2,
            d_kv=8,
            encoder_layers=LAYERS,
            decoder_layers=LAYERS,
        ),
        word_ids=(5, 6),
    ),
    "bert": RerankerSpec(
        backbone=BertSizes(vocab_size=64, d_model=16, d_ff=32, heads=2, layers=LAYERS),
        head="bert_classifier",
    ),
}


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("name", SPECS)
def test_scores_and_gradients_are_those_of_single_layers(monkeypatch, name, remat):
    spec = SPECS[name]
    params, graph = initial_params(spec, 0), graphdef_of(spec)
    tokens = np.random.default_rng(0).integers(1, 64, (4, 8)).astype(np.int32)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])

    def run():
        def loss(params):
            with placement.computing_on(mesh, remat):
                model = nnx.merge(graph, nnx.State(params))
                return (model.score(tokens, rngs=nnx.Rngs(dropout=2)) ** 2).mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    want = run()
    for module in (t5, bert):
        monkeypatch.setattr(module, "through", functools.partial(through, scan=True))
    text = str(jax.make_jaxpr(lambda: run())())
    assert "scan[" in text
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), run(), want
    )
