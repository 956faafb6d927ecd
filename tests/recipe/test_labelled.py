"""Labels made elsewhere: queries, lists and pairs of every format become lists."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from distill_jax import losses
from distill_jax.io.errors import UserError
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.examples import FromTeacher
from distill_jax.recipe.labelled import LabelFile
from distill_jax.recipe.stage import Stage, without_unread_pairs
from distill_jax.recipe.training import Training
from distill_jax.workspace.context import open_workspace
from tests.jobs.fixtures import write_toy

DOCS = [f"d{i}" for i in (3, 1, 4, 0, 5)]


@pytest.fixture
def context(tmp_path):
    spec = f"beir:{write_toy(tmp_path / 'toy')}"
    workspace = open_workspace(tmp_path / "job", spec, dev_share=0.0)
    return Context(
        workspace=workspace,
        queries=None,
        student=None,
        model=None,
        directory=tmp_path / "job",
    )


def text(context: Context, doc: str) -> str:
    collection = context.workspace.collection
    return collection.text(collection.row(doc))


def twolar(context, path: Path) -> None:
    docs = [{"docid": d, "text": text(context, d)} for d in DOCS]
    record = {"query": "a query", "positive_passages": [], "retrieved_passages": docs}
    path.write_text(json.dumps(record) + "\n")


def rankgpt(context, path: Path) -> None:
    hits = [{"content": text(context, d), "qid": "q2", "docid": d} for d in DOCS]
    path.write_text(json.dumps({"query": "a query", "hits": hits}) + "\n")


def run(context, path: Path) -> None:
    lines = [f"q2 Q0 {d} {r} {9 - r} x" for r, d in enumerate(DOCS, 1)]
    path.write_text("\n".join(lines) + "\n")


def pairdistill(context, path: Path) -> None:
    docs = [[d, 5.0 - r, []] for r, d in enumerate(DOCS)]
    docs[0][2] = [[1, math.log(0.75)], [4, math.log(0.5)]]
    path.write_text(json.dumps(["q2", *docs]) + "\n")


FORMS = {
    "twolar.jsonl": twolar,
    "gpt.jsonl": rankgpt,
    "a.run": run,
    "c.json": pairdistill,
}


def lists_of(file: LabelFile, context: Context, **options):
    found = file.open(context)
    examples = found.taught(FromTeacher(teacher=None, judgements=False, **options))
    context = dataclasses.replace(
        context, workspace=found.workspace, queries=found.split.queries
    )
    return examples(context, found.run), context


@pytest.mark.parametrize("name", FORMS)
def test_each_format_gives_the_teacher_s_order(context, tmp_path, name):
    FORMS[name](context, tmp_path / name)
    lists, context = lists_of(LabelFile(path=str(tmp_path / name)), context, size=5)
    assert len(lists) == 1
    ids = context.workspace.collection.ids
    order = np.argsort(-lists.labels[0], kind="stable")
    assert [ids[row] for row in lists.doc_rows[0][order]] == DOCS


def test_pairs_of_a_file_ride_along(context, tmp_path):
    pairdistill(context, tmp_path / "c.json")
    file = LabelFile(path=str(tmp_path / "c.json"))
    lists, _ = lists_of(file, context, size=5, pairwise=object())
    found = {
        (DOCS[a], DOCS[b]): round(float(p), 4)
        for a, b, p in zip(lists.first[0], lists.second[0], lists.probability[0])
        if a >= 0
    }
    assert found == {("d3", "d1"): 0.75, ("d3", "d5"): 0.5}


def test_documents_that_the_collection_lacks_come_with_the_file(context, tmp_path):
    docs = [{"docid": f"x{i}", "text": f"another text {i}"} for i in range(4)]
    record = {"query": "a query", "positive_passages": [], "retrieved_passages": docs}
    (tmp_path / "t.jsonl").write_text(json.dumps(record) + "\n")
    file = LabelFile(path=str(tmp_path / "t.jsonl"))
    lists, with_file = lists_of(file, context, size=4)
    collection = with_file.workspace.collection
    assert [collection.ids[r] for r in lists.doc_rows[0]] == ["x0", "x1", "x2", "x3"]
    assert with_file.queries.texts == ["a query"]


def test_our_own_pair_labels_are_trained_on(context, tmp_path):
    ids = context.workspace.collection.ids
    labels = TeacherLabels.from_lists(
        ["q2", "q3"], [[("d2", 2.0), ("d5", 1.0)], [("d3", 1.0), ("d1", 0.5)]],
        kind="score", provenance={"teacher": "t"},
        collection=context.workspace.collection,
    )  # fmt: skip
    rows = context.workspace.collection.rows(["d2", "d5"])
    pairs = PairLabels(
        ("q2",), [[rows[0]]], [[rows[1]]], [[0.9]], ids, {"teacher": "duo"}
    )
    labels.write(tmp_path / "out/labels")
    pairs.write(tmp_path / "out/labels/pairs")
    file = LabelFile(path=str(tmp_path / "out"))
    lists, _ = lists_of(file, context, size=2, pairwise=object())
    assert len(lists) == 2
    assert np.isclose(lists.probability[0, 0], 0.9)


@pytest.mark.parametrize("depth", [2, 3])
def test_a_depth_counts_the_first_stage_s_ranks(context, tmp_path, depth):
    """Rank-DistiLLM's sub-samples: the LLM's order of the first stage's first k."""
    run(context, tmp_path / "llm.run")
    first = ["d5", "d0", "d1", "d3", "d4"]
    lines = [f"q2 Q0 {d} {r} {9 - r} bm25" for r, d in enumerate(first, 1)]
    (tmp_path / "bm25.run").write_text("\n".join(lines) + "\n")
    file = LabelFile(
        path=str(tmp_path / "llm.run"), first_stage=str(tmp_path / "bm25.run")
    )
    lists, context = lists_of(file, context, size=5, depth=depth)
    ids = context.workspace.collection.ids
    kept = [ids[row] for row in lists.doc_rows[0] if row >= 0]
    assert kept == [doc for doc in DOCS if doc in first[:depth]]
    assert lists.labels[0, :depth].tolist() == list(range(depth, 0, -1))


def test_a_depth_without_a_first_stage_is_refused(context, tmp_path):
    run(context, tmp_path / "llm.run")
    with pytest.raises(UserError, match="first-stage ranks"):
        lists_of(LabelFile(path=str(tmp_path / "llm.run")), context, depth=2)


def test_labels_of_other_queries_say_so(context, tmp_path):
    (tmp_path / "a.run").write_text("z9 Q0 d1 1 3.0 x\n")
    with pytest.raises(UserError, match=r"none of its 1 queries is a training query"):
        LabelFile(path=str(tmp_path / "a.run")).open(context)


def stage(on: str) -> Stage:
    term = losses.Term("pairs", losses.pairwise_kl, on=on) if on == "pairs" else (
        losses.Term("kl", losses.kl_divergence)
    )  # fmt: skip
    return Stage(
        examples=FromTeacher(teacher=object(), pairwise=object()),
        training=Training(objective=losses.Mixture((term,))),
    )


def test_pairs_that_no_term_reads_are_not_paid_for():
    assert without_unread_pairs(stage("list")).examples.pairwise is None
    assert without_unread_pairs(stage("pairs")).examples.pairwise is not None


def test_a_stage_without_a_teacher_asks_for_an_llm_or_labels():
    training = Training(objective=losses.Listwise(losses.ranknet))
    with pytest.raises(UserError, match="LLM_BASE_URL") as raised:
        Stage(examples=FromTeacher(teacher=None), training=training)
    assert "LABELS" in str(raised.value)
    Stage(examples=FromTeacher(teacher=None), training=training, labels="x")
