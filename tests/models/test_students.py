"""What holds for every encoder: dual encoders, ColBERT, SPLADE."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.batches import DualBatch, Targets
from distill_jax.io.errors import UserError
from distill_jax.models.colbert import ColbertSpec
from distill_jax.models.dual_encoder import DualEncoderSpec
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.pretrained import abstract_params, flatten, graphdef_of
from distill_jax.models.specs import from_json, to_json
from distill_jax.models.splade import SpladeSpec
from distill_jax.models.t5 import T5Sizes
from distill_jax.runtime.sharding import partition_of

BERT = BertSizes(vocab_size=50, d_model=16, d_ff=24, heads=2, layers=1, sep_id=3)
T5 = T5Sizes(
    vocab_size=50, d_model=16, d_ff=24, heads=2, d_kv=8, encoder_layers=1,
    decoder_layers=0, relative_buckets=8, relative_max_distance=20,
)  # fmt: skip
MARKS = {"query_length": 9, "mask_id": 4, "query_marker": 5, "doc_marker": 6}
SPECS = {
    "bert mean": DualEncoderSpec(backbone=BERT),
    "bert cls, two towers": DualEncoderSpec(
        backbone=BERT, pooling="cls", tied=False, normalise=False
    ),
    "bert last, cosine": DualEncoderSpec(
        backbone=BERT, pooling="last", normalise=False, similarity="cosine"
    ),
    "t5 projected": DualEncoderSpec(
        backbone=T5, projection=12, projection_bias=True, projection_activation="tanh"
    ),
    "colbert": ColbertSpec(backbone=BERT, dim=8, skiplist=(7, 8), **MARKS),
    "colbert of t5, no expansion": ColbertSpec(
        backbone=T5, dim=8, expand=False, marker_position=0, **MARKS
    ),
    "splade": SpladeSpec(backbone=BERT),
    "splade apart": SpladeSpec(
        backbone=BERT, tied=False, pooling="sum", query_activation="relu"
    ),
}
B, N, LQ, LD = 3, 4, 7, 11


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


def batch_of(seed=0, where=None):
    rng = np.random.default_rng(seed)

    def tokens(rows, length):
        out = rng.integers(7, 50, (rows, length)).astype(np.int32)
        out[:, 0] = 2
        for row, size in enumerate(rng.integers(4, length + 1, rows)):
            out[row, size - 1] = 3
            out[row, size:] = 0
        return out

    if where is None:
        where = np.ones((B, N), bool)
    return DualBatch(
        query_tokens=jnp.asarray(tokens(B, LQ)),
        doc_tokens=jnp.asarray(tokens(B * N, LD).reshape(B, N, LD)),
        targets=Targets(labels=jnp.zeros((B, N)), where=jnp.asarray(where)),
    )


def params_of(spec, seed=1):
    """Weights far from their initial values, where a layer is nearly the identity."""
    rng = np.random.default_rng(seed)
    return jax.tree.map_with_path(
        lambda path, leaf: (
            (path[-1].key == "scale")
            + (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)
        ),
        abstract_params(spec),
    )


def outputs(spec, params, batch):
    student = nnx.merge(graphdef_of(spec), nnx.State(params))
    rep = student.represent(batch)
    return rep, student.scores(rep, batch), student.cross_scores(rep, batch)


@pytest.fixture(scope="module")
def models():
    """A student's parameters and its jitted outputs, made once."""
    made = {}

    def make(spec):
        if spec not in made:
            made[spec] = params_of(spec), jax.jit(functools.partial(outputs, spec))
        return made[spec]

    return make


def test_scores_are_the_diagonal_of_cross_scores(spec, models):
    params, whole = models(spec)
    _, scores, cross = whole(params, batch_of())
    assert scores.dtype == cross.dtype == jnp.float32
    assert cross.shape == (B, B, N)
    np.testing.assert_allclose(
        scores, cross[np.arange(B), np.arange(B)], rtol=1e-5, atol=1e-5
    )
    assert np.std(scores) > 1e-3


def test_longer_padding_changes_nothing(spec, models):
    params, whole = models(spec)
    batch = batch_of()
    pad = ((0, 0), (0, 5))
    longer = dataclasses.replace(
        batch,
        query_tokens=jnp.pad(batch.query_tokens, pad),
        doc_tokens=jnp.pad(batch.doc_tokens, ((0, 0), *pad)),
    )
    for a, b in zip(whole(params, batch)[1:], whole(params, longer)[1:]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_docs_in_another_order_get_their_scores_in_that_order(spec, models):
    params, whole = models(spec)
    batch = batch_of()
    order = np.array([2, 0, 3, 1])
    turned = dataclasses.replace(batch, doc_tokens=batch.doc_tokens[:, order])
    np.testing.assert_allclose(
        whole(params, batch)[1][:, order], whole(params, turned)[1], atol=1e-5
    )


def test_queries_one_by_one_are_the_whole_batch(spec, models):
    params, whole = models(spec)
    batch = batch_of()
    rep = whole(params, batch)[0]
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(rep))
    rows = [
        whole(params, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch))[0]
        for i in range(B)
    ]
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), joined, rep)


def test_a_doc_of_padding_alone_stays_finite_and_disturbs_no_other(spec, models):
    params, whole = models(spec)
    where = np.ones((B, N), bool)
    where[1, 2:] = False
    batch = batch_of(where=where)
    empty = dataclasses.replace(
        batch, doc_tokens=jnp.where(jnp.asarray(where)[..., None], batch.doc_tokens, 0)
    )
    before, after = whole(params, batch)[1], whole(params, empty)[1]
    np.testing.assert_allclose(before[where], after[where], atol=1e-5)
    assert np.isfinite(after).all()


@pytest.mark.parametrize("name", ["bert mean", "colbert", "splade"])
def test_gradients_beside_a_doc_of_padding_alone_are_finite(name):
    spec = SPECS[name]
    params = params_of(spec)
    where = np.ones((B, N), bool)
    where[1, 2:] = False
    batch = batch_of(where=where)
    empty = dataclasses.replace(
        batch, doc_tokens=jnp.where(jnp.asarray(where)[..., None], batch.doc_tokens, 0)
    )

    def loss(params):
        student = nnx.merge(graphdef_of(spec), nnx.State(params))
        rep = student.represent(empty)
        scores = jnp.where(where, student.scores(rep, empty), 0.0)
        own = student.regularise(rep, empty) if hasattr(student, "regularise") else {}
        return jnp.square(scores).sum() + sum(own.values())

    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_encoding_sides_apart_is_what_represent_does(spec, models):
    params, whole = models(spec)
    batch = batch_of()
    rep = whole(params, batch)[0]

    @jax.jit
    def encoded(params):
        student = nnx.merge(graphdef_of(spec), nnx.State(params))
        docs = batch.doc_tokens.reshape(B * N, LD)
        return student.encode_queries(batch.query_tokens), student.encode_docs(docs)

    queries, docs = encoded(params)
    if spec.kind == "colbert":
        queries, docs = queries[0], docs[0]
    np.testing.assert_allclose(queries, rep["q"], atol=1e-5)
    np.testing.assert_allclose(docs.reshape(rep["d"].shape), rep["d"], atol=1e-5)


def test_tied_towers_are_one_set_of_parameters(spec):
    flat = flatten(abstract_params(spec))
    towers = {name.split(".")[0] for name in flat}
    if spec.kind == "colbert":
        assert towers == {"encoder", "projection"}
    else:
        assert towers == ({"tower"} if spec.tied else {"query_tower", "doc_tower"})
    tables = [n for n in flat if n.endswith(("embeddings.word", "encoder.embedding"))]
    assert len(tables) == (1 if getattr(spec, "tied", True) else 2)


def test_every_parameter_has_its_place_on_a_mesh(spec):
    for name, leaf in flatten(abstract_params(spec)).items():
        assert len(partition_of(name)) <= len(leaf.shape), name


def test_a_spec_survives_json(spec):
    again = from_json(to_json(spec))
    assert again == spec
    assert hash(again) == hash(spec)


def test_dropout_differs_between_queries_and_docs(models):
    spec = SPECS["bert mean"]
    params, _ = models(spec)
    batch = batch_of()
    same = dataclasses.replace(batch, doc_tokens=batch.query_tokens[:, None])

    @jax.jit
    def both(params):
        student = nnx.merge(graphdef_of(spec), nnx.State(params))
        moved = student.represent(same, rngs=nnx.Rngs(dropout=0))
        return student.represent(same), moved

    still, moved = both(params)
    np.testing.assert_allclose(still["q"], still["d"][:, 0], atol=1e-6)
    assert np.abs(moved["q"] - moved["d"][:, 0]).max() > 1e-2


def test_options_outside_of_their_sets_are_refused():
    with pytest.raises(UserError, match="pooling"):
        DualEncoderSpec(backbone=BERT, pooling="median")
    with pytest.raises(UserError, match="T5"):
        SpladeSpec(backbone=T5)
    with pytest.raises(UserError, match="query_length"):
        ColbertSpec(backbone=BERT, query_length=3)
