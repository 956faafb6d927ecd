"""Products of 8-bit integers: those of numpy, near float32, made ready once."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.export import verify
from distill_jax.inference import forward
from distill_jax.inference.texts import score_tuples
from distill_jax.io.errors import UserError
from distill_jax.models import bert, t5
from distill_jax.models.linear import Linear, Quantised, quantised
from distill_jax.models.pretrained import flatten
from distill_jax.models.stack import through
from distill_jax.recipe.checkpoints import Checkpoint
from distill_jax.recipe.students import Student
from distill_jax.retrieval.embeddings import embed_docs, embeddings_key
from distill_jax.runtime.sharding import make_mesh
from distill_jax.teaching.scorers import certificate
from distill_jax.text.features import Features
from distill_jax.text.token_store import TokenStore
from tests.export.forms import SPECS, student
from tests.inference.test_forward import TEXTS, side_features


def in_int8(model, **changes):
    backbone = dataclasses.replace(model.spec.backbone, dtype="int8", **changes)
    return model.replace(spec=dataclasses.replace(model.spec, backbone=backbone))


def drawn(seed=0, rows=7, inputs=40, outputs=24):
    """Activations with one great feature and a row of zeros, and a kernel."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs)).astype(np.float32)
    x[:, 3] *= 50
    x[2] = 0
    kernel = rng.normal(size=(inputs, outputs)).astype(np.float32) * 0.1
    kernel[:, 5] = 0
    kernel[3] *= 0.02
    return x, kernel


@pytest.mark.parametrize("balanced", [False, True])
def test_a_layer_is_numpys_product_of_integers(balanced):
    x, kernel = drawn()
    bias = np.arange(24, dtype=np.float32)
    wide = kernel.astype(np.float64)
    gains = np.sqrt((wide**2).mean(1)) if balanced else np.ones(40)
    wide = wide / gains[:, None]
    steps = np.abs(wide).max(0) / 127
    steps[steps == 0] = 1
    weights = np.rint(wide / steps).astype(np.int64)
    inputs = x.astype(np.float64) * gains
    sizes = np.abs(inputs).max(1, keepdims=True) / 127
    sizes[sizes == 0] = 1
    codes = np.rint(inputs / sizes).astype(np.int64)
    assert np.abs(codes).max() == 127
    expected = (codes @ weights) * sizes * steps + bias
    layer = Linear(40, 24, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.asarray(bias)
    layer.kernel.set_value(quantised(kernel, balanced=balanced))
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)
    batched = layer(jnp.asarray(x.reshape(1, 7, 40)))
    np.testing.assert_allclose(batched[0], expected, rtol=1e-5, atol=1e-5)
    restored = (weights * steps) * gains[:, None]
    np.testing.assert_allclose(layer.weights(), restored, atol=1e-6)


def test_an_output_is_off_by_half_a_step_of_each_factor_at_most():
    x, kernel = drawn(1)
    found = quantised(kernel)
    layer = Linear(40, 24, use_bias=False, rngs=nnx.Rngs(0))
    layer.kernel.set_value(found)
    off = np.abs(np.asarray(layer(jnp.asarray(x))) - x.astype(np.float64) @ kernel)
    of_x = np.abs(x).max(1, keepdims=True) / 127 / 2
    of_kernel = np.abs(kernel).max(0) / 127 / 2
    most = of_x * np.abs(kernel).sum(0) + np.abs(x).sum(1)[:, None] * of_kernel
    assert (off <= most + 40 * of_x * of_kernel + 1e-5).all()
    assert off.max() > 0  # and it is no float product


def test_gains_save_a_token_whose_great_feature_is_hardly_read():
    x, kernel = drawn(2)
    errors = []
    for balanced in (False, True):
        layer = Linear(40, 24, use_bias=False, rngs=nnx.Rngs(0))
        layer.kernel.set_value(quantised(kernel, balanced=balanced))
        errors.append(np.abs(layer(jnp.asarray(x)) - x @ kernel).mean())
    assert errors[1] < errors[0] / 3


def outputs(model, **options):
    rows = np.arange(len(TEXTS))
    kind = model.spec.kind
    if kind in ("reranker", "duo"):
        template, store = model.spec.template, TokenStore.build(TEXTS, model.tokenizer)
        stores = dict.fromkeys(template.fields, store)
        features = Features(template, model.tokenizer, **stores)
        fields = {n: rows for n in template.fields if n != "query"}
        if kind == "duo":
            fields["document1"] = rows[::-1]
        return forward.score_features(
            model, features, query=rows * 0 + 4, **fields, **options
        )
    found = forward.encode_all(
        model, "doc", side_features(model, "doc"), rows, **options
    )
    if kind == "colbert":
        return np.concatenate(found)
    return found.toarray() if kind == "splade" else found


FORMS = [name for name in SPECS if student(name).spec.kind != "generator"]


@pytest.mark.parametrize("name", FORMS)
def test_every_student_stays_near_float32(name):
    model = student(name)
    if model.spec.kind in ("reranker", "duo"):
        pairs = verify.sample_tuples(model, verify.QUERIES, verify.DOCS)
        exact, rough = (score_tuples(m, pairs) for m in (model, in_int8(model)))
    else:
        exact, rough = outputs(model), outputs(in_int8(model))
    # 16 features wide, so that one rounding is felt: the direction is what is kept.
    assert np.corrcoef(exact.ravel(), rough.ravel())[0, 1] > 0.95
    assert np.abs(exact - rough).max() > 0


def test_weights_are_rounded_once_and_tables_and_heads_stay():
    model = in_int8(student("bert_cross"))
    placed = forward.placed(model)
    outputs(model)
    assert forward.placed(model) is placed
    leaves = flatten(placed)
    kinds = {path: type(leaf) for path, leaf in leaves.items()}
    assert kinds["backbone.layers.0.up.kernel"] is Quantised
    assert leaves["backbone.layers.1.attention.key.kernel"].codes.dtype == jnp.int8
    rounded = [path for path, kind in kinds.items() if kind is Quantised]
    assert len(rounded) == 2 * 6
    assert leaves["backbone.embeddings.word"].dtype == jnp.float32
    assert not any(path.startswith("head.") for path in rounded)
    # What is kept and exported are the weights as they were read.
    assert flatten(model.params)["backbone.layers.0.up.kernel"].dtype == np.float32


@pytest.mark.parametrize("mesh", ["data=4", "data=2,fsdp=2", "data=2,model=2"])
@pytest.mark.parametrize("name", ["bert_cross", "t5_difference"])
def test_a_mesh_changes_nothing(name, mesh):
    model = in_int8(student(name))
    one, many = outputs(model), outputs(model, mesh=make_mesh(mesh))
    # A sum in another order may move a value over the border of two codes.
    np.testing.assert_allclose(one, many, atol=0.02 * np.abs(one).max())


@pytest.mark.parametrize("name", ["bert_cross", "t5_difference"])
def test_scanned_layers_compute_what_single_ones_do(name, monkeypatch):
    model = in_int8(student(name))
    want = outputs(model)
    monkeypatch.setattr("distill_jax.models.stack.SCANNED", 2)
    for module in (t5, bert):
        monkeypatch.setattr(module, "through", functools.partial(through, scan=True))
    forward.applied.cache_clear()
    np.testing.assert_allclose(outputs(model), want, atol=0.02 * np.abs(want).max())
    forward.applied.cache_clear()


def test_what_is_kept_on_disk_is_kept_by_dtype(tmp_path):
    model = student("dual_mean")
    features = side_features(model, "doc")
    keys = {
        embeddings_key(each, features, "float32") for each in (model, in_int8(model))
    }
    assert len(keys) == 2
    exact = embed_docs(model, features, tmp_path)
    assert not np.array_equal(exact, embed_docs(in_int8(model), features, tmp_path))
    assert model.digest != in_int8(model).digest  # of cached scores

    class Candidates:
        digest = "candidates"

    assert certificate(in_int8(model), Candidates, None)["dtype"] == "int8"


def test_a_student_is_not_trained_in_8_bits(tmp_path):
    with pytest.raises(UserError, match="int8 is for inference"):
        Student(dtype="int8")
    model = student("dual_mean")
    model.save(tmp_path)
    taught = Student(checkpoint=Checkpoint(path=str(tmp_path), dtype="int8"))
    with pytest.raises(UserError, match="int8 is for inference"):
        taught.make(lambda: [], 0)
    read = Checkpoint(path=str(tmp_path), dtype="int8")
    assert read.fields == {"dtype": "int8"}


def test_no_float_kernel_of_a_layer_enters_the_program():
    model = in_int8(student("dual_mean"))
    arrays = jax.tree.leaves(forward.placed(model)["tower"]["encoder"]["layers"])
    matrices = [leaf for leaf in arrays if leaf.ndim > 1]
    assert matrices
    assert all(leaf.dtype == jnp.int8 for leaf in matrices)
