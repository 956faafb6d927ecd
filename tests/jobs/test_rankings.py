"""What a job says of its rankings before it trains."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from distill_jax.collections.collection import Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.jobs.rankings import Rankings
from distill_jax.recipe.teachers import Scores
from distill_jax.runs.run import Run
from distill_jax.workspace.context import Split


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("taught", "the teacher beats the student"),
        ("known", "not shown"),
        ("worse", "is worse"),
    ],
)
def test_the_teacher_s_lead_is_said_before_training(monkeypatch, order, said):
    """Forty dev queries with one relevant document each, first or last of ten."""
    ids, docs = [f"q{i}" for i in range(40)], [f"d{i}" for i in range(10)]
    qrels = Qrels({query: {docs[0]: 1} for query in ids})
    found = {
        name: [(doc, 1.0 / rank) for rank, doc in enumerate(docs[::step], 1)]
        for name, step in (("taught", 1), ("known", -1))
    }
    found["worse"] = found["known"][:-1]
    runs = {name: Run.from_lists(ids, [pairs] * 40) for name, pairs in found.items()}
    stage = SimpleNamespace(
        list_teacher=Scores(), candidates=lambda context: runs[order]
    )
    dev = Split(queries=Queries(ids, ids), qrels=qrels)
    workspace = SimpleNamespace(dev=dev, dev_is_judged=True)
    job = SimpleNamespace(stages=(stage,), stop_measure="nDCG@10")
    rankings = Rankings(job, workspace, SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setattr(Rankings, "context", lambda *given: None)
    monkeypatch.setattr(Rankings, "of_dev", lambda *given: runs["known"])
    lead = rankings.lead(None)  # type: ignore[arg-type]
    assert lead is not None
    assert said in lead
    assert ("little to teach" in lead) == (order != "taught")
    # A model that would have to score the lists first is not called.
    stage.list_teacher = object()
    assert rankings.lead(None) is None  # type: ignore[arg-type]
