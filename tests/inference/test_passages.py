"""A document over the model's length is scored by its passages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from distill_jax import main
from distill_jax.cli.flags import parse_flags
from distill_jax.inference.texts import score_tuples
from distill_jax.io.errors import UserError
from distill_jax.recipe import checkpoints
from tests.export.forms import student

TEXT = "water boil vaccine city tokyo bone pain council vote bus lane"
WORDS = TEXT.split()


def reranker(**fields):
    found = student("bert_cross")
    return found.replace(spec=dataclasses.replace(found.spec, **fields))


def words(count: int, seed: int) -> list[str]:
    return np.random.default_rng(seed).choice(WORDS, count).tolist()


@pytest.mark.parametrize("limit", [{"doc_length": 8}, {"length": 13}])
@pytest.mark.parametrize("most", [1, 2, 3, 9])
def test_the_score_is_the_greatest_of_the_windows(limit, most):
    query = "what is high"
    docs = [words(n, n) for n in (1, 7, 8, 9, 16, 20, 40, 0)]
    whole = {"query_length": 8, "doc_length": 48, "length": None}
    each = reranker(**{**whole, **limit})
    # Beside 3 tokens of the query and 3 special ones there is room for 8 or 7.
    room = 8 if "doc_length" in limit else 7
    expected = []
    for doc in docs:
        starts = range(0, max(len(doc), 1), room)
        windows = [" ".join(doc[start : start + room]) for start in starts][:most]
        expected.append(score_tuples(each, [(query, text) for text in windows]).max())
    found = score_tuples(
        reranker(**{**whole, **limit, "passages": most}),
        [(query, " ".join(doc)) for doc in docs],
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_more_passages_change_long_documents_only():
    pairs = [("what", " ".join(words(n, n))) for n in (3, 45)]
    fields = {"doc_length": 8, "query_length": 8}
    one, many = (score_tuples(reranker(**fields, passages=n), pairs) for n in (1, 9))
    assert one[0] == pytest.approx(many[0], abs=1e-6)
    assert many[1] > one[1]


def test_no_passages_are_refused():
    with pytest.raises(UserError, match="passages=0"):
        reranker(passages=0)


def test_recipes_name_the_passages():
    argv = ["--gin_file=label.gin", "--gin.CHECKPOINT=x", "--gin.PASSAGES=4"]
    job = main.build_job(parse_flags(argv))
    named = checkpoints.named(job.teacher.checkpoint)
    assert named.fields == {"passages": 4}
