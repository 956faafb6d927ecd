"""Records tell a file or a model that changed behind its name."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from types import SimpleNamespace

import pytest

from distill_jax.io.errors import UserError
from distill_jax.io.fingerprint import contents, free_names
from distill_jax.jobs.distill import Distill
from distill_jax.jobs.rankings import first_source
from distill_jax.recipe import embedding, labelled
from distill_jax.recipe.candidates import (
    BM25,
    Context,
    Fused,
    Named,
    RunFile,
    Search,
)
from distill_jax.recipe.checkpoints import Checkpoint
from distill_jax.recipe.models import Models
from distill_jax.recipe.queries import Cropped, Generated, Synthetic, Written
from distill_jax.recipe.registry import PARTS
from distill_jax.recipe.stage import Stage, Training
from distill_jax.recipe.students import Student
from distill_jax.recipe.teachers import LabelFile, Model
from distill_jax.teaching.clients import Client
from distill_jax.workspace.context import open_workspace
from distill_jax.workspace.dependencies import dependencies, of_path
from distill_jax.workspace.describe import describe


def context(student="s0", **models):
    return SimpleNamespace(
        student=SimpleNamespace(digest=student),
        model=lambda name: SimpleNamespace(digest=models[name.replace(":", "_")]),
    )


def test_the_student_and_models_of_this_job_count():
    source = Fused(sources=(BM25(), Search(), Search(checkpoint="stage:a")))
    found = dependencies(source, context(stage_a="a0"))
    assert found == {"student": "s0", "stage:a": "a0"}
    assert found != dependencies(source, context(stage_a="a1"))
    assert found != dependencies(source, context("s1", stage_a="a0"))
    assert dependencies(Search(checkpoint="hf:a/b"), context()) == {}


@pytest.mark.parametrize(
    "reads",
    [
        lambda path: RunFile(path=path),
        lambda path: LabelFile(path=path),
        lambda path: (Model(checkpoint=path),),
        lambda path: Synthetic(makers=(Generated(checkpoint=path),)),
        lambda path: Synthetic(makers=(Written(client=None, kinds=(path,)),)),
        lambda path: Named(run=path),
        lambda path: Named(checkpoint=path),
        lambda path: labelled.LabelFile(path="absent", permutations=path),
        lambda path: labelled.LabelFile(path="absent", pairs=path),
        lambda path: labelled.LabelFile(path="absent", first_stage=path),
        lambda path: embedding.VectorFile(path=path),
        lambda path: embedding.Encoder(checkpoint=path),
        lambda path: Search(checkpoint=Checkpoint(path=path, query_path=path)),
    ],
)
def test_files_behind_a_name_count(tmp_path, reads):
    path = tmp_path / "file.json"
    path.write_text("one")
    before = dependencies(reads(str(path)), context())
    assert dependencies(reads(str(path)), context()) == before
    path.write_text("two")
    assert dependencies(reads(str(path)), context()) != before


def parts():
    """The dataclasses that a job is made of; jobs themselves are in no record."""
    for room, names in PARTS.items():
        for name in names if not room.startswith("distill_jax.jobs") else ():
            part = getattr(importlib.import_module(room), name)
            if dataclasses.is_dataclass(part):
                yield part


@pytest.mark.parametrize("part", [*parts()], ids=lambda part: part.__qualname__)
def test_a_field_that_names_a_file_or_a_model_counts_by_content_or_is_free(part):
    names = {
        field.name
        for field in dataclasses.fields(part)
        if re.search(r"path|checkpoint|prompt|kinds|cache|\brun\b|file", field.name)
    }
    # A checkpoint's prompt is a text.
    names -= {"prompt"} if part is Checkpoint else set()
    assert names <= {*contents(part), *free_names(part)}


def test_what_is_free_is_in_no_record():
    client = Client(base_url="http://a/v1", model="m", cache="x", timeout=1.0)
    other = Client(base_url="http://b/v1", model="m", cache="y", timeout=2.0)
    assert describe(client) == describe(other)
    assert describe(client) != describe(dataclasses.replace(client, model="n"))
    cached = [Model(checkpoint="hf:a/b", cache=path) for path in ("x", "y")]
    assert describe(cached[0]) == describe(cached[1])


def test_of_a_model_dir_the_student_counts(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "params").write_text("one")
    before = of_path(tmp_path)
    (tmp_path / "report.html").write_text("another page")
    assert of_path(tmp_path) == before
    (tmp_path / "student" / "params").write_text("two")
    assert of_path(tmp_path) != before
    assert of_path(tmp_path / "absent") is None
    assert of_path("hf:a/b") is None


def job(**more):
    stages = (Stage(examples=None, training=Training(objective=None)),)
    return Distill(
        directory="x", collection="y", student=Student(), stages=stages, **more
    )


def test_a_stage_of_a_later_round_is_that_round_s(tmp_path):
    models = Models(job(), SimpleNamespace())
    for number in (1, 2):
        folder = tmp_path / str(number)
        models.trained["a"] = SimpleNamespace(student=number, directory=folder)
        assert models.load("stage:a") == number
        assert models._path("stage:a") == str(folder / "student")


def test_what_is_reordered_is_as_deep_as_what_is_asked():
    assert first_source(job(depth=1000)).depth == 1000
    assert first_source(job(depth=20)).depth == 100
    assert first_source(job(first_stage=Search())) == Search()


def test_no_test_on_what_is_trained_on():
    with pytest.raises(UserError, match="training split"):
        job(test_split="train")


def test_a_prompt_that_ships_is_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "notes").write_text("the user's own")
    assert dependencies(Written(client=None, kinds=("claims",)), context()) == {}


def test_a_generator_that_is_none_is_left_out(toy, tmp_path):
    workspace = open_workspace(tmp_path, toy, need=())
    student = SimpleNamespace(digest="s0")
    asks = Context(
        workspace=workspace,
        queries=None,
        student=student,
        model=None,
        directory=tmp_path,
    )  # type: ignore[arg-type]
    none = Generated(checkpoint=None)
    made = Synthetic(makers=(none, Cropped(min_words=2)))(asks)
    assert len(made.queries) > 10
    assert {query.split("|")[1] for query in made.queries.ids} == {"crop"}
    # What is left out depends on nothing.
    record = json.loads((tmp_path / "queries" / "part.json").read_text())
    assert "student" not in record["inputs"]
    with pytest.raises(UserError, match="nothing makes queries"):
        Synthetic(makers=(none,))(asks)
