"""Loggers are named by recipes, and checked before anything runs."""

from __future__ import annotations

import pytest

from distill_jax.cli.config import build_job
from distill_jax.cli.flags import parse_flags
from distill_jax.io.errors import UserError
from distill_jax.runtime.loggers import check_loggers


def build(*argv: str):
    return build_job(parse_flags(["--gin_file=quickstart.gin", *argv]))


def test_loggers_of_a_recipe_reach_its_trainings():
    (stage,) = build("--gin.LOGGERS=('tensorboard',)").stages
    assert stage.training.loggers == ("tensorboard",)
    assert build().stages[0].training.loggers is None


def test_a_logger_that_is_not_known_names_those_that_are():
    with pytest.raises(UserError, match=r"no logger .tensorbord. \(did you mean"):
        check_loggers(["tensorbord"])
