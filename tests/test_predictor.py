"""``distill_jax.load``: what notebooks and other programs rely on."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

import distill_jax
from distill_jax.io.errors import UserError
from distill_jax.predictor import Predictor
from distill_jax.runtime.sharding import make_mesh
from tests.export.forms import student

DOCS = [
    "vaccine",
    "water boils at a high point, and the city council voted on bus lanes",
    "",
    "vitamin d deficiency and bone pain " * 3,
    "東京 naïve café",
]
QUERY = "what is the boiling point"


def predictor(name: str) -> Predictor:
    return Predictor(student(name))


def test_load_is_reached_from_the_package(tmp_path):
    student("bert_cross").save(tmp_path)
    model = distill_jax.load(tmp_path)
    assert model.kind == "reranker"
    assert str(tmp_path) in repr(model)


@pytest.mark.parametrize(
    "name", ["bert_cross", "dual_mean", "colbert", "splade", "generator"]
)
def test_a_score_does_not_depend_on_its_company(name):
    model = predictor(name)
    together = model.score([(QUERY, doc) for doc in DOCS])
    assert together.dtype == np.float32
    assert together.shape == (len(DOCS),)
    alone = [model.score([(QUERY, doc)])[0] for doc in DOCS]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    backwards = model.score([(QUERY, doc) for doc in DOCS[::-1]])
    np.testing.assert_allclose(together, backwards[::-1], rtol=1e-5, atol=1e-5)
    on_mesh = Predictor(model.pretrained, make_mesh("data=2"))
    np.testing.assert_allclose(
        together, on_mesh.score([(QUERY, doc) for doc in DOCS]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["bert_cross", "colbert"])
def test_rank_is_score_in_order(name):
    model = predictor(name)
    scores = model.score([(QUERY, doc) for doc in DOCS])
    ranked = model.rank(QUERY, DOCS, k=3)
    assert [position for position, _ in ranked] == list(np.argsort(-scores)[:3])
    np.testing.assert_allclose([s for _, s in ranked], np.sort(scores)[::-1][:3])
    assert len(model.rank(QUERY, DOCS, k=None)) == len(DOCS)
    # Equal documents have equal scores, and keep their order.
    twice = model.rank(QUERY, [DOCS[0]] * 3)
    assert [position for position, _ in twice] == [0, 1, 2]


def test_a_duo_ranks_by_its_wins_in_both_orders():
    model = predictor("t5_duo")
    docs = DOCS[:3]
    expected = np.zeros(3)
    for i in range(3):
        for j in range(3):
            if i != j:
                (logit,) = model.score([(QUERY, docs[i], docs[j])])
                wins = 1 / (1 + np.exp(-float(logit)))
                expected[i] += wins
                expected[j] += 1 - wins
    found = dict(model.rank(QUERY, docs))
    np.testing.assert_allclose(
        [found[i] for i in range(3)], expected, rtol=1e-5, atol=1e-5
    )
    assert model.rank(QUERY, docs[:1]) == [(0, 0.0)]


def test_vectors_have_the_promised_forms():
    dual = predictor("dual_dense").encode_docs(DOCS)
    assert dual.shape == (5, 12)
    assert dual.dtype == np.float32
    late = predictor("colbert").encode_queries(DOCS[:2])
    assert [vectors.shape for vectors in late] == [(24, 8)] * 2
    docs = predictor("colbert").encode_docs(["vaccine", "vaccine , water ."])
    # [CLS] [D] vaccine [SEP], and one word more: punctuation is left out.
    assert [len(vectors) for vectors in docs] == [4, 5]
    sparse = predictor("splade").encode_docs(DOCS)
    assert scipy.sparse.issparse(sparse)
    assert sparse.shape == (5, student("splade").spec.backbone.vocab_size)
    assert sparse.min() >= 0


@pytest.mark.parametrize("name", ["dual_mean", "colbert", "splade", "bert_cross"])
def test_nothing_in_nothing_out(name):
    model = predictor(name)
    assert model.score([]).shape == (0,)
    assert model.rank(QUERY, []) == []
    if name == "bert_cross":
        return
    empty = model.encode_docs([])
    assert len(empty) == 0 if isinstance(empty, list) else empty.shape[0] == 0
    if not isinstance(empty, list):
        assert empty.shape[1] == model.encode_docs(["a"]).shape[1]


def test_mistakes_are_told():
    cross, duo = predictor("bert_cross"), predictor("t5_duo")
    with pytest.raises(UserError, match="no vectors"):
        cross.encode_docs(["a"])
    with pytest.raises(UserError, match="writes no queries"):
        cross.generate(["a"])
    with pytest.raises(UserError, match="no vectors"):
        predictor("generator").encode_docs(["a"])
    with pytest.raises(UserError, match="item 1 is not"):
        cross.score([("a", "b"), "ab"])
    with pytest.raises(UserError, match="other doc"):
        duo.score([("a", "b")])
    with pytest.raises(UserError, match="list of texts"):
        predictor("dual_mean").encode_docs("a text")
    with pytest.raises(UserError, match="NoneType"):
        cross.score([("a", None)])
