"""Jobs of one step each: candidates, labels, queries, measures, exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from distill_jax import main
from distill_jax.collections.schemes import load_collection
from distill_jax.models.pretrained import Pretrained
from distill_jax.runs.run import Run

pytestmark = pytest.mark.usefixtures("compiles_fast")
RERANKER, DUO = "fresh:reranker:t5:tiny", "fresh:duo:t5:tiny"


def run(recipe: str, **flags) -> int:
    words = [f"--gin.{name}={value}" for name, value in flags.items()]
    return main.main([f"--gin_file={recipe}.gin", *words])


def report(folder: Path) -> dict:
    assert (folder / "report.html").stat().st_size > 0
    return json.loads((folder / "report.json").read_text())


def stored(folder: Path) -> list[dict]:
    return [
        row
        for path in sorted(folder.glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory, toy, compiles_fast) -> Path:
    """The folder of a dual encoder that was trained for a moment."""
    folder = tmp_path_factory.mktemp("model")
    words = {
        "MODEL_DIR": folder, "COLLECTION": toy, "MESH": "data=1", "EXPORT": None,
        "VOCABULARY_SIZE": 300, "QUERY_LENGTH": 12, "DOC_LENGTH": 20,
        "TRAIN_STEPS": 1, "MAX_TEST_QUERIES": 8,
        "MATRYOSHKA": (16,), "COMPACT": "(16, 'binary')", "MOST_RISK": 0.9,
        "ELSEWHERE": (toy,),
    }  # fmt: skip
    flags = [f"--gin.{name}={value}" for name, value in words.items()]
    files = ["--gin_file=quickstart.gin", "--gin_file=small.gin"]
    assert main.main([*files, *flags]) == 0
    return folder


def test_a_matryoshka_student_is_measured_by_its_first_numbers(model):
    found = report(model)
    for when in ("before", "after"):
        for form in ("16 dimensions", "binary"):
            assert f"{when}, {form}" in found["measures"]
    assert any("16 dimensions: 64 bytes" in notice for notice in found["notices"])
    first = json.loads((model / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] > first["at 16"] > 0


def test_scores_are_calibrated_on_dev(model):
    found = report(model)["calibration"]
    assert found["scale"] > 0
    assert found["threshold"] is None or found["risk"] <= 0.9
    page = (model / "report.html").read_text()
    assert "Risk by coverage" in page
    assert "What scores mean" in page


def test_another_collection_is_measured_before_and_after(model, toy):
    found = report(model)
    row = found["elsewhere"][toy]
    # The same documents and queries: the same figures, by way of another folder.
    for when in ("before", "after"):
        expected = np.mean(list(found["queries"]["values"][when].values()))
        assert row[when] == pytest.approx(expected)
    assert row["queries"] == 8
    assert "Elsewhere" in (model / "report.html").read_text()


def test_smaller_vectors_are_rows_of_the_table(toy, model, tmp_path):
    flags = {"MODEL_DIR": tmp_path, "COLLECTION": toy, "MESH": "data=1"}
    flags |= {"CHECKPOINT": model / "student", "COMPACT": "(16, 'int8', 'rescored')"}
    assert run("evaluate", **flags) == 0
    rows = report(tmp_path)["measures"]
    (own,) = [name for name in rows if "," not in name]
    forms = ("16 dimensions", "int8", "rescored")
    assert set(rows) == {own, *(f"{own}, {form}" for form in forms)}


def test_mine(toy, tmp_path):
    assert run("mine", COLLECTION=toy, MODEL_DIR=tmp_path, TOP_K=5) == 0
    collection, queries, _ = load_collection(toy, split="train")
    found = Run.read(tmp_path / "run.trec", collection=collection)
    assert set(found.query_ids) <= set(queries.ids)
    assert len(found) >= len(queries) - 1
    # A query is words of its document: BM25 finds it.
    assert report(tmp_path)["measures"]["candidates"]["R@100"] > 0.9


def test_mine_with_a_model(toy, model, tmp_path):
    more = {"CHECKPOINT": model, "MESH": "data=1"}
    assert run("mine", COLLECTION=toy, MODEL_DIR=tmp_path, TOP_K=5, **more) == 0
    found = Run.read(tmp_path / "run.trec")
    assert len(found) == 16
    assert (found.where.sum(1) == 5).all()
    # The model's own search, not BM25's.
    assert run("mine", COLLECTION=toy, MODEL_DIR=tmp_path / "bm25", TOP_K=5) == 0
    assert found.lists() != Run.read(tmp_path / "bm25" / "run.trec").lists()


def test_labels_of_candidates_of_one_s_own(toy, tmp_path):
    assert run("mine", COLLECTION=toy, MODEL_DIR=tmp_path / "mine", TOP_K=9) == 0
    mined = Run.read(tmp_path / "mine" / "run.trec")
    own = {
        query: [doc for doc, _ in docs[3:6]] for query, docs in mined.lists().items()
    }
    lines = [
        f"{query} Q0 {doc} {rank} {9 - rank} own"
        for query, docs in own.items()
        for rank, doc in enumerate(docs, 1)
    ]
    (tmp_path / "own.trec").write_text("\n".join(lines) + "\n")
    flags = {
        "COLLECTION": toy, "MODEL_DIR": tmp_path / "label", "CHECKPOINT": RERANKER,
        "TOP_K": 5, "MESH": "data=1", "RUN": tmp_path / "own.trec",
    }  # fmt: skip
    assert run("label", **flags) == 0
    rows = stored(tmp_path / "label" / "labels")
    labelled = {row["query_id"]: sorted(row["doc_ids"]) for row in rows}
    assert labelled == {query: sorted(docs) for query, docs in own.items()}


def test_labels_of_an_encoder_are_kept(toy, model, tmp_path):
    flags = {
        "COLLECTION": toy, "MODEL_DIR": tmp_path, "CHECKPOINT": model, "TOP_K": 5,
        "MAX_QUERIES": 4, "MESH": "data=1",
    }  # fmt: skip
    assert run("label", **flags) == 0
    rows = stored(tmp_path / "labels")
    assert len(rows) == 4
    assert all(np.isfinite(row["scores"]).all() for row in rows)


def test_label_and_label_again(toy, tmp_path, capsys):
    flags = {
        "COLLECTION": toy, "MODEL_DIR": tmp_path, "CHECKPOINT": RERANKER,
        "TOP_K": 5, "MAX_QUERIES": 6, "MESH": "data=1",
    }  # fmt: skip
    assert run("label", **flags) == 0
    rows = stored(tmp_path / "labels")
    assert len(rows) == 6
    assert all(row["kind"] == "score" and not row["failed"] for row in rows)
    assert all(len(row["doc_ids"]) == len(row["scores"]) <= 5 for row in rows)
    capsys.readouterr()
    assert run("label", **flags) == 0
    assert "labels: already there" in capsys.readouterr().out


def test_label_pairs(toy, tmp_path):
    status = run(
        "label_pairs", COLLECTION=toy, MODEL_DIR=tmp_path, CHECKPOINT=RERANKER,
        PAIR_CHECKPOINT=DUO, TOP_K=5, PAIRS=4, DELTA=3, MAX_QUERIES=4, MESH="data=1",
    )  # fmt: skip
    assert status == 0
    rows = stored(tmp_path / "labels/pairs")
    assert rows
    assert {"query_id", "first", "second", "probability"} <= set(rows[0])
    assert len({row["query_id"] for row in rows}) <= 4


def test_label_llm(toy, tmp_path, llm, capsys):
    flags = {
        "COLLECTION": toy, "MODEL_DIR": tmp_path, "LLM_BASE_URL": llm.base_url,
        "LLM_MODEL": "fake", "TOP_K": 5, "MAX_QUERIES": 4,
    }  # fmt: skip
    assert run("label_llm", **flags) == 0
    rows = stored(tmp_path / "labels")
    assert len(rows) == 4
    for row in rows:
        assert row["kind"] == "rank"
        assert sorted(row["scores"]) == list(range(1, len(row["doc_ids"]) + 1))
    calls = len(llm.calls)
    assert run("label_llm", **flags) == 0
    assert len(llm.calls) == calls
    # A plan costs nothing and asks nobody.
    capsys.readouterr()
    words = [f"--gin.{name}={value}" for name, value in flags.items()]
    assert main.main(["--gin_file=label_llm.gin", *words, "--plan"]) == 0
    assert "calls" in capsys.readouterr().out
    assert len(llm.calls) == calls


def test_synthesize_makes_a_collection(toy, tmp_path):
    assert run("synthesize", COLLECTION=toy, MODEL_DIR=tmp_path, QUERIES=12) == 0
    made = f"beir:{tmp_path}/queries"
    collection, queries, qrels = load_collection(made, split="train")
    assert 0 < len(queries) <= 12
    assert len(collection) == 40
    for query, text in zip(queries.ids, queries.texts):
        (doc,) = qrels.relevant(query)
        # A cropped query is a piece of its document.
        assert text in collection.text(int(collection.row(doc)))


def test_synthesize_with_an_llm(toy, tmp_path, llm):
    status = run(
        "synthesize", COLLECTION=toy, MODEL_DIR=tmp_path, QUERIES=4,
        MAKERS="(@queries.Written(),)", LLM_BASE_URL=llm.base_url, LLM_MODEL="fake",
    )  # fmt: skip
    assert status == 0
    _, queries, _ = load_collection(f"beir:{tmp_path}/queries", split="train")
    assert len(queries)


def test_evaluate_a_run_and_a_model(toy, model, tmp_path):
    first = model / "evaluation/first_stage/run.trec"
    status = run(
        "evaluate", COLLECTION=toy, MODEL_DIR=tmp_path, RUN=first, CHECKPOINT=model,
        TOP_K=12, MESH="data=1",
    )  # fmt: skip
    assert status == 0
    found, before = report(tmp_path)["measures"], report(model)["measures"]
    assert found["run"] == pytest.approx(before["first_stage"])
    assert found[model.name] == pytest.approx(before["after"])


def test_compare(model, tmp_path):
    """A job with itself: no difference, and no verdict of one."""
    other = tmp_path / "other"
    other.symlink_to(model)
    dirs = repr((str(model), str(other)))
    assert run("compare", MODEL_DIR=tmp_path / "compare", MODEL_DIRS=dirs) == 0
    found = report(tmp_path / "compare")
    values = list(found["measures"].values())
    assert values[0] == values[1]
    facts = found["systems"]["other"]
    assert facts["kind"] == "dual_encoder"
    assert facts["queries_per_second"] > 0
    assert facts["index_bytes"] > 0


def test_export(model, tmp_path):
    pytest.importorskip("sentence_transformers")
    folder = tmp_path / "export"
    assert run("export_hf", CHECKPOINT=model, EXPORT_DIR=folder) == 0
    from sentence_transformers import SentenceTransformer

    import distill_jax

    texts = ["bada bade", "kilo mono"]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    ours = distill_jax.load(str(model)).encode_docs(texts)
    assert abs(theirs - ours).max() < 1e-4
    assert Pretrained.read(model / "student").spec.kind == "dual_encoder"
