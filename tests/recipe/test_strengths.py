"""Judged pairs become scores: strengths whose differences are the odds of winning."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from distill_jax.cli.config import build_job
from distill_jax.cli.flags import parse_flags
from distill_jax.io.errors import UserError
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.recipe.strengths import BradleyTerry
from distill_jax.recipe.teachers import PairScores

DOCS = ["a", "b", "c", "d"]
TEACHER = BradleyTerry(pairwise=PairScores(), prior=0.1)


def pairs(first, second, probability) -> PairLabels:
    return PairLabels(("q",), [first], [second], [probability], DOCS)


def test_strengths_are_where_the_likelihood_is_greatest():
    first, second = np.array([3, 3, 1, 0]), np.array([1, 0, 0, 1])
    wins = np.array([0.9, 0.8, 0.7, 0.4])
    found = dict(TEACHER.strengths(pairs(first, second, wins)).lists()["q"])
    assert set(found) == {"a", "b", "d"}  # c was never judged

    def loss(x):
        # The prior is a draw against a document of strength 0, 2 * prior times.
        gap = x[first] - x[second]
        pairwise = wins * np.logaddexp(0, -gap) + (1 - wins) * np.logaddexp(0, gap)
        drawn = [0, 1, 3]
        prior = np.logaddexp(0, -x[drawn]) + np.logaddexp(0, x[drawn])
        return pairwise.sum() + 0.1 * prior.sum()

    best = minimize(loss, np.zeros(4), tol=1e-12).x
    wanted = {"a": best[0], "b": best[1], "d": best[3]}
    assert found == pytest.approx(wanted, abs=1e-3)


def test_pairs_that_nobody_judged_are_an_error():
    with pytest.raises(UserError, match="no pair of documents was judged"):
        TEACHER.strengths(pairs([0], [1], [np.nan]))


def test_a_recipe_can_learn_from_strengths():
    job = build_job(
        parse_flags(
            [
                "--gin_file=specialize.gin",
                "--gin.COLLECTION=pydocs:json",
                "--gin.TEACHER_LABELS=@strengths.BradleyTerry()",
                "--gin.strengths.BradleyTerry.pairwise=@teachers.PairScores()",
            ]
        )
    )
    (stage,) = job.stages
    assert isinstance(stage.examples.teacher, BradleyTerry)
    assert isinstance(stage.examples.teacher.pairwise, PairScores)
