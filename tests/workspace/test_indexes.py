"""An index is built once, kept, and read by later calls and jobs."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.errors import UserError
from distill_jax.ops.vector_form import VectorForm
from distill_jax.recipe.candidates import BM25
from distill_jax.retrieval import BM25 as Index
from distill_jax.retrieval import Exact, LateInteraction, Scann
from distill_jax.workspace import ranking

DOCS = Collection(["a", "b", "c"], ["red fox", "red red hen", "a blue fox"])
QUERIES = Queries(["q1", "q2"], ["red", "blue fox"])


@pytest.fixture
def builds(monkeypatch):
    made, build = [], Index.build
    monkeypatch.setattr(
        Index, "build", lambda *a, **k: made.append(k) or build(*a, **k)
    )
    return made


def searched(directory, docs=DOCS, **settings):
    workspace = SimpleNamespace(directory=directory, collection=docs, indexes={})
    context = SimpleNamespace(workspace=workspace, queries=QUERIES)
    runs = [BM25(depth=3, **settings)(context) for _ in range(2)]
    np.testing.assert_array_equal(runs[0].rows, runs[1].rows)
    return runs[0]


def test_an_index_is_built_once_and_read_by_the_next_job(tmp_path, builds):
    first = searched(tmp_path)
    again = searched(tmp_path)
    assert len(builds) == 1
    np.testing.assert_array_equal(first.rows, again.rows)
    np.testing.assert_array_equal(first.scores, again.scores)
    plain = Index.build(DOCS).search(QUERIES, 3)
    np.testing.assert_array_equal(first.scores, plain.scores)


def test_other_settings_and_other_documents_have_their_own(tmp_path, builds):
    searched(tmp_path)
    searched(tmp_path, k1=1.2)
    searched(tmp_path, docs=Collection(["a"], ["red"]))
    assert len(builds) == 3


def test_a_damaged_index_is_not_used(tmp_path):
    searched(tmp_path)
    for path in sorted((tmp_path / "indexes").rglob("*")):
        if path.is_dir():
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=path.name):
            searched(tmp_path)
        path.write_bytes(whole)
    searched(tmp_path)


COUNT = 600
IDS = Collection([f"d{n}" for n in range(COUNT)], ["a text"] * COUNT)
NEEDS_SCANN = pytest.mark.skipif(find_spec("scann") is None, reason="no scann")
TOKENS = [
    row / np.linalg.norm(row, axis=1, keepdims=True)
    for row in np.random.default_rng(0).normal(size=(COUNT, 3, 16)).astype(np.float16)
]
DENSE = np.stack([row[0] for row in TOKENS]).astype(np.float32)


def vectors_searched(monkeypatch, directory, form, index, *, depth=5, vectors="first"):
    """The run of a search by a model of that form, and which classes were built."""
    docs = DENSE if form is VectorForm.ONE else TOKENS
    if vectors != "first":
        docs = docs[::-1]
    built = []
    for kind in (Scann, LateInteraction):
        make = kind.__dict__["build"].__func__

        def noted(cls, *given, make=make, **named):
            built.append(cls)
            return make(cls, *given, **named)

        monkeypatch.setattr(kind, "build", classmethod(noted))
    monkeypatch.setattr(ranking, "encode_all", lambda *given, **more: docs[:4])
    monkeypatch.setattr(ranking, "corpus_vectors", lambda *given: docs)
    monkeypatch.setattr(ranking, "vectors_key", lambda *given: vectors)
    spec = SimpleNamespace(vectors=form, similarity="dot", kind="x", passages=1)
    workspace = SimpleNamespace(
        query_features=lambda *given: None,
        doc_features=lambda *given: None,
        collection=IDS,
        mesh=None,
        directory=directory,
        indexes={},
    )
    run = ranking.search(
        SimpleNamespace(spec=spec),  # type: ignore[arg-type]
        Queries(list("abcd"), [""] * 4),
        workspace,  # type: ignore[arg-type]
        depth=depth,
        directory=directory,
        index=index,
    )
    monkeypatch.undo()
    return run, built


@pytest.mark.parametrize(
    ("form", "index", "classes"),
    [
        pytest.param(VectorForm.ONE, "scann", [Scann], marks=NEEDS_SCANN),
        (VectorForm.PER_TOKEN, "exact", [LateInteraction]),
        pytest.param(
            VectorForm.PER_TOKEN,
            "scann",
            [LateInteraction, Scann],
            marks=NEEDS_SCANN,
        ),
    ],
)
def test_an_index_of_vectors_is_built_once_for_each_digest_of_them(
    tmp_path, monkeypatch, form, index, classes
):
    run, built = vectors_searched(monkeypatch, tmp_path, form, index)
    assert built == classes
    again, built = vectors_searched(monkeypatch, tmp_path, form, index)
    assert built == []
    np.testing.assert_array_equal(run.rows, again.rows)
    np.testing.assert_array_equal(run.scores, again.scores)
    assert run.rows[:, 0].tolist() == [0, 1, 2, 3]  # each document finds itself
    other, built = vectors_searched(
        monkeypatch, tmp_path, form, index, vectors="second"
    )
    assert built == classes
    assert other.rows[:, 0].tolist() == [0, 1, 2, 3]


@NEEDS_SCANN
def test_a_kept_tree_is_searched_as_widely_as_another_depth_calls_for(
    tmp_path, monkeypatch
):
    form = VectorForm.ONE
    vectors_searched(monkeypatch, tmp_path, form, "scann", depth=3)
    run, built = vectors_searched(monkeypatch, tmp_path, form, "scann", depth=50)
    assert built == []
    exact = Exact.build(DENSE, IDS.ids).search(DENSE[:4], 50)
    found = [len(np.intersect1d(a, b)) / 50 for a, b in zip(run.rows, exact.rows)]
    assert np.mean(found) >= 0.99


def test_a_damaged_index_of_vectors_is_named_and_not_used(tmp_path, monkeypatch):
    form = VectorForm.PER_TOKEN
    vectors_searched(monkeypatch, tmp_path, form, "exact")
    path = next((tmp_path / "indexes").rglob("values.npy"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"values\.npy") as caught:
        vectors_searched(monkeypatch, tmp_path, form, "exact")
    assert "built again" in caught.value.todo
