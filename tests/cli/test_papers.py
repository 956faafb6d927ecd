"""Each recipe is its paper: what is written down of the paper is what is built."""

from __future__ import annotations

import contextlib

import pytest

from distill_jax import main
from distill_jax.cli import papers
from distill_jax.cli.flags import parse_flags
from distill_jax.io.errors import UserError
from tests.test_gin_configs import given

METHODS = (
    "rank_distillm",
    "specialize",
    "twolar",
    "intermediate_distillation",
    "pairdistill_colbert",
    "pairdistill_dpr",
    "pairdistill_zero_shot",
)


def build(recipe: str, *flags: str):
    llm = ["--gin.LLM_BASE_URL=http://localhost:1/v1", "--gin.LLM_MODEL=x"]
    required = [flag for flag in given(recipe) if not flag.startswith("--gin.LLM_")]
    argv = [f"--gin_file={recipe}.gin", *required, *flags]
    # What asks no LLM refuses the names of one.
    with contextlib.suppress(UserError):
        return main.build_job(parse_flags([*argv, *llm]))
    return main.build_job(parse_flags(argv))


def test_every_method_has_its_paper():
    assert set(papers.shipped()) == set(METHODS)


@pytest.mark.parametrize("recipe", METHODS)
def test_every_element_is_carried_or_says_why_not(recipe):
    paper = papers.paper_of(recipe)
    assert paper is not None
    assert paper["recipe"] == f"{recipe}.gin"
    for element in paper["elements"]:
        assert "binding" in element or "differs" in element, element["element"]
        assert element["place"]


@pytest.mark.parametrize("recipe", METHODS)
def test_the_recipe_is_built_as_the_paper_says(recipe):
    paper, job = papers.paper_of(recipe), build(recipe)
    assert paper is not None
    for element in paper["elements"]:
        if "binding" in element:
            wanted = element.get("here", element["value"])
            found = papers.value_at(job, element["binding"])
            assert found == wanted, element["element"]
    allowed = [e for e in paper["elements"] if "differs" in e]
    assert len(list(papers.differences(paper, job))) == len(allowed)


FIGURES = [
    (recipe, figure["figure"], figure["flags"])
    for recipe in METHODS
    for figure in (papers.paper_of(recipe) or {})["figures"]
]


@pytest.mark.parametrize(("recipe", "figure", "flags"), FIGURES)
def test_every_reported_figure_has_a_command_that_builds(recipe, figure, flags):
    paper, job = papers.paper_of(recipe), build(recipe, *flags)
    assert paper is not None
    # The flags change something, and the recipe alone makes none of these figures.
    assert bool(flags) == (papers_differ(paper, job) or changed(recipe, job)), figure


def papers_differ(paper, job) -> bool:
    allowed = sum("differs" in element for element in paper["elements"])
    return len(list(papers.differences(paper, job))) > allowed


def changed(recipe: str, job) -> bool:
    return repr(build(recipe)) != repr(job)


def test_a_plan_tells_what_differs():
    argv = ["--gin_file=rank_distillm.gin", *given("rank_distillm")]
    job = main.build_job(parse_flags([*argv, "--gin.LEARNING_RATE=0.5"]))
    told = papers.plan_lines(["rank_distillm.gin", "small.gin"], job)
    assert "learning rate: 1e-05 there, 0.5 here" in told
    assert "RankZephyr there" in told
    assert papers.plan_lines(["mine.gin"], job) == ""
