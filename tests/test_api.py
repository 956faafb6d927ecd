"""The door for programs: run a recipe, look at its result, use its model."""

from __future__ import annotations

import numpy as np
import pytest

import distill_jax
from distill_jax.io.errors import UserError

pytestmark = pytest.mark.usefixtures("compiles_fast")


def test_the_public_names_can_be_completed_and_each_is_there():
    assert {"load", "run", "Run", "losses", "evaluate"} <= set(dir(distill_jax))
    for name in dir(distill_jax):
        assert getattr(distill_jax, name) is not None


def test_a_recipe_runs_from_python_and_gives_its_model(tmp_path, toy):
    result = distill_jax.run(
        "quickstart.gin", "small.gin", COLLECTION=toy, MODEL_DIR=tmp_path / "run",
        MESH="data=1", VOCABULARY_SIZE=300, QUERY_LENGTH=12, DOC_LENGTH=20,
        TRAIN_STEPS=2, EXPORT=None, STOP_MEASURE=None,
    )  # fmt: skip
    assert set(result.measures) >= {"first_stage", "before", "after"}
    assert "<iframe" in result.report._repr_html_()
    texts = ["one text", "another"]
    model = result.model
    np.testing.assert_array_equal(model.encode(texts), model.encode_docs(texts))
    queries, docs = model.encode_query(texts), model.encode_document(texts)
    np.testing.assert_allclose(model.similarity(queries, docs), queries @ docs.T)
    index = distill_jax.retrieval.Exact.build(docs, doc_ids=["a", "b"])
    found = model.search(["one text"], index, k=2)
    best = "ab"[int(np.argmax(queries[0] @ docs.T))]
    assert next(iter(found.lists().values()))[0][0] == best


def test_a_wrong_name_is_an_error_of_the_call(tmp_path):
    with pytest.raises(UserError, match="no name TRAIN_STEP"):
        distill_jax.run("quickstart.gin", TRAIN_STEP=3, MODEL_DIR=str(tmp_path))


def test_a_result_without_a_report_says_so(tmp_path):
    from distill_jax.api import Result

    with pytest.raises(UserError, match=r"no report\.json"):
        _ = Result(tmp_path).measures
