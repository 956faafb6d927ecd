"""LLM teachers by recipe: plan, label, stop at a budget, go on, and read answers."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from distill_jax.cli.flags import parse_flags
from distill_jax.io.errors import Unfinished, UserError
from distill_jax.jobs.labelling import DataJob, Label
from distill_jax.labels.labels import TeacherLabels
from distill_jax.main import build_job, main
from distill_jax.recipe import llm
from distill_jax.recipe.candidates import BM25
from distill_jax.recipe.teachers import Ensemble, Model, Scores
from distill_jax.teaching.clients import Client, LocalModel
from tests.teaching.fake_llm import FakeLLM

WORDS = ["river", "stone", "bridge", "water", "cloud", "paper", "light", "engine"]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection")
    random = np.random.default_rng(0)
    (folder / "qrels").mkdir()
    with open(folder / "corpus.jsonl", "w") as out:
        for i in range(30):
            text = " ".join(random.choice(WORDS, 5))
            out.write(json.dumps({"_id": f"d{i}", "title": "", "text": text}) + "\n")
    with open(folder / "queries.jsonl", "w") as out:
        for i in range(10):
            text = " ".join(random.choice(WORDS, 2, replace=False))
            out.write(json.dumps({"_id": f"q{i}", "text": text}) + "\n")
    for name, rows in {"train": range(8), "test": range(8, 10)}.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in rows)]
        (folder / "qrels" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def job(server, folder, directory, teacher=None, **client):
    context = Client(base_url=server.base_url, model="m", max_attempts=2, **client)
    teacher = teacher or llm.Listwise(client=context, depth=6, window=4, step=2)
    desk = DataJob(directory=str(directory), collection=f"beir:{folder}")
    return Label(desk=desk, candidates=BM25(depth=8), teacher=teacher)


def test_a_label_job_stops_at_its_budget_and_goes_on(folder, tmp_path, capsys):
    with FakeLLM() as server:
        small = job(server, folder, tmp_path / "x", budget_calls=5)
        assert small.plan() == 0
        assert not server.calls
        assert "16 calls (budget 5)" in capsys.readouterr().out
        with pytest.raises(Unfinished):
            small()
        assert len(server.calls) == 5
        assert job(server, folder, tmp_path / "x", budget_calls=99)() == 0
        assert len(server.calls) == 16
        # All of it is there: nothing is asked again.
        assert job(server, folder, tmp_path / "x", budget_calls=0)() == 0
        assert len(server.calls) == 16
    labels = TeacherLabels.read(tmp_path / "x" / "labels")
    assert labels.kind == "rank"
    assert labels.lengths().tolist() == [6] * 8
    report = json.loads((tmp_path / "x" / "report.json").read_text())
    assert report["teacher"]["counts"]["calls"] == 16


def test_failures_make_the_job_partial(folder, tmp_path):
    behave = lambda n, body: "refusal" if "cloud" in str(body)[-600:] else "good"  # noqa: E731
    with FakeLLM(behave) as server:
        made = job(server, folder, tmp_path)
        teacher = dataclasses.replace(made.teacher, most_failed=1.0)
        status = dataclasses.replace(made, teacher=teacher)()
    labels = TeacherLabels.read(tmp_path / "labels")
    assert status == (3 if labels.failed.any() else 0)
    assert labels.failed.any()


def test_an_llm_in_an_ensemble(folder, tmp_path):
    with FakeLLM() as server:
        made = job(server, folder, tmp_path)
        both = Ensemble(teachers=(made.teacher, Scores()), normalise=None)
        assert dataclasses.replace(made, teacher=both)() == 0
    labels = TeacherLabels.read(tmp_path / "labels" / "ensemble")
    assert len(labels) == 8


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Labels that are given; NaN is none."""

    scores: tuple

    def __call__(self, context, run):
        scores = np.asarray(self.scores, np.float32)
        rows = np.where(np.isnan(scores), -1, run.rows[:, : scores.shape[1]])
        return TeacherLabels(run.query_ids, rows, scores, run.doc_ids, provenance={})


@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
@pytest.mark.parametrize("normalise", ["none", "zscore", "minmax"])
def test_an_ensemble_is_the_mean_of_its_teachers(folder, tmp_path, normalise, weights):
    """Against sums written out: margins are a teacher's, however many there are."""
    random = np.random.default_rng(3)
    made = Label(
        desk=DataJob(directory=str(tmp_path), collection=f"beir:{folder}"),
        candidates=BM25(depth=4),
        teacher=Scores(),
    )
    _, context = made.desk.open()
    run = BM25(depth=4)(context)
    count = int(run.where.sum(1).min())
    assert count >= 3
    scores = random.normal(0, [[[1.0]], [[5.0]]], (2, len(run), count))
    teachers = tuple(Fixed(tuple(map(tuple, each))) for each in scores)
    ensemble = Ensemble(teachers=teachers, normalise=normalise, weights=weights)
    labels = ensemble(context, run)
    shares = np.asarray(weights or (1.0, 1.0))[:, None, None]
    if normalise == "zscore":
        scores = (scores - scores.mean(2, keepdims=True)) / scores.std(2, keepdims=True)
    if normalise == "minmax":
        least = scores.min(2, keepdims=True)
        scores = (scores - least) / (scores.max(2, keepdims=True) - least)
    wanted = (shares * scores).sum(0) / shares.sum()
    for row, query in enumerate(run.query_ids):
        found = dict(labels.lists()[query])
        ids = [run.doc_ids[doc] for doc in run.rows[row, :count]]
        mine = np.asarray([found[doc] for doc in ids])
        np.testing.assert_allclose(
            mine - mine.mean(), wanted[row] - wanted[row].mean(), atol=1e-5
        )


def test_a_document_that_one_teacher_lacks_has_no_mean_of_raw_scores(folder, tmp_path):
    desk = DataJob(directory=str(tmp_path), collection=f"beir:{folder}")
    _, context = desk.open()
    run = BM25(depth=3)(context)
    whole = tuple((-5.0, -6.0, -7.0) for _ in run.query_ids)
    lacking = (whole[0], *((-5.0, -6.0, np.nan) for _ in run.query_ids[1:]))
    both = Ensemble(teachers=(Fixed(whole), Fixed(lacking)), normalise="none")
    lists = list(both(context, run).lists().values())
    assert [len(found) for found in lists] == [3, *[2] * (len(run) - 1)]
    assert [score for _, score in lists[1]] == [-5.0, -6.0]


def test_an_ensemble_s_teachers_are_checkpoints_or_parts():
    ensemble = Ensemble(teachers=("hf:a/b", Scores()))
    assert ensemble.teachers == (Model(checkpoint="hf:a/b"), Scores())
    for weights in ((1.0,), (0.0, 0.0)):
        with pytest.raises(UserError, match="weights"):
            Ensemble(teachers=("hf:a/b", "hf:c/d"), weights=weights)
    argv = ["--gin_file=splade.gin", "--gin.COLLECTION=pydocs:json"]
    several = "--gin.TEACHERS=('hf:a/b', 'hf:c/d')"
    with pytest.raises(UserError, match="TEACHERS"):
        build_job(parse_flags([*argv, several]))
    named = "--gin.TEACHER_LABELS=@teachers.Ensemble()"
    (stage,) = build_job(parse_flags([*argv, several, named])).stages
    assert [each.checkpoint for each in stage.examples.teacher.teachers] == [
        "hf:a/b",
        "hf:c/d",
    ]


def test_a_t5_of_files_stands_in_for_an_endpoint():
    argv = ["--gin_file=label_llm.gin", "--gin.LLM_MODEL=hf:google/flan-t5-xl"]
    client = build_job(parse_flags([*argv, "--gin.LLM_BASE_URL=local"])).teacher.client
    assert client == LocalModel(checkpoint="hf:google/flan-t5-xl")
    behind = build_job(parse_flags([*argv, "--gin.LLM_BASE_URL=http://x/v1"]))
    assert isinstance(behind.teacher.client, Client)
    with pytest.raises(UserError, match="LLM_BUDGET_CALLS"):
        build_job(
            parse_flags([*argv, "--gin.LLM_BASE_URL=local", "--gin.LLM_BUDGET_CALLS=5"])
        )


def test_the_recipe(folder, tmp_path, capsys):
    with FakeLLM() as server:
        argv = [
            "--gin_file=label_llm.gin",
            f"--gin.COLLECTION=beir:{folder}",
            f"--gin.MODEL_DIR={tmp_path / 'out'}",
            f"--gin.LLM_BASE_URL={server.base_url}",
            "--gin.LLM_MODEL=m",
        ]
        assert main([*argv, "--plan"]) == 0
        assert "LLM:" in capsys.readouterr().out
        assert main([*argv, "--gin.LLM_BUDGET_CALLS=3"]) == 3
        assert "budget of calls" in capsys.readouterr().err
        assert len(server.calls) == 3
        assert main(argv) == 0
    assert not TeacherLabels.read(tmp_path / "out" / "labels").failed.any()


def test_a_reader_is_measured(folder, tmp_path):
    with FakeLLM() as server:
        made = job(server, folder, tmp_path)
        _, context = made.desk.open()
        run = BM25(depth=8)(context)
        reader = llm.Reader(client=made.teacher.client, top_k=2)
        with pytest.raises(UserError, match="no answers"):
            reader(context, run)
        texts = context.workspace.collection.texts
        answers = [[" ".join(texts[row].split()[:3])] for row in run.rows[:, 0]]
        answers[-1] = ["nothing of the kind"]
        queries = dataclasses.replace(context.queries, answers=answers)
        found = reader(dataclasses.replace(context, queries=queries), run)
        assert len(server.calls) == found.counts["calls"] == 8
    means = {name: np.mean(list(per.values())) for name, per in found.values.items()}
    assert means["EM"] == 7 / 8
    assert 7 / 8 <= means["F1"] < 1
    record = json.loads((tmp_path / "answers.json").read_text())
    assert record["failed"] == found.failed == 0
    assert record["means"]["EM"] == 7 / 8
