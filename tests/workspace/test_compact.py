"""Smaller vectors of one model: each form against a search written out in numpy."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.errors import UserError
from distill_jax.ops.vector_form import VectorForm
from distill_jax.workspace import compact

DOCS, QUERIES, WIDTH = 40, 5, 12


@dataclasses.dataclass
class Spec:
    kind: str = "dual_encoder"
    vectors: VectorForm = VectorForm.ONE
    width: int = WIDTH
    normalise: bool = True
    similarity: str = "dot"


@pytest.fixture
def vectors(monkeypatch):
    """Random vectors in place of encoded texts: (queries, documents)."""
    random = np.random.default_rng(0)
    q = random.normal(size=(QUERIES, WIDTH)).astype(np.float32)
    d = random.normal(size=(DOCS, WIDTH)).astype(np.float32)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    monkeypatch.setattr(compact, "encode_all", lambda *_, **__: q)
    monkeypatch.setattr(compact, "corpus_vectors", lambda *_: d)
    return q, d


def search(forms, depth=6, **spec):
    ids = [f"d{i:02d}" for i in range(DOCS)]
    workspace = SimpleNamespace(
        collection=Collection(ids, ids),
        mesh=None,
        query_features=lambda model, queries: None,
    )
    queries = Queries([f"q{i}" for i in range(QUERIES)], ["x"] * QUERIES)
    model = SimpleNamespace(spec=Spec(**spec))
    return compact.search(model, queries, workspace, forms, depth=depth, directory=None)


def quantised(d):
    scale = np.abs(d).max(1, keepdims=True) / 127
    return np.rint(d / scale) * scale


def signs(x):
    return np.where(x > 0, 1, -1)


def assert_best(run, scores, depth=6):
    """The run has each query's best by the scores, in their order."""
    assert run.rows.shape == (QUERIES, depth)
    found = np.take_along_axis(scores, run.rows, 1)
    np.testing.assert_allclose(found, -np.sort(-scores, 1)[:, :depth], atol=1e-5)
    np.testing.assert_allclose(run.scores, found, atol=1e-5)


def test_the_first_numbers_are_brought_to_unit_length(vectors):
    q, d = (x[:, :5] for x in vectors)
    dots = q @ d.T
    cosines = dots / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(d, axis=1)
    assert_best(search((5,))["5 dimensions"], cosines)
    assert_best(search((5,), normalise=False)["5 dimensions"], dots)


def test_eight_bits_and_signs(vectors):
    q, d = vectors
    found = search(("int8", "binary"))
    assert_best(found["int8"], q @ quantised(d).T)
    differ = (signs(q)[:, None] != signs(d)[None]).sum(-1)
    assert_best(found["binary"], (WIDTH - 2 * differ).astype(np.float32))


def test_signs_choose_and_eight_bits_put_in_order(vectors):
    q, d = vectors
    run = search(("rescored",), depth=2)["rescored"]
    coarse = signs(q) @ signs(d).T
    for line in range(QUERIES):
        # Ties of signs: the greater id first, as everywhere in runs.
        some = sorted(range(DOCS), key=lambda row: (-coarse[line, row], -row))
        some = some[: 2 * compact.OVERSAMPLE]
        fine = {row: float(q[line] @ quantised(d)[row]) for row in some}
        best = sorted(fine, key=lambda row: -fine[row])[:2]
        assert run.rows[line].tolist() == best


@pytest.mark.parametrize(
    ("forms", "spec", "words"),
    [
        ((12,), {}, "12 dimensions, of 12"),
        ((0,), {}, "0 dimensions"),
        (("int7",), {}, "int8"),
        (("int8",), {"kind": "colbert", "vectors": VectorForm.PER_TOKEN}, "colbert"),
    ],
)
def test_forms_that_are_not_there_are_refused(vectors, forms, spec, words):
    with pytest.raises(UserError) as error:
        search(forms, **spec)
    assert words in f"{error.value.what} {error.value.todo}"


def test_bytes_of_a_document():
    assert compact.bytes_of("binary", 384).startswith("binary: 48 bytes")
    assert compact.bytes_of("int8", 384).startswith("int8: 388 bytes")
    assert compact.bytes_of(64, 384).endswith("256 bytes a document instead of 1,536")
