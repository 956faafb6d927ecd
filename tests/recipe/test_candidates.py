"""Sources and filters of candidates."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.errors import UserError
from distill_jax.jobs.evaluate import Evaluate
from distill_jax.predictor import Predictor
from distill_jax.recipe.candidates import BM25, Context, Reranked, Search, WithoutKnown
from distill_jax.runs.run import Run
from distill_jax.workspace import ranking
from tests.teaching.test_pairs import duo_world
from tests.test_gin_configs import build


def test_a_query_s_own_documents_are_left_out_and_the_others_keep_their_order():
    docs = Collection(["a", "b", "c"], ["one", "two", "three"])
    run = Run.from_lists(
        ["q1", "q2"], [[("a", 3.0), ("b", 2.0), ("c", 1.0)], [("b", 2.0), ("a", 1.0)]]
    )
    context = Context(
        workspace=SimpleNamespace(collection=docs),  # type: ignore[arg-type]
        queries=Queries(["q1", "q2"], ["x", "y"]),
        student=None,
        model=None,
        directory=None,  # type: ignore[arg-type]
        qrels=Qrels({"q1": {"b": 1, "c": 0}}),
    )
    found = WithoutKnown()(context, run)
    assert found.lists() == {
        "q1": [("a", 3.0), ("c", 1.0)],
        "q2": [("b", 2.0), ("a", 1.0)],
    }
    nothing_known = dataclasses.replace(context, qrels=None)
    np.testing.assert_array_equal(WithoutKnown()(nothing_known, run).rows, run.rows)


@pytest.mark.parametrize(("train", "left"), [(None, ["a"]), ("some", ["b", "a"])])
def test_documents_judged_for_training_queries_may_stay(train, left):
    """Those that generated queries are from do not."""
    docs = Collection(["a", "b"], ["one", "two"])
    context = Context(
        workspace=SimpleNamespace(collection=docs, train=train),  # type: ignore
        queries=Queries(["q"], ["x"]),
        student=None,
        model=None,
        directory=None,  # type: ignore[arg-type]
        qrels=Qrels({"q": {"b": 1}}),
    )
    run = Run.from_lists(["q"], [[("b", 2.0), ("a", 1.0)]])
    found = WithoutKnown(judged=False)(context, run)
    assert [doc for doc, _ in found.lists()["q"]] == left


def test_a_source_of_an_evaluation_loads_its_model_and_says_that_it_needs_one(
    toy, tmp_path, monkeypatch
):
    searches = []

    def searched(model, queries, workspace, *, depth, directory, index):
        searches.append((model.spec.kind, model.spec.doc_length, len(queries), depth))

    monkeypatch.setattr(ranking, "search", searched)
    checkpoint = "fresh:dual_encoder:bert:tiny"
    source = Search(checkpoint=checkpoint, depth=3, doc_length=16)
    job = Evaluate(directory=str(tmp_path), collection=toy, first_stage=source)
    context = job._context(job._workspace(), tmp_path)
    source(context)
    assert searches == [("dual_encoder", 16, 8, 3)]
    for source in (Search(), Reranked(source=BM25())):
        with pytest.raises(UserError, match=r"takes the student.*none") as told:
            source(context)
        assert f"{type(source).__name__}.checkpoint" in str(told.value)


@pytest.mark.parametrize("depth", [2, 5])
def test_a_pairwise_reranker_compares_as_many_documents_as_it_is_told(depth):
    """duoT5's rule, from the scores of triples of texts: both orders vote."""
    model, features, queries, labels = duo_world()
    texts = ["water boils", "the city council", "bone pain", "bus lane", "japan"]
    docs = Collection(labels.doc_ids, texts)
    run = labels.to_run()
    workspace = SimpleNamespace(
        collection=docs, mesh=None, pair_features=lambda model, queries: features
    )
    found = ranking.rank(
        model,
        queries,
        workspace,  # type: ignore[arg-type]
        first_stage=run,
        depth=5,
        directory=Path("nowhere"),
        duo_depth=depth,
    )
    predictor = Predictor(model)
    for line, query in enumerate(queries.texts):
        head = [run.doc_ids[row] for row in run.rows[line, :depth]]
        votes = dict.fromkeys(head, 0.0)
        for first, second in itertools.permutations(head, 2):
            triple = (query, texts[int(first[1:])], texts[int(second[1:])])
            wins = 1 / (1 + np.exp(-float(predictor.score([triple])[0])))
            votes[first] += wins
            votes[second] += 1 - wins
        wanted = sorted(head, key=lambda doc: -votes[doc])
        rest = [run.doc_ids[row] for row in run.rows[line, depth:]]
        ranked = [doc for doc, _ in found.lists()[run.query_ids[line]]]
        assert ranked == wanted + rest


@pytest.mark.parametrize("recipe", ["evaluate", "tables"])
def test_the_pairs_of_a_measured_reranker_are_a_name(recipe):
    flags = [f"--gin_file={recipe}.gin", "--gin.DUO_DEPTH=50"]
    flags += ["--gin.COLLECTIONS=dl"] if recipe == "tables" else []
    assert build(*flags).duo_depth == 50
