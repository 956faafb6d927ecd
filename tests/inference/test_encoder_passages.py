"""An encoder scores a document over its length by the best of its passages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from distill_jax import export
from distill_jax.collections.collection import Collection, Queries
from distill_jax.inference.texts import score_tuples
from distill_jax.io.errors import UserError
from distill_jax.predictor import Predictor
from distill_jax.workspace import ranking
from distill_jax.workspace.context import Workspace
from tests.export.forms import student

pytest.importorskip("torch")
library = pytest.importorskip("sentence_transformers", minversion="6")

WORDS = ["water", "boil", "vaccine", "city", "tokyo", "bone", "pain", "bus", "lane"]
QUERIES = ["what is high", "vaccine", "bus lane in tokyo"]
LENGTH = 12
# Words of a window beside the special tokens, and of ColBERT the marker.
FORMS = {
    "dual_mean": ("SentenceTransformer", 10),
    "dual_cosine": ("SentenceTransformer", 10),
    "dual_two_towers": ("SentenceTransformer", 10),
    "splade": ("SparseEncoder", 10),
    "colbert": ("MultiVectorEncoder", 9),
}


def documents() -> list[str]:
    rng = np.random.default_rng(7)
    sizes = [1, 5, 9, 10, 11, 20, 21, 33, 47, 60, 8, 30]
    return [" ".join(rng.choice(WORDS, size)) for size in sizes]


def model(name: str, passages: int):
    found = student(name)
    fields = {"doc_length": LENGTH, "passages": passages}
    return found.replace(spec=dataclasses.replace(found.spec, **fields))


def by_the_library(name: str, passages: int, folder) -> np.ndarray:
    """Scores [queries, documents]: the maximum over windows, each encoded alone."""
    kind, room = FORMS[name]
    export.write(student(name), folder, library=False)
    sides = [folder, folder]
    if name == "dual_two_towers":
        sides = [folder / "query_encoder", folder / "doc_encoder"]
    query, doc = (getattr(library, kind)(str(side), device="cpu") for side in sides)
    queries = query.encode_query(QUERIES)
    scores = []
    for text in documents():
        words = text.split()
        parts = [" ".join(words[at : at + room]) for at in range(0, len(words), room)][
            :passages
        ]
        found = query.similarity(queries, doc.encode_document(parts))
        scores.append(np.asarray(found.cpu()).max(axis=1))
    return np.stack(scores, axis=1)


@pytest.mark.parametrize("passages", [1, 2, 9])
@pytest.mark.parametrize("name", FORMS)
def test_scores_and_searches_are_the_greatest_over_windows(name, passages, tmp_path):
    ours, docs = model(name, passages), documents()
    expected = by_the_library(name, passages, tmp_path / "out")
    pairs = [(query, doc) for query in QUERIES for doc in docs]
    found = score_tuples(ours, pairs).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    order = np.argsort(-expected[1], kind="stable")
    ranked = Predictor(ours).rank(QUERIES[1], docs, k=4)
    assert [row for row, _ in ranked] == order[:4].tolist()

    workspace = Workspace(
        directory=tmp_path,
        collection=Collection([f"d{n:02d}" for n in range(len(docs))], docs),
        train=None,
        dev=None,
        test=None,
        mesh=None,
        seed=0,
    )
    queries = Queries(["a", "b", "c"], QUERIES)
    for depth in (4, len(docs)):
        run = ranking.search(
            ours, queries, workspace, depth=depth, directory=tmp_path / "vectors"
        )
        assert run.depth == depth
        best = -np.sort(-expected, axis=1)[:, :depth]
        # ColBERT's vectors are kept in half precision.
        atol = 2e-3 * np.abs(expected).max() if name == "colbert" else 1e-5
        np.testing.assert_allclose(run.scores, best, rtol=1e-5, atol=atol)
        at = np.take_along_axis(expected, run.rows, 1)
        np.testing.assert_allclose(run.scores, at, rtol=1e-5, atol=atol)
    again = ranking.rerank(ours, queries, run, workspace)
    np.testing.assert_allclose(again.scores, best, rtol=1e-5, atol=1e-5)


def test_ties_of_passages_break_as_ties_of_documents(tmp_path):
    """The same passage in every document: the run is that of equal documents."""
    same = " ".join(WORDS[:10])
    ids = ["b", "a", "a1", "c", "a\x01"]
    texts = [f"{same} {same}"] * len(ids)
    workspace = Workspace(
        directory=tmp_path,
        collection=Collection(ids, texts),
        train=None,
        dev=None,
        test=None,
        mesh=None,
        seed=0,
    )
    run = ranking.search(
        model("dual_mean", 2),
        Queries(["q"], QUERIES[:1]),
        workspace,
        depth=3,
        directory=tmp_path / "vectors",
    )
    assert [ids[row] for row in run.rows[0]] == ["c", "b", "a1"]


def test_vectors_of_other_numbers_of_passages_are_kept_apart(tmp_path):
    workspace = Workspace(
        directory=tmp_path,
        collection=Collection(["x", "y"], [" ".join(WORDS * 4), "water"]),
        train=None,
        dev=None,
        test=None,
        mesh=None,
        seed=0,
    )
    shapes = [
        ranking.corpus_vectors(
            ours, workspace, tmp_path / "v", ranking.doc_passages(ours, workspace)
        ).shape
        for ours in (model("dual_mean", n) for n in (1, 2, 3, 9))
    ]
    assert [rows for rows, _ in shapes] == [2, 3, 4, 5]


@pytest.mark.parametrize("name", ["dual_mean", "splade", "colbert"])
def test_what_takes_one_vector_refuses_several_passages(name):
    with pytest.raises(UserError, match="encode_docs takes one vector"):
        Predictor(model(name, 2)).encode_docs(["water"])
    with pytest.raises(UserError, match="passages=0"):
        model(name, 0)
