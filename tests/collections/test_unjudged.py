"""Queries that nobody judged, and sets that are one split."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import pytest

from distill_jax.collections.schemes import load_collection
from distill_jax.io.errors import UserError
from distill_jax.workspace.context import open_workspace


def folder(path: Path, qrels: dict[str, str]) -> str:
    (path / "qrels").mkdir(parents=True)
    docs = [{"_id": f"d{i}", "text": f"document number {i}"} for i in range(4)]
    asked = [{"_id": f"q{i}", "text": f"query number {i}"} for i in range(6)]
    for name, rows in (("corpus", docs), ("queries", asked)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (path / f"{name}.jsonl").write_text(lines)
    for split, lines in qrels.items():
        (path / f"qrels/{split}.tsv").write_text(lines)
    return f"beir:{path}"


def test_queries_that_no_qrels_name_are_training_queries(tmp_path):
    spec = folder(tmp_path / "set", {"test": "q0\td0\t1\n", "dev": "q1\td1\t0\n"})
    _, queries, qrels = load_collection(spec, "train")
    assert queries.ids == ["q2", "q3", "q4", "q5"]
    assert len(qrels) == 0
    assert load_collection(spec, "test")[1].ids == ["q0"]


def test_unjudged_queries_join_the_judged_ones(tmp_path):
    spec = folder(tmp_path / "set", {"test": "q0\td0\t1\n", "train": "q3\td2\t1\n"})
    collection, queries, qrels = load_collection(spec, "train")
    assert queries.ids == ["q1", "q2", "q3", "q4", "q5"]
    assert qrels.query_ids == ("q3",)
    assert any(
        "4 of 5 training queries are not judged" in n for n in collection.notices
    )


def test_without_unjudged_queries_there_is_no_training_split(tmp_path):
    everything = "".join(f"q{i}\td1\t1\n" for i in range(6))
    spec = folder(tmp_path / "set", {"test": everything})
    with pytest.raises(UserError, match="no split 'train'"):
        load_collection(spec, "train")


def test_only_judged_queries_are_held_out(tmp_path):
    train = "q1\td1\t1\nq2\td2\t1\nq3\td2\t1\n"
    spec = folder(tmp_path / "set", {"test": "q0\td0\t1\n", "train": train})
    workspace = open_workspace(tmp_path / "job", spec, dev_share=0.5)
    assert workspace.train is not None
    assert {"q4", "q5"} <= set(workspace.train.queries.ids)
    if workspace.dev is not None:
        assert set(workspace.dev.queries.ids) <= {"q1", "q2", "q3"}


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("a.tsv", "x1\tfirst one\nx2\tsecond one\n", ["x1", "x2"]),
        ("a.txt", "first one\n\nsecond one\n", ["a-1", "a-3"]),
        (
            "a.jsonl",
            '{"_id": "x", "text": "first one"}\n{"text": "second one"}\n',
            ["x", "a-2"],
        ),
    ],
)
def test_queries_of_a_file_are_trained_on(tmp_path, name, text, ids):
    spec = folder(tmp_path / "set", {"test": "q0\td0\t1\n"})
    (tmp_path / name).write_text(text)
    workspace = open_workspace(
        tmp_path / "job", spec, train_queries=f"queries:{tmp_path / name}"
    )
    assert workspace.train is not None
    assert list(workspace.train.queries.ids) == ids
    assert list(workspace.train.queries.texts) == ["first one", "second one"]
    assert len(workspace.train.qrels) == 0


def test_a_file_of_queries_with_three_columns_is_refused(tmp_path):
    (tmp_path / "a.tsv").write_text("q1\tone\nq2\ttwo\tmore\n")
    with pytest.raises(UserError, match=r"a\.tsv:2: 3 columns"):
        load_collection(f"queries:{tmp_path / 'a.tsv'}")


BEIR = [
    *(
        [
            "arguana",
            "climate-fever",
            "nq",
            "scidocs",
            "trec-covid",
            "webis-touche2020/v2",
        ]
    ),
    *(
        f"cqadupstack/{forum}"
        for forum in [
            "android",
            "english",
            "gaming",
            "gis",
            "mathematica",
            "physics",
            "programmers",
            "stats",
            "tex",
            "unix",
            "webmasters",
            "wordpress",
        ]
    ),
]
ONE_SPLIT = {
    **{f"beir/{name}": "test" for name in BEIR},
    "msmarco-passage/trec-dl-2019": "test",
    "msmarco-passage/trec-dl-2019/judged": "test",
    "msmarco-passage/trec-dl-2020/judged": "test",
    "msmarco-passage/dev/small": "dev",
    "msmarco-passage/train/judged": "train",
    "lotte/lifestyle/test/search": "test",
    "lotte/technology/dev/forum": "dev",
    "disks45/nocr/trec-robust-2004": "test",
    "cord19/trec-covid": "test",
    "dpr-w100/natural-questions/dev": "dev",
}


@pytest.mark.parametrize(("name", "own"), ONE_SPLIT.items())
def test_a_set_without_splits_is_one_split(name, own):
    ir_datasets = pytest.importorskip("ir_datasets")
    from distill_jax.collections import irds

    assert irds._find(ir_datasets, name, own)[1] == name
    for other in {"train", "dev", "test"} - {own}:
        with pytest.raises(UserError, match=rf"no split '{other}'"):
            irds._find(ir_datasets, name, other)


@pytest.mark.parametrize(
    ("name", "split", "found"),
    [
        ("beir/scifact", "train", "beir/scifact/train"),
        ("beir/fiqa", "dev", "beir/fiqa/dev"),
        ("msmarco-passage", "dev", "msmarco-passage/dev"),
        (
            "msmarco-passage/trec-dl-2019",
            "judged",
            "msmarco-passage/trec-dl-2019/judged",
        ),
        ("lotte/lifestyle", "test/search", "lotte/lifestyle/test/search"),
    ],
)
def test_a_split_below_a_set_is_found(name, split, found):
    ir_datasets = pytest.importorskip("ir_datasets")
    from distill_jax.collections import irds

    assert irds._find(ir_datasets, name, split)[1] == found


def test_answers_and_unjudged_queries_of_ir_datasets_are_kept(monkeypatch):
    ir_datasets = pytest.importorskip("ir_datasets")
    doc = namedtuple("Doc", "doc_id text")
    query = namedtuple("Query", "query_id text answers")
    qrel = namedtuple("Qrel", "query_id doc_id relevance")

    class Dataset:
        def has(self, part):
            return True

        def docs_iter(self):
            return iter([doc("1", "a"), doc("2", "b")])

        def queries_iter(self):
            return iter([query("q1", "x", ("one", "1")), query("q2", "y", ("two",))])

        def qrels_iter(self):
            return iter([qrel("q1", "2", 1)])

    monkeypatch.setattr(ir_datasets, "load", lambda name: Dataset())
    _, queries, qrels = load_collection("irds:mine", "train")
    assert queries.ids == ["q1", "q2"]
    assert queries.answers == [["one", "1"], ["two"]]
    assert qrels.query_ids == ("q1",)
    assert load_collection("irds:mine", "test")[1].ids == ["q1"]
