"""BM25 against bm25s, published figures and odd input."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.collections.schemes import load_collection
from distill_jax.evaluation.measures import evaluate
from distill_jax.io.errors import UserError
from distill_jax.retrieval import BM25
from distill_jax.retrieval.lexical import LUCENE_STOP_WORDS


def collection(*texts, titles=None):
    ids = [f"d{i}" for i in range(len(texts))]
    return Collection(ids, list(texts), titles)


@pytest.mark.parametrize(
    ("name", "ndcg", "recall"),
    [
        ("scifact", 0.677, 0.929),
        ("cranfield", 0.490, 0.736),
        ("medquad", 0.297, 0.772),
    ],
)
def test_reaches_the_published_measures(shared, name, ndcg, recall):
    spec = f"beir:{shared / 'collections' / name}"
    docs, queries, qrels = load_collection(spec, split="test")
    judged = queries.select(queries.rows(list(qrels.query_ids)))
    run = BM25.build(docs).search(judged, 100)
    found = evaluate(run, qrels, ["nDCG@10", "R@100"])
    assert found["nDCG@10"] == pytest.approx(ndcg, abs=0.004)
    assert found["R@100"] == pytest.approx(recall, abs=0.004)


def test_scores_are_lucenes_formula():
    docs = collection("red fox", "red red dog runs", "blue bird")
    run = BM25.build(docs, k1=0.9, b=0.4).search(["red"], 3)
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    mean = (2 + 4 + 2) / 3
    first = idf * 1 / (1 + 0.9 * (0.6 + 0.4 * 2 / mean))
    second = idf * 2 / (2 + 0.9 * (0.6 + 0.4 * 4 / mean))
    assert run.rows[0].tolist() == [1, 0, -1]
    assert run.scores[0, :2] == pytest.approx([second, first], rel=1e-6)


def test_scores_equal_bm25s():
    Stemmer = pytest.importorskip("Stemmer")
    # bm25s starts a JAX backend on import unless jax looks absent.
    hidden = sys.modules.pop("jax", None)
    sys.modules["jax"] = None
    try:
        bm25s = pytest.importorskip("bm25s")
    finally:
        del sys.modules["jax"]
        if hidden is not None:
            sys.modules["jax"] = hidden
    random = np.random.default_rng(0)
    words = np.array(
        [
            "running",
            "runs",
            "ran",
            "the",
            "flying",
            "flies",
            "a",
            "cat",
            "cats",
            "dog",
            "of",
        ]
    )
    texts = [" ".join(random.choice(words, random.integers(1, 30))) for _ in range(80)]
    queries = [" ".join(random.choice(words, 3)) for _ in range(20)] + ["cat cat dog"]
    options = {
        "token_pattern": r"\b\w+\b",
        "stopwords": list(LUCENE_STOP_WORDS),
        "stemmer": Stemmer.Stemmer("porter"),
        "show_progress": False,
    }
    theirs = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
    theirs.index(bm25s.tokenize(texts, **options), show_progress=False)
    tokens = bm25s.tokenize(queries, return_ids=False, **options)
    ours = BM25.build(collection(*texts)).search(queries, 80)
    for row, words_of_query in enumerate(tokens):
        expected = theirs.get_scores(words_of_query) if words_of_query else np.zeros(80)
        scores = np.zeros(80)
        scores[ours.rows[row][ours.rows[row] >= 0]] = ours.scores[row][ours.where[row]]
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_large_windows_are_searched_alike():
    # More docs than one window of the kernel; postings with gaps between windows.
    texts = ["common"] * 40_000
    texts[5] = texts[39_999] = "common rare"
    texts[20_000] = "rare rare"
    run = BM25.build(texts).search(["rare", "common", "rare common"], 3)
    assert set(run.rows[0].tolist()) == {5, 20_000, 39_999}
    # All ties: ids descending as strings.
    assert [run.doc_ids[r] for r in run.rows[1]] == ["9999", "9998", "9997"]
    assert set(run.rows[2].tolist()) == {5, 20_000, 39_999}


def test_ties_go_to_the_greater_id_at_the_cut():
    texts = ["same words"] * 50
    run = BM25.build(texts).search(["same"], 5)
    best = sorted((str(i) for i in range(50)), reverse=True)[:5]
    assert [run.doc_ids[row] for row in run.rows[0]] == best


def test_odd_queries_and_docs():
    docs = collection("", "Ünïcode ÇA marche", "the of and", "北京 大学")
    index = BM25.build(docs)
    run = index.search(["", "the of", "ünïcode", "北京", "unknownword"], 10)
    assert run.rows.shape == (5, 4)
    assert run.where.sum(1).tolist() == [0, 0, 1, 1, 0]
    assert run.rows[2, 0] == 1
    assert run.rows[3, 0] == 3
    assert len(index.search([], 10)) == 0


def test_one_document_and_only_empty_documents():
    assert BM25.build(["one doc"]).search(["doc"], 100).rows.tolist() == [[0]]
    assert BM25.build(["", ""]).search(["doc"], 2).where.sum() == 0
    with pytest.raises(UserError, match="without docs"):
        BM25.build([])
    with pytest.raises(UserError, match="k=0"):
        BM25.build(["one"]).search(["one"], 0)


def test_titles_count_and_query_ids_stay():
    docs = collection("body text", "other", titles=["zebra", ""])
    queries = Queries(["007", "ü/1"], ["zebra", "other"])
    run = BM25.build(docs).search(queries, 2)
    assert run.query_ids == ("007", "ü/1")
    assert run.rows[:, 0].tolist() == [0, 1]


def test_saved_and_loaded_searches_alike(tmp_path):
    docs = collection("red fox", "red red dog runs", "blue bird Ü")
    index = BM25.build(docs, k1=1.2, b=0.75)
    index.save(tmp_path / "index here")
    queries = ["red", "runs bird", "ü"]
    expected = index.search(queries, 3)
    for loaded in (
        BM25.load(tmp_path / "index here"),
        BM25.load(tmp_path / "index here", docs),
    ):
        run = loaded.search(queries, 3)
        np.testing.assert_array_equal(run.rows, expected.rows)
        np.testing.assert_array_equal(run.scores, expected.scores)
    with pytest.raises(UserError, match="another collection"):
        BM25.load(tmp_path / "index here", collection("red fox"))


def test_damaged_index_is_refused(tmp_path):
    BM25.build(["red fox", "blue"]).save(tmp_path)
    docs = np.load(tmp_path / "docs.npy")
    np.save(tmp_path / "docs.npy", docs + 1000)  # would read outside the accumulator
    with pytest.raises(UserError, match="damaged"):
        BM25.load(tmp_path)
    np.save(tmp_path / "docs.npy", docs.astype(np.int64))
    with pytest.raises(UserError, match="int64"):
        BM25.load(tmp_path)
    (tmp_path / "docs.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(UserError, match=r"docs\.npy"):
        BM25.load(tmp_path)
    (tmp_path / "index.json").unlink()
    with pytest.raises(UserError, match="no index"):
        BM25.load(tmp_path)


def test_threads_do_not_change_the_answer():
    random = np.random.default_rng(1)
    texts = [" ".join(map(str, random.integers(0, 50, 12))) for _ in range(300)]
    index = BM25.build(texts)
    one = index.search(texts[:200], 10, threads=1)
    four = index.search(texts[:200], 10, threads=4)
    np.testing.assert_array_equal(one.rows, four.rows)
    np.testing.assert_array_equal(one.scores, four.scores)
