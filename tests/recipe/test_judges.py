"""Judges behind endpoints by recipe: each is reached by its name."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.main import main
from distill_jax.recipe.judges import Pointwise
from distill_jax.teaching.clients import LocalModel
from tests.recipe.test_embedding import run as run_leaf
from tests.recipe.test_llm import folder, no_proxy
from tests.teaching.fake_llm import FakeLLM, embedded, shared

__all__ = ["folder", "no_proxy"]  # fixtures


def argv(server, folder, directory, *more):
    return [
        "--gin_file=label_llm.gin",
        f"--gin.COLLECTION=beir:{folder}",
        f"--gin.MODEL_DIR={directory}",
        f"--gin.LLM_BASE_URL={server.base_url}",
        "--gin.LLM_MODEL=m",
        "--gin.TOP_K=4",
        *more,
    ]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            ("@judges.Pointwise()",),
            lambda s: math.log((0.1 + 0.8 * s) / (0.9 - 0.8 * s)),
        ),
        (("@judges.Reranker()",), lambda s: s),
        (
            ("@judges.Reranker()", "judges.Reranker.documents_field='texts'"),
            lambda s: s,
        ),
    ],
)  # fmt: skip
def test_a_judge_is_planned_and_labels(folder, tmp_path, capsys, more, expected):
    judge, *settings = more
    flags = [f"--gin.JUDGE={judge}", *(f"--gin.{setting}" for setting in settings)]
    with FakeLLM() as server:
        command = argv(server, folder, tmp_path, *flags)
        assert main([*command, "--plan"]) == 0
        calls = 8 if "Reranker" in judge else 32
        assert f"LLM: {calls} calls" in capsys.readouterr().out
        assert not server.calls
        assert main(command) == 0
        assert len(server.calls) == calls
    labels = TeacherLabels.read(tmp_path / "labels")
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").open()]
    texts = {doc["_id"]: doc["text"] for doc in corpus}
    queries = map(json.loads, (folder / "queries.jsonl").open())
    asked = {query["_id"]: query["text"] for query in queries}
    for query_id, scores in labels.lists().items():
        assert len(scores) == 4
        for doc_id, score in scores:
            share = shared(asked[query_id], texts[doc_id])
            assert score == pytest.approx(expected(share), abs=1e-4)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["teacher"]["counts"]["calls"] == calls


def test_pairs_become_strengths(folder, tmp_path, capsys):
    with FakeLLM() as server:
        flags = ("--gin.JUDGE=@strengths.BradleyTerry()", "--gin.PAIRS=6")
        command = argv(server, folder, tmp_path, *flags)
        assert main([*command, "--plan"]) == 0
        assert "LLM: 96 calls" in capsys.readouterr().out
        assert main(command) == 0
        assert len(server.calls) == 8 * 6 * 2
    pairs = PairLabels.read(tmp_path / "labels/order/labels/pairs")
    labels = TeacherLabels.read(tmp_path / "labels/strengths")
    strengths = {q: dict(found) for q, found in labels.lists().items()}
    ids = pairs.doc_ids
    for query_id, judged in pairs.by_query().items():
        assert len(judged) == 6
        for first, second, probability in judged:
            found = strengths[query_id]
            difference = found[ids[first]] - found[ids[second]]
            assert np.sign(difference).round() == np.sign(
                round(probability - 0.5, 6)
            ) or (abs(difference) < 1e-3)


def test_a_local_model_judges_by_its_probabilities_and_has_no_rerank(folder, tmp_path):
    pytest.importorskip("transformers")
    from distill_jax.io.errors import UserError
    from distill_jax.jobs.labelling import DataJob, Label
    from distill_jax.labels.labels import TeacherLabels
    from distill_jax.recipe.candidates import BM25
    from distill_jax.recipe.judges import Reranker
    from tests.weights import decoders

    decoders.saved("Qwen3", tmp_path / "m", head_dim=8)
    desk = DataJob(
        directory=str(tmp_path / "job"), collection=f"beir:{folder}", max_queries=2
    )
    local = LocalModel(checkpoint=str(tmp_path / "m"))

    def label(teacher):
        Label(desk=desk, candidates=BM25(depth=3), teacher=teacher)()

    with pytest.raises(UserError, match="no /rerank"):
        label(Reranker(client=local))
    label(Pointwise(client=local))
    (kept,) = (tmp_path / "job").rglob("labels/complete.json")
    labels = TeacherLabels.read(kept.parent)
    assert not labels.failed.any()
    assert np.isfinite(labels.scores[labels.rows >= 0]).all()


@pytest.mark.usefixtures("compiles_fast")
def test_a_student_learns_the_vectors_of_an_endpoint(tmp_path, toy):
    with FakeLLM() as server:
        more = {
            "VECTORS": "@embedding.Endpoint()",
            "LLM_BASE_URL": server.base_url,
            "LLM_MODEL": "m",
            "STUDENT_OPTIONS": "{'projection': 16}",
            "MEASURE": None,
            "TRAIN_STEPS": 2,
        }
        run_leaf(tmp_path, toy, **more)
        texts = [text for body in server.calls for text in body["input"]]
        assert len(texts) == len(set(texts))
    (kept,) = (tmp_path / "teacher").rglob("*.npz")
    with np.load(kept) as file:
        vectors = file["vectors"]
    expected = json.loads(embedded({"input": texts}))["data"]
    rows = {tuple(item["embedding"]) for item in expected}
    assert {tuple(row) for row in vectors.tolist()} == rows


def test_an_endpoint_s_vectors_need_its_address(tmp_path, toy, capsys):
    flags = [f"--gin.MODEL_DIR={tmp_path}", f"--gin.COLLECTION={toy}"]
    flags += ["--gin.VECTORS=@embedding.Endpoint()"]
    assert main(["--gin_file=leaf.gin", "--gin_file=small.gin", *flags]) == 2
    assert "LLM_BASE_URL" in capsys.readouterr().err
