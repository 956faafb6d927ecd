"""Foreign label files: small ones, written as their projects write them."""

from __future__ import annotations

import json
from math import exp, log

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill_jax.collections.collection import Collection
from distill_jax.io.errors import UserError
from distill_jax.labels.readers import read_labels
from distill_jax.labels.records import text_id


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_colbert_lines(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [7, [31, 2.5], [4, -999.0]], [8, [4, 1]])
    found = read_labels(path)
    assert found.labels.lists() == {"7": [("31", 2.5), ("4", -999.0)], "8": [("4", 1)]}
    assert found.pairs is None


def test_pairdistill_lines_give_pairs(tmp_path):
    line = [7, [31, 2.5, [[1, log(0.75)], [2, 0.0]]], [4, 1.0, []], [5, 0.5, []]]
    found = read_labels(jsonl(tmp_path / "x.jsonl", line))
    assert found.pairs is not None
    by_query = found.pairs.by_query()["7"]
    ids = found.pairs.doc_ids
    assert [(ids[i], ids[j]) for i, j, _ in by_query] == [("31", "4"), ("31", "5")]
    np.testing.assert_allclose([p for *_, p in by_query], [0.75, 1.0], rtol=1e-6)


def test_pylate_json_lines_and_parquet(tmp_path):
    record = {"query_id": 3, "document_ids": ["a", "b"], "scores": [0.5, 0.25]}
    expected = {"3": [("a", 0.5), ("b", 0.25)]}
    assert read_labels(jsonl(tmp_path / "x.jsonl", record)).labels.lists() == expected
    table = pa.Table.from_pylist([record])
    pq.write_table(table, tmp_path / "x.parquet")
    assert read_labels(tmp_path / "x.parquet").labels.lists() == expected
    strings = {**record, "document_ids": '["a", "b"]', "scores": "[0.5, 0.25]"}
    assert read_labels(jsonl(tmp_path / "y.jsonl", strings)).labels.lists() == expected


def test_sentence_transformers_labelled_lists(tmp_path):
    record = {"query": "why", "docs": ["because", "no"], "labels": [4.5, -2]}
    found = read_labels(jsonl(tmp_path / "x.jsonl", record))
    assert list(found.queries.texts) == ["why"]
    assert list(found.collection.texts) == ["because", "no"]
    assert found.labels.lists() == {
        text_id("why"): [(text_id("because"), 4.5), (text_id("no"), -2.0)]
    }
    assert found.labels.doc_ids is found.collection.ids


def test_flag_embedding(tmp_path):
    record = {"query": "q", "pos": ["a"], "neg": ["b", "c"]}
    found = read_labels(jsonl(tmp_path / "x.jsonl", record))
    assert found.labels.scores.tolist() == [[1, 0, 0]]
    record |= {"pos_scores": [3.5], "neg_scores": [1.5, -1]}
    found = read_labels(jsonl(tmp_path / "x.jsonl", record))
    assert found.labels.scores.tolist() == [[3.5, 1.5, -1]]


def test_tevatron(tmp_path):
    def passage(i, **more):
        return {"docid": f"d{i}", "title": f"T{i}", "text": f"text {i}", **more}

    record = {
        "query_id": "q",
        "query": "what",
        "positive_passages": [passage(1, score=9.5)],
        "negative_passages": [passage(2, score=-1.0)],
    }
    found = read_labels(jsonl(tmp_path / "x.jsonl", record))
    assert found.labels.lists() == {"q": [("d1", 9.5), ("d2", -1.0)]}
    assert found.collection.full_text(0) == "T1 text 1"
    record["positive_passages"] = [passage(1)]
    record["negative_passages"] = [passage(2)]
    found = read_labels(jsonl(tmp_path / "x.jsonl", record))
    assert found.labels.lists() == {"q": [("d1", 1.0), ("d2", 0.0)]}


TWOLAR = {
    "query": "what",
    "positive_passages": [],
    "retrieved_passages": [{"docid": str(i), "text": f"text {i}"} for i in (9, 3, 5)],
}


@pytest.mark.parametrize("whole", [False, True])
def test_twolar_lists_are_in_teacher_order(tmp_path, whole):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([TWOLAR], indent=1) if whole else json.dumps(TWOLAR))
    labels = read_labels(path).labels
    assert labels.kind == "rank"
    assert labels.lists() == {text_id("what"): [("9", 1), ("3", 2), ("5", 3)]}
    assert labels.training_labels().tolist() == [[3, 2, 1]]


@pytest.mark.parametrize(
    ("answer", "order"),
    [
        ("[2] > [3] > [1]", "359"),
        ("Of 3 passages, 2 fit: [3] > [3] > [8] > [1]", "593"),  # repaired
        ([2, 1], "395"),
        ("As a language model, 1 2 3", None),  # failed
        ("", None),
    ],
)
def test_rankgpt_answers(tmp_path, answer, order):
    records = jsonl(tmp_path / "x.jsonl", {**TWOLAR, "query_id": "q"})
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([answer]))
    found = read_labels(records, "rankgpt", permutations=answers)
    assert found.labels.failed.tolist() == [order is None]
    if order:
        lists = found.labels.lists()["q"]
        assert lists == [(doc_id, i) for i, doc_id in enumerate(order, 1)]
    else:
        assert not found.labels.where.any()
        assert "1 of 1 answers failed" in found.notices[-1]


def test_rankgpt_answers_must_match(tmp_path):
    records = jsonl(tmp_path / "x.jsonl", TWOLAR, TWOLAR)
    (tmp_path / "a.json").write_text('["[1]"]')
    with pytest.raises(UserError, match="1 answers to 2 queries"):
        read_labels(records, "rankgpt", permutations=tmp_path / "a.json")


def test_gpl_margins_become_scores(tmp_path):
    path = tmp_path / "gpl.tsv"
    path.write_text(
        "q\tp1\tn1\t4.5\nq\tp1\tn2\t-1\nq\tp2\tn2\t2\nq\tx\ty\t1\nr\tp1\tn1\t3\n"
    )
    found = read_labels(path)
    scores = dict(found.labels.lists()["q"])
    assert scores["p1"] - scores["n1"] == 4.5
    assert scores["p1"] - scores["n2"] == -1
    assert scores["p2"] - scores["n2"] == 2
    assert set(scores) == {"p1", "n1", "n2", "p2"}
    assert "2 docs left out" in found.notices[0]


def test_rank_distillm_run_files(tmp_path):
    path = tmp_path / "x.run"
    path.write_text(
        "1 Q0 a 1 9 rank_zephyr\n1 Q0 b 2 8 rank_zephyr\n"
        "2 Q0 c 2 3 rank_zephyr\n2 Q0 a 1 3 rank_zephyr\n"
    )
    found = read_labels(path)
    assert found.labels.kind == "rank"
    assert found.labels.lists() == {
        "1": [("a", 1), ("b", 2)],
        "2": [("a", 1), ("c", 2)],
    }
    assert read_labels(path, kind="score").labels.lists()["1"] == [("a", 9), ("b", 8)]
    rows = [
        {"query_id": "1", "doc_id": d, "rank": r, "score": s, "system": "z"}
        for d, r, s in (("b", 2, 8.0), ("a", 1, 9.0))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    found = read_labels(tmp_path / "x.parquet")
    assert found.labels.lists() == {"1": [("a", 1), ("b", 2)]}


def test_a_real_run(shared):
    path = shared / "runs" / "runs" / "webis-colbert.dl2019.trec.gz"
    labels = read_labels(path, "run").labels
    assert len(labels) == 43
    assert labels.rows.shape == (43, 500)
    # The first of each list has the highest label.
    assert (np.nanargmax(labels.training_labels(), axis=1) == 0).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["q", ["d", 1]]\n["q2", ["d"', r"x.jsonl:2:\d+: not JSON"),
        ('["q", ["d", 1]]\n{"a": 1}', "x.jsonl:2: not a record of format 'colbert'"),
        ('["q", ["d", "high"]]\n', "the text 'high', not a number"),
        ('["q", ["d", 1], ["d", 2]]\n["q", ["d", 1]]', "'q' occurs twice"),
        ('["q", ["d", 1]]\n' + "[" * 100_000, "x.jsonl:2: JSON nested too deep"),
        ("", "no labels"),
    ],
)
def test_errors_name_the_line(tmp_path, text, message):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_labels(path, "colbert")
    with pytest.raises(UserError, match='did you mean "colbert"'):
        read_labels(path, "colbret")


def test_rows_are_the_collections(tmp_path):
    collection = Collection(["b", "a"], ["", ""], name="toy")
    path = jsonl(tmp_path / "x.jsonl", ["q", ["a", exp(1)], ["b", 0]])
    labels = read_labels(path, collection=collection).labels
    assert labels.rows.tolist() == [[1, 0]]
    path = jsonl(tmp_path / "x.jsonl", ["q", ["a", 1], ["z", 0]])
    with pytest.raises(UserError, match="'z'"):
        read_labels(path, collection=collection)
    dropped = read_labels(path, collection=collection, unknown="drop")
    assert dropped.labels.lists() == {"q": [("a", 1)]}
