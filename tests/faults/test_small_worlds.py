"""Fewer documents than were asked for; one; none; the same one twice."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import losses, main
from distill_jax.runs.run import Run


def world(folder, docs, queries=2):
    """A BEIR folder where query i asks for document i."""
    (folder / "qrels").mkdir(parents=True)
    with open(folder / "corpus.jsonl", "w") as file:
        for n, text in enumerate(docs):
            file.write(json.dumps({"_id": f"d{n}", "title": "", "text": text}) + "\n")
    with open(folder / "queries.jsonl", "w") as file:
        for n in range(queries):
            text = docs[n] if n < len(docs) else "nothing"
            file.write(json.dumps({"_id": f"q{n}", "text": text}) + "\n")
    for name, number in (("train", 0), ("test", 1)):
        line = f"q{number}\td{number}\t1\n" if number < len(docs) else ""
        (folder / f"qrels/{name}.tsv").write_text("query-id\tcorpus-id\tscore\n" + line)
    return f"beir:{folder}"


def run(recipe, collection, directory, *more):
    argv = (f"--gin_file={recipe}.gin", f"--gin.COLLECTION={collection}")
    return main.main([*argv, f"--gin.MODEL_DIR={directory}", *more])


def test_more_candidates_than_documents(tmp_path):
    collection = world(tmp_path / "c", ["red fish", "blue fish", "fish"])
    assert run("mine", collection, tmp_path / "m", "--gin.TOP_K=1000") == 0
    found = Run.read(tmp_path / "m" / "run.trec")
    assert (found.rows >= 0).sum() == 3


def test_one_document(tmp_path):
    """It is every query's whole ranking."""
    collection = world(tmp_path / "c", ["red fish"], queries=1)
    assert run("mine", collection, tmp_path / "m") == 0
    assert Run.read(tmp_path / "m" / "run.trec").lists()["q0"][0][0] == "d0"


@pytest.mark.parametrize(
    ("docs", "told"),
    [([], "no documents"), (["", "  ", "\n"], "the text of a held-out one")],
)
def test_nothing_to_find_is_one_clear_error(tmp_path, capsys, docs, told):
    collection = world(tmp_path / "c", docs)
    assert run("mine", collection, tmp_path / "m") == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.strip().splitlines()) <= 2


def test_no_training_queries_is_told_before_anything_is_made(tmp_path, capsys):
    collection = world(tmp_path / "c", ["red fish", "blue fish"])
    (tmp_path / "c" / "qrels" / "train.tsv").unlink()
    # A query that nobody judged would be one to train on: only the tested one is left.
    queries = tmp_path / "c" / "queries.jsonl"
    queries.write_text(queries.read_text().splitlines()[1] + "\n")
    code = run("quickstart", collection, tmp_path / "m", "--gin_file=small.gin")
    assert code == 2
    err = capsys.readouterr().err
    assert "train" in err
    assert len(err.strip().splitlines()) <= 2
    assert not (tmp_path / "m" / "checkpoints").exists()


def test_a_document_that_two_queries_share_is_no_negative_of_either():
    """In a batch, under its own id and under an equal one."""
    similarity = np.zeros((2, 2, 1), np.float32)
    similarity[0, 1, 0] = similarity[1, 0, 0] = 50.0
    labels = np.ones((2, 1), np.float32)
    where = np.ones((2, 1), bool)

    def loss(doc_rows):
        return float(
            losses.in_batch_contrastive(
                jnp.asarray(similarity), jnp.asarray(doc_rows), labels,
                where=where, temperature=1.0,
            )
        )  # fmt: skip

    assert loss([[7], [7]]) == pytest.approx(0.0, abs=1e-6)
    assert loss([[7], [8]]) == pytest.approx(50.0, abs=1e-3)
