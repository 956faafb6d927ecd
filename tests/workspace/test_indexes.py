"""BM25 of a collection is built once, kept, and read by later calls and jobs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.errors import UserError
from distill_jax.recipe.candidates import BM25
from distill_jax.retrieval import BM25 as Index

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
