"""Names of published collections: ir_datasets has each, and every job takes it."""

from __future__ import annotations

import pytest

from distill_jax import main
from distill_jax.collections import irds
from distill_jax.collections.groups import GROUPS

NAMES = list(
    dict.fromkeys(
        name
        for group in GROUPS.values()
        for entry in group
        for name in (entry[1] if isinstance(entry, tuple) else (entry,))
    )
)
# One split that a part of the name says or not, and sets with splits below.
FORMS = [
    "irds:beir/trec-covid", "irds:beir/scifact", "irds:beir/cqadupstack/tex",
    "irds:msmarco-passage/trec-dl-2019/judged", "irds:lotte/science/test/forum",
    "irds:msmarco-passage", "irds:gov/trec-web-2002", "irds:vaswani",
    "irds:dpr-w100/natural-questions",
]  # fmt: skip
RECIPES = {
    "mine": (),
    "label": ("--gin.CHECKPOINT=fresh:reranker:t5:tiny",),
    "evaluate": ("--gin.CHECKPOINT=fresh:reranker:t5:tiny",),
    "quickstart": ("--gin_file=small.gin",),
    "tables": (),
}


@pytest.fixture
def cut_off(monkeypatch):
    """No network: documents would be downloaded where this is reached."""

    def docs(dataset, name):
        raise ConnectionError(f"downloading {name}")

    monkeypatch.setattr(irds, "_docs", docs)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_a_group_is_a_set_with_judged_queries(name):
    ir_datasets = pytest.importorskip("ir_datasets")
    assert name.removeprefix("irds:") in irds._names(ir_datasets)
    dataset, _ = irds._find(ir_datasets, name.removeprefix("irds:"), "test")
    assert dataset.has("docs")
    assert dataset.has("queries")
    assert dataset.has("qrels")


def test_groups_have_the_papers_counts():
    assert len(GROUPS["beir"]) == 15
    assert len(GROUPS["cqadupstack"][0][1]) == 12
    tasks = [e[1] if isinstance(e, tuple) else (e,) for e in GROUPS["tirex"]]
    assert (len(tasks), sum(map(len, tasks))) == (13, 29)


def reaches_the_download(capsys, tmp_path, recipe, name):
    split = "dev" if name in ("irds:msmarco-passage", FORMS[-1]) else "test"
    flag = "TEST_SPLIT" if recipe == "quickstart" else "SPLIT"
    words = [f"--gin_file={recipe}.gin", *RECIPES[recipe]]
    words += [f"--gin.MODEL_DIR={tmp_path / 'job'}"]
    if recipe == "tables":
        words += [f"--gin.COLLECTIONS=('{name}',)", "--gin.FIRST_STAGES=('bm25',)"]
    else:
        words += [f"--gin.COLLECTION={name}"]
    words += [f"--gin.{flag}={split}"]
    assert main.main(words) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 2
    assert said.startswith(name)
    assert ": ConnectionError: downloading" in said
    assert "check the network" in said


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_job_takes_each_form_of_name_up_to_the_download(
    capsys, tmp_path, cut_off, recipe
):
    pytest.importorskip("ir_datasets")
    for name in FORMS:
        reaches_the_download(capsys, tmp_path, recipe, name)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_job_takes_every_name_up_to_the_download(capsys, tmp_path, cut_off, recipe):
    pytest.importorskip("ir_datasets")
    for name in NAMES:
        reaches_the_download(capsys, tmp_path, recipe, name)
