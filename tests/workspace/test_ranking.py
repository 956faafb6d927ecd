"""A search with a model, by way of ScaNN."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.ops.vector_form import VectorForm
from distill_jax.workspace import ranking

pytestmark = pytest.mark.skipif(
    find_spec("scann") is None, reason="scann is not installed"
)


@pytest.mark.parametrize(("depth", "at"), [(50, 50), (1000, 300)])
@pytest.mark.parametrize("met", [True, False])
def test_recall_is_controlled_at_the_depth_of_the_search(
    monkeypatch, capsys, tmp_path, depth, at, met
):
    from distill_jax.retrieval import Scann, scann

    docs = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    monkeypatch.setattr(ranking, "encode_all", lambda *given, **more: docs[:4])
    monkeypatch.setattr(ranking, "corpus_vectors", lambda *given: docs)
    monkeypatch.setattr(ranking, "vectors_key", lambda *given: "vectors")
    if not met:
        monkeypatch.setattr(scann, "recall_of", lambda run, truth: 0.75)
    seen = []
    tuned = Scann.tuned

    def noted(self, *given, **more):
        seen.append(more["k"])
        return tuned(self, *given, **more)

    monkeypatch.setattr(Scann, "tuned", noted)
    run = ranking.search(
        SimpleNamespace(  # type: ignore[arg-type]
            spec=SimpleNamespace(vectors=VectorForm.ONE, similarity="dot", passages=1)
        ),
        Queries(["a", "b", "c", "d"], ["", "", "", ""]),
        SimpleNamespace(  # type: ignore[arg-type]
            query_features=lambda *given: None,
            doc_features=lambda *given: None,
            collection=Collection([f"d{n}" for n in range(300)], ["a text"] * 300),
            mesh=None,
            directory=tmp_path,
            indexes={},
        ),
        depth=depth,
        directory=Path("nowhere"),
        index="scann",
    )
    assert run.rows.shape == (4, at)
    assert seen == [at]
    note = f"ScaNN finds 0.750 of the {at} nearest documents, 0.99 were wanted"
    assert (note in capsys.readouterr().out) == (not met)
