"""The query generator's job: what it learns from, what it is measured by."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from distill_jax import losses, weights
from distill_jax.io.errors import UserError
from distill_jax.jobs.generator import SYSTEMS, TrainGenerator
from distill_jax.recipe.students import Student
from distill_jax.recipe.training import Training

pytestmark = pytest.mark.long

WORDS = ["river", "stone", "bridge", "water", "cloud", "paper", "light", "engine"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 documents of a number each, asked for by it. Test shares one with train."""
    folder = tmp_path_factory.mktemp("collection")
    random = np.random.default_rng(0)
    docs = [random.choice(WORDS, 4, replace=False).tolist() for _ in range(24)]
    (folder / "qrels").mkdir()
    with open(folder / "corpus.jsonl", "w") as out:
        for i, words in enumerate(docs):
            text = f"The {' '.join(words)} number{i} is here."
            out.write(json.dumps({"_id": f"d{i}", "title": "", "text": text}) + "\n")
    with open(folder / "queries.jsonl", "w") as out:
        for i, words in enumerate(docs):
            text = f"{words[0]} number{i}"
            out.write(json.dumps({"_id": f"q{i}", "text": text}) + "\n")
        out.write(json.dumps({"_id": "again", "text": "known already"}) + "\n")
    splits = {"train": range(16), "dev": range(16, 20), "test": range(20, 24)}
    for name, rows in splits.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in rows)]
        if name == "test":
            lines.append("again\td3\t1")
        (folder / "qrels" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def job(folder, tmp_path) -> TrainGenerator:
    return TrainGenerator(
        directory=str(tmp_path / "job"),
        collection=f"beir:{folder}",
        student=Student(
            kind="generator",
            vocabulary_size=220,
            query_length=8,
            doc_length=16,
            dropout=0.0,
        ),
        training=Training(
            objective=losses.Listwise(loss=losses.query_likelihood),
            steps=3,
            batch_size=4,
            stream="arrays",
            lengths=(16,),
            checkpoint_period=None,
        ),
        max_new_tokens=6,
        depth=2,
        mesh="data=1",
    )


def test_pairs_are_the_judged_documents_alone(job):
    workspace = job.workspace()
    lists = job.lists(workspace, job.pairs(workspace))
    assert lists.doc_rows.shape == (16, 1)
    assert lists.doc_rows[:, 0].tolist() == lists.query_rows.tolist()
    assert (lists.labels == 1).all()


def test_unseen_documents_are_not_of_training(job):
    unseen = job.unseen_rows(job.workspace())
    # Of test and dev; not d3, which a training query has.
    assert sorted(unseen) == [16, 17, 18, 19, 20, 21, 22, 23]
    assert unseen[20].endswith("number20")
    assert len(dataclasses.replace(job, unseen=2).unseen_rows(job.workspace())) == 2


def test_a_measure_of_rankings_is_refused(job):
    training = dataclasses.replace(job.training, measure="nDCG@10")
    with pytest.raises(UserError, match=r"nDCG@10"):
        dataclasses.replace(job, training=training)


def test_it_trains_asks_and_reports(job, capsys, tmp_path):
    assert job(command="again") == 0
    report = json.loads((tmp_path / "job/report.json").read_text())
    rates = report["round_trip"]["rates"]
    assert set(rates) == set(SYSTEMS)
    # A number in a text is in no other: people's queries and sentences lead back.
    assert rates["human"] == 1.0
    assert rates["cropped"] == 1.0
    assert 0.0 <= rates["generated"] <= 1.0
    assert report["round_trip"]["documents"] == 8
    assert report["measures"]["human"] == {"Success@2": 1.0}
    assert {s["document"] for s in report["samples"]} == {
        f"d{i}" for i in range(16, 24)
    }
    assert all("human" in sample for sample in report["samples"])
    assert (tmp_path / "job/report.html").is_file()

    model = weights.load(tmp_path / "job")
    assert model.spec.kind == "generator"
    assert (model.spec.query_length, model.spec.doc_length) == (8, 16)
    exported = weights.load(tmp_path / "job/export")
    assert exported.spec == model.spec
    assert exported.digest == model.digest
    assert report["export"]["format"] == "transformers"
    card = (tmp_path / "job/export/README.md").read_text()
    assert f'"success@2", "value": {round(rates["generated"], 4)}' in card

    capsys.readouterr()
    assert job(command="again") == 0
    said = capsys.readouterr().out
    for part in ("student", "training", "round trips"):
        assert f"{part}: already there" in said
