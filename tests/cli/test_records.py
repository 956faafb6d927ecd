"""Every name of a recipe is in the record of what was made, or is free to change."""

from __future__ import annotations

import functools

import pytest

from distill_jax.io.errors import UserError
from distill_jax.workspace.describe import describe
from tests.test_gin_configs import FOLDER, RECIPES, build, given, names

# Rows of these are jobs of the other recipes, by the flags that their tables name.
OF_VARIANTS = {recipe for recipe in RECIPES if "/" in recipe} | {"students"}
# How an LLM is reached and what it may cost changes none of its replies.
FREE = {
    "LLM_BASE_URL",
    "LLM_BUDGET_CALLS",
    "LLM_BUDGET_MONEY",
    "LLM_CACHE",
    "LLM_PRICE_IN",
    "LLM_PRICE_OUT",
    "LLM_TOKENS_FIELD",
    "MAY_CHANGE",
}
# Where a name is tried that not every recipe of its own reads, and what it needs.
HOME = {
    "COLLECTION": "specialize",
    "DELTA": "pairdistill_colbert",
    "FIRST": "pairdistill_colbert",
    "MATRYOSHKA": "specialize",
    "PAIRS": "pairdistill_colbert",
    "SEED": "specialize",
    "STAGES": "rank_distillm",
    "TEACHER_LABELS": "specialize",
    "TERMS": "specialize",
}
LLM = ("LLM_BASE_URL=http://localhost:1/v1", "LLM_MODEL=x")
WITH = {
    "CROPPED": ("STAGES=(@listwise/stage.Stage(), @crops/stage.Stage())",),
    "DIRECT": ("STAGES=%DIRECT",),
    "FIRST": ("CANDIDATES=@candidates.InRounds()",),
    "GENERATOR": ("MAKERS=(@queries.Generated(),)",),
    "KL": ("TERMS=%KL",),
    "LLM_BUDGET_MONEY": ("LLM_PRICE_IN=1", "LLM_PRICE_OUT=1"),
    "LLM_PRICE_IN": ("LLM_PRICE_IN=1", "LLM_PRICE_OUT=1"),
    "LLM_PRICE_OUT": ("LLM_PRICE_IN=1", "LLM_PRICE_OUT=1"),
    "READ": (*LLM, "QUERIES=jsonl:x"),
    "SAMPLES": ("MAKERS=(@queries.Generated(),)",),
    "TEACHERS": ("TEACHER_LABELS=@teachers.Ensemble()",),
    "VECTOR_FILE": ("VECTORS=@embedding.VectorFile()",),
}
OTHER = {
    "ANSWERS": "first",
    "BACKBONE": "bert:mini",
    "BESIDE": "{}",
    "CANDIDATES": "@candidates.BM25()",
    "COLLECTION": "beir:x",
    "DIRECT": "(@ranker/stage.Stage(),)",
    "EXPORT_DTYPE": "float16",
    "FIRST": "hf:a/b",
    "FIRST_STAGE": "@candidates.Search()",
    "FORMAT": "transformers",
    "INDEX": "exact",
    "JUDGE": "@judges.Pairwise()",
    "KL": "(@listwise/losses.Term(),)",
    "LISTMLE_ON": "probabilities",
    "LLM_BASE_URL": "http://localhost:2/v1",
    "LOSS": "ranknet",
    "MATRYOSHKA": "(64,)",
    "METRIC": "cosine",
    "NEGATIVES": "(0, 50)",
    "NEGATIVES_FROM": "@negatives/candidates.BM25()",
    "NORMALISATION": "zscore",
    "NORMALISE": "True",
    "OPTIMIZER": "adafactor",
    "QUERIES_FROM": "@queries.Synthetic()",
    "RANKER_TEACHER": "@direct/llm.if_named()",
    "SCHEDULE": "linear",
    "SECOND_STAGE": "@candidates.BM25()",
    "SIMILARITY": "cosine",
    "SOURCE": "@candidates.BM25()",
    "STAGES": "(@distil/stage.Stage(),)",
    "STREAM": "seqio",
    "STUDENT": "@students.Student()",
    "TEACHERS": "('hf:a/b',)",
    "TEACHER_LABELS": "@teachers.Scores()",
    "TEACHER_ORDER": "@candidates.BM25()",
    "TERMS": "(@listwise/losses.Term(),)",
    "TRAINED": "both",
    "TRAIN_QUERIES": "queries:x",
    "VECTOR_FILE": "x.npy",
}


def places() -> dict[str, str]:
    """Every name of the recipes, each with one that has it."""
    found: dict[str, str] = {}
    for recipe in RECIPES:
        if recipe not in OF_VARIANTS:
            for name in names(FOLDER / f"{recipe}.gin"):
                found.setdefault(name, recipe)
    # Without an LLM most of its names have nothing to say.
    of_llm = {name: "twolar" for name in found if name.startswith("LLM_")}
    return {**found, **of_llm, **HOME}


def others(name: str, value: object) -> list[str]:
    """Values to try in place of a recipe's own, until one is taken."""
    if name in OTHER:
        return [OTHER[name]]
    if isinstance(value, bool):
        return [str(not value)]
    if isinstance(value, int):
        return [str(value + 1), str(max(value - 1, 0))]
    if isinstance(value, float):
        return [str(value / 2 or 0.5)]
    tried = ["3", "0.25", "jsonl:x", "runs/other", "nDCG@5", "()", "{}", "None"]
    return [text for text in tried if text != str(value)]


@functools.cache
def before(flags: tuple[str, ...]):
    return describe(build(*flags))


@pytest.mark.slow  # some hundred jobs are built
def test_changing_a_name_changes_the_record():
    wrong = []
    for name, recipe in sorted(places().items()):
        value = names(FOLDER / f"{recipe}.gin")[name]
        flags = [f"--gin_file={recipe}.gin", *given(recipe)]
        flags += [f"--gin.{flag}" for flag in WITH.get(name, ())]
        rest = [f for f in flags if not f.startswith(f"--gin.{name}=")]
        told = "no value to try"
        for text in others(name, value):
            try:
                after = describe(build(*rest, f"--gin.{name}={text}"))
                same = after == before(tuple(flags))
            except UserError as error:
                told = error.what
                continue
            if same != (name in FREE):
                wrong.append(f"{recipe}: {name}={text}: same record")
            break
        else:
            wrong.append(f"{recipe}: {name}={value!r}: {told}")
    assert not wrong, "\n".join(wrong)
