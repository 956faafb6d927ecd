"""A linear layer on the query's vector is trained alone, on vectors computed once."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from distill_jax import main, weights
from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.errors import UserError
from distill_jax.models.dual_encoder import DualEncoderSpec
from distill_jax.models.encoder_sizes import bert_sizes
from distill_jax.models.pretrained import (
    Pretrained,
    flatten,
    initial_params,
    unflatten,
)
from distill_jax.recipe import query_adapter
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.training import Training
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.workspace.context import Workspace

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiles_fast")]

FORMS: list[dict[str, Any]] = [
    {},
    {"normalise": False, "similarity": "cosine", "pooling": "cls"},
    {"projection": 24, "projection_activation": "tanh", "projection_bias": True},
    {"projection": 24, "more_projections": ((16, True, "gelu"),), "truncate_dim": 8},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_wordpiece(["a few words of a text", "and another one"], 60)


@pytest.fixture
def context(tmp_path) -> Context:
    queries = Queries(["a", "b", "c"], ["a few", "another text", "words of one"])
    docs = Collection(ids=["d0", "d1"], texts=["a text", "another"])
    workspace = Workspace(
        directory=tmp_path,
        collection=docs,
        train=None,
        dev=None,
        test=None,
        mesh=None,
        seed=0,
    )
    return Context(
        workspace=workspace,
        queries=queries,
        student=None,
        model=None,
        directory=tmp_path,
    )


def model(tokenizer, **changes) -> Pretrained:
    backbone = bert_sizes("tiny", vocab_size=128, pad_id=tokenizer.pad_id)
    spec = DualEncoderSpec(backbone=backbone, **changes)
    return Pretrained(
        spec=spec, params=initial_params(spec, 0), tokenizer=tokenizer, source="test"
    )


def vectors_of(student: Pretrained, context: Context, side: str) -> np.ndarray:
    features = context.workspace.query_features(student, context.queries)
    tokens = features.tokens(16, text=np.arange(len(context.queries)))
    module = student.module()
    encode = module.encode_queries if side == "query" else module.encode_docs
    return np.asarray(encode(tokens))


@pytest.mark.parametrize("changes", FORMS)
def test_an_adapter_that_is_not_trained_changes_no_bit(tokenizer, context, changes):
    base = model(tokenizer, **changes)
    student = query_adapter.with_adapter(base)
    assert not student.spec.tied
    for side in ("query", "doc"):
        np.testing.assert_array_equal(
            vectors_of(student, context, side), vectors_of(base, context, side)
        )
    assert student.doc_digest == base.doc_digest
    assert query_adapter.with_adapter(student) is student


@pytest.mark.parametrize("changes", FORMS)
def test_a_row_of_the_table_has_the_vector_of_its_query(tokenizer, context, changes):
    """Of a random layer: what is learnt on the table is what the model computes."""
    student = query_adapter.with_adapter(model(tokenizer, **changes))
    table = query_adapter.on_vectors(student, context, context.queries)
    shape = table.params["tower"]["projection"]["kernel"].shape
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tower = table.params["tower"] | {"projection": {"kernel": kernel}}
    table = table.replace(params={"tower": tower})
    trained = query_adapter.with_layer(student, table.params)
    tokens = np.arange(1, 4, dtype=np.int32)[:, None]
    expected = vectors_of(trained, context, "query")
    found = np.asarray(table.module().encode_queries(tokens))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # By numpy, from the vectors of the model without the layer.
    plain = dataclasses.replace(
        model(tokenizer, **changes).spec,
        normalise=False,
        similarity="dot",
        truncate_dim=None,
    )
    bare = vectors_of(model(tokenizer, **changes).replace(spec=plain), context, "query")
    written = bare @ kernel
    if student.spec.normalise or student.spec.similarity == "cosine":
        written = written / np.linalg.norm(written, axis=1, keepdims=True)
    np.testing.assert_allclose(
        expected, written[:, : student.spec.width], rtol=1e-4, atol=1e-5
    )
    # Documents do not pass it, and have the digest that they had.
    np.testing.assert_array_equal(
        vectors_of(trained, context, "doc"), vectors_of(student, context, "doc")
    )
    assert trained.doc_digest == model(tokenizer, **changes).doc_digest
    assert trained.digest != student.digest


def test_a_layer_that_changes_documents_counts_in_their_digest(tokenizer):
    student = query_adapter.with_adapter(model(tokenizer))
    flat = flatten(student.params)
    name = "doc_tower.projection.kernel"
    other = student.replace(params=unflatten(flat | {name: 2 * flat[name]}))
    assert other.doc_digest != student.doc_digest
    bent = dataclasses.replace(student.spec, projection_activation="tanh")
    assert student.replace(spec=bent).doc_digest != student.doc_digest


def test_other_parameters_cannot_be_named_with_the_adapter(tokenizer):
    training = Training(objective=None, trained="adapter", trainable="layers")
    with pytest.raises(UserError, match="the adapter alone is trained"):
        training.check(model(tokenizer))


def test_a_job_trains_the_adapter_alone_in_rounds(tmp_path, toy):
    flags = {
        "MODEL_DIR": tmp_path,
        "COLLECTION": toy,
        "TRAINED": "'adapter'",
        "MESH": "data=1",
        "EXPORT": "'sentence_transformers'",
        "VOCABULARY_SIZE": 300,
        "QUERY_LENGTH": 12,
        "DOC_LENGTH": 20,
        "MAX_TEST_QUERIES": 8,
        "DEV_SHARE": 0.3,
        "LIST_SIZE": 12,
        "POOL": 12,
        "KEEP_BASE": False,
        "AVERAGES": "(1.0,)",
        "STOP_MEASURE": None,
        "ROUNDS": 2,
    }
    words = [f"--gin.{name}={value}" for name, value in flags.items()]
    files = ["--gin_file=query_side.gin", "--gin_file=small.gin"]
    assert main.main([*files, *words]) == 0
    from sentence_transformers import SentenceTransformer

    report = json.loads((tmp_path / "report.json").read_text())
    student = Pretrained.read(tmp_path / "student")
    initial = flatten(Pretrained.read(tmp_path / "initial").params["tower"])
    layer = {"projection.kernel": np.eye(student.spec.width, dtype=np.float32)}
    docs, queries = (
        flatten(student.params[side]) for side in ("doc_tower", "query_tower")
    )
    assert docs.keys() == queries.keys() == (initial | layer).keys()
    for name, expected in (initial | layer).items():
        np.testing.assert_array_equal(docs[name], expected)
        assert np.array_equal(queries[name], expected) == (name not in layer)
    # Documents were encoded once, for the base, both rounds, and what is kept.
    assert len(list((tmp_path / "vectors").glob("*/embeddings.json"))) == 1
    assert report["provenance"]["document vectors"]
    query, doc = (
        SentenceTransformer(str(tmp_path / f"export/{side}_encoder"), device="cpu")
        for side in ("query", "doc")
    )
    loaded = weights.load(str(tmp_path / "export"), kind="dual_encoder")
    assert loaded.doc_digest == student.doc_digest
    text = ["a root"]  # short enough for both encoders
    bare = doc.encode(text)
    written = bare @ queries["projection.kernel"]
    written /= np.linalg.norm(written)
    np.testing.assert_allclose(query.encode(text), written, rtol=1e-3, atol=1e-5)
    assert not np.allclose(written, bare, rtol=1e-3)
