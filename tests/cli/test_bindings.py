"""Values of flags and files are typed, and what nothing reads is refused."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest

from distill_jax import losses, main
from distill_jax.cli import config
from distill_jax.cli.flags import parse_flags
from distill_jax.io.errors import UserError
from distill_jax.io.values import Named, argument_types
from distill_jax.recipe.registry import PARTS
from tests.test_gin_configs import FOLDER, RECIPES, build, given, names

HEADER = "from __gin__ import dynamic_registration\n"

TEACHER = "--gin_file=rankt5_teacher.gin"
VALUES = ("0", "-1", "abc", "1.5", "None", "nan", "")


def refused(*argv: str) -> str:
    with pytest.raises(UserError) as stop:
        build(*argv)
    told = str(stop.value)
    assert stop.value.status == 2
    assert len(told.splitlines()) <= 2
    return told


def homes() -> list[tuple[str, str]]:
    """Every name of the shipped recipes, each with the first recipe that has it."""
    found = {
        name: recipe
        for recipe in reversed(RECIPES)
        for name in names(FOLDER / f"{recipe}.gin")
    }
    return sorted(found.items())


def test_every_name_takes_a_value_or_refuses_it_in_two_lines():
    """One of the values for each name, in turn; the slow test tries all."""
    for number, (name, recipe) in enumerate(homes()):
        takes_or_refuses(name, recipe, VALUES[number % len(VALUES)])


@pytest.mark.slow
@pytest.mark.parametrize("value", VALUES)
def test_every_name_takes_each_value_or_refuses_it_in_two_lines(value):
    for name, recipe in homes():
        takes_or_refuses(name, recipe, value)


def takes_or_refuses(name: str, recipe: str, value: str) -> None:
    """The job is built, or the flag is named; gin's own errors name none."""
    flags = [f for f in given(recipe) if not f.startswith(f"--gin.{name}=")]
    flags += [f"--gin_file={recipe}.gin", f"--gin.{name}={value}"]
    job, told = attempt(*flags)
    if job is None:
        assert len(told.splitlines()) <= 2
        # A stage without a teacher names the flags that give it one.
        assert name in told or "--gin.LABELS" in told, (name, value, told)
    else:
        assert callable(job.plan)
        assert not list(wrong_numbers(job)), (name, value)


def attempt(*argv: str):
    try:
        return build(*argv), ""
    except UserError as error:
        return None, str(error)


def wrong_numbers(value):
    """Numbers that no setting of a job may have."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from wrong_numbers(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from wrong_numbers(item)
    elif isinstance(value, float) and not math.isfinite(value):
        yield value


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("TRAIN_STEPS=abc", "TRAIN_STEPS is 'abc'"),
        ("BATCH_SIZE=0", "BATCH_SIZE is '0'"),
        ("LEARNING_RATE=fast", "LEARNING_RATE is 'fast'"),
        ("LEARNING_RATE=nan", "LEARNING_RATE is 'nan'"),
        ("LEARNING_RATE=-1", "LEARNING_RATE is '-1'"),
        ("LIST_SIZE=-3", "LIST_SIZE is '-3'"),
        ("NEGATIVES=5", "NEGATIVES is '5'"),
        ("VOCABULARY_SIZE=-1", "VOCABULARY_SIZE"),
        ("DROPOUT=2", "DROPOUT"),
        ("SEED=abc", "SEED"),
        ("BACKBONE=gpt", "BACKBONE"),
        ("BACKBONE=t5:nope", "BACKBONE"),
        ("DTYPE=float8", "DTYPE"),
        ("EXPORT=onnx", "EXPORT"),
        ("MEASURE=nDCK@10", "MEASURE"),
        ("STOP_MEASURE=n", "STOP_MEASURE"),
        ("COLLECTION=nowhere", "COLLECTION"),
        ("MODEL_DIR=", "MODEL_DIR"),
        ("MODEL_DIR=nosuch://bucket/x", "nosuch://"),
        ("LOGGERS=tensorbord", 'did you mean "tensorboard"'),
        ("STUDENT_OPTIONS={'heads': 'rankt5'}", 'did you mean "head"'),
        ("STUDENT_OPTIONS={5: 'head'}", "STUDENT_OPTIONS"),
        ("STUDENT_OPTIONS={'query_length': 'x'}", "query_length is 'x'"),
        ("STUDENT_OPTIONS={'doc_length': -1}", "doc_length is -1"),
        ("STUDENT_OPTIONS={'doc_length': 0}", "doc_length is 0"),
        ("STUDENT_OPTIONS={'projection': -3}", "projection is -3"),
        ("STUDENT_OPTIONS={'projection': 'wide'}", "projection is 'wide'"),
        ("STUDENT_OPTIONS={'similarity': None}", "similarity is None"),
        ("STUDENT_OPTIONS={'dropout': 'none'}", "dropout is 'none'"),
        ("TEACHER_OPTIONS={'query_prefix': ['a']}", "query_prefix is ['a']"),
        ("TEACHER_OPTIONS={'backbone': 5}", "TEACHER_OPTIONS"),
        ("STREAM=kafka", "STREAM"),
        ("OPTIMIZER=sgdd", "OPTIMIZER"),
        ("TRAIN_STEPS=1e30", "TRAIN_STEPS is '1e30'"),
        ("BATCH_SIZE=1e12", "from 1 to 2,147,483,647"),
        ("DOC_LENGTH=99999999999", "DOC_LENGTH"),
        ("TRAIN_STEPS=@losses.softmax_cross_entropy", "a plain value"),
        ("COLLECTION=beir:nosuch://bucket/x", "nosuch://"),
        ("COLLECTION=beir:file:///tmp/x", "file://"),
        ("MODEL_DIR=$HOME/x", "a variable that the shell did not fill in"),
        ("MEASURE=nDCG@0", "unknown measure 'nDCG@0'"),
        ("MEASURE=nDCG@1.5", "unknown measure 'nDCG@1.5'"),
        ("MEASURE=AP(rel='x')", "unknown measure"),
        ("LOSS=adr_msee", 'did you mean "adr_mse"'),
    ],
)
def test_a_wrong_value_is_named_by_its_flag(flag, told):
    recipe = {"LOSS": "rank_distillm", "TEACHER_OPTIONS": "specialize"}.get(
        flag.partition("=")[0], "rankt5_teacher"
    )
    argv = [f"--gin_file={recipe}.gin", *given(recipe)]
    assert told in refused(*argv, f"--gin.{flag}")


def test_every_wrong_value_is_named_at_once():
    told = refused(TEACHER, "--gin.TRAIN_STEPS=x", "--gin.BATCH_SIZE=y")
    assert "TRAIN_STEPS" in told
    assert "BATCH_SIZE" in told


def test_values_are_what_people_mean(tmp_path):
    job = build(
        TEACHER,
        "--gin.TRAIN_STEPS=4.0",
        "--gin.BATCH_SIZE=1e1",
        "--gin.EXPORT=none",
        "--gin.MODEL_DIR=~/x",
        "--gin.WARMUP=1",
    )
    (stage,) = job.stages
    assert stage.training.steps == 4
    assert type(stage.training.steps) is int
    assert stage.training.batch_size == 10
    assert type(stage.training.warmup) is float
    assert job.export is None
    assert "~" not in job.directory
    evaluate = build(
        "--gin_file=evaluate.gin",
        "--gin.COUNT_MISSING=false",
        "--gin.HITS=5,10",
        "--gin.MEASURES=nDCG@5",
        "--gin.MODEL_DIR=2024",
    )
    assert evaluate.count_missing is False
    assert evaluate.hits == (5, 10)
    assert evaluate.measures == ("nDCG@5",)
    assert evaluate.directory == "2024"


@pytest.mark.parametrize("value", ["adr_mse", "@losses.adr_mse"])
def test_a_loss_is_named(value):
    argv = ["--gin_file=rank_distillm.gin", *given("rank_distillm")]
    job = build(*argv, f"--gin.LOSS={value}")
    assert job.stages[1].training.objective.loss is losses.adr_mse


def test_the_losses_that_can_be_named_are_those_of_the_room():
    names = Named("distill_jax.losses").names
    assert {"adr_mse", "ranknet", "softmax_cross_entropy"} <= {*names}
    assert not {"Listwise", "Mixture", "Term", "read"} & {*names}


def test_a_loss_keeps_what_is_bound_to_it():
    argv = ["--gin_file=rank_distillm.gin", *given("rank_distillm")]
    bound = "--gin.losses.margin_mse.normalize=True"
    plain = build(*argv, "--gin.LOSS=margin_mse")
    assert plain.stages[1].training.objective.loss is losses.margin_mse
    import inspect

    option = next(
        name
        for name, p in inspect.signature(losses.ranknet).parameters.items()
        if name not in ("scores", "labels", "where", "reduce_fn")
    )
    del bound
    value = inspect.signature(losses.ranknet).parameters[option].default
    job = build(*argv, f"--gin.losses.ranknet.{option}={value!r}")
    loss = job.stages[1].training.objective.loss
    assert isinstance(loss, functools.partial)
    assert loss.keywords == {option: value}
    told = refused(
        *argv, "--gin.LOSS=margin_mse", f"--gin.losses.ranknet.{option}={value!r}"
    )
    assert "nothing reads" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("COLECTION = 'pydocs:json'\n", 'did you mean "COLLECTION"'),
        ("LEARNING_RATES = 3.0\n", 'did you mean "LEARNING_RATE"'),
        ("a/b/c/SEED = 1\n", "a/b/c/SEED"),
        ("from distill_jax.recipe import candidates\n"
         "candidates.Fused.depth = 7\n", "candidates.Fused.depth"),
        ("from distill_jax.recipe import candidates\n"
         "other/candidates.BM25.depth = 7\n", "other/candidates.BM25.depth"),
        ("from distill_jax.training import schedules\n"
         "schedules.constant.warmup = 7\n", "schedules.constant.warmup"),
        ("STEPS = (1,\n", "mine.gin"),
    ],
)  # fmt: skip
def test_what_nothing_reads_is_refused(tmp_path, text, told):
    mine = tmp_path / "mine.gin"
    mine.write_text(HEADER + text)
    assert told in refused(TEACHER, f"--gin_file={mine}")


def test_a_flag_that_nothing_reads_is_refused():
    argv = ["--gin_file=synthesize.gin"]
    assert "GENERATOR" in refused(*argv, "--gin.GENERATOR=runs/other")
    makers = "--gin.MAKERS=(@queries.Generated(),)"
    assert build(*argv, makers, "--gin.GENERATOR=runs/other")


def test_a_file_for_several_recipes_says_so(tmp_path):
    mine = tmp_path / "mine.gin"
    mine.write_text("OVERLAY = True\nLEARNING_RATES = 3.0\nSEED = 5\n")
    assert build(TEACHER, f"--gin_file={mine}").seed == 5


def test_the_record_makes_the_same_job(tmp_path):
    argv = ["--gin_file=quickstart.gin", "--gin.EPOCHS=2", "--gin.MODEL_DIR=2024"]
    flags = parse_flags([*argv, "--gin.MEASURE=None", "--gin.SEED=1e1"])
    job, found = config.configured_job(flags)
    (tmp_path / "again.gin").write_text(found.text)
    again = build(f"--gin_file={tmp_path}/again.gin")
    assert dataclasses.asdict(again) == dataclasses.asdict(job)
    assert again.directory == "2024"


def test_annotations_of_every_part_can_be_read():
    import importlib

    for module, parts in PARTS.items():
        for name in parts:
            part = getattr(importlib.import_module(module), name)
            if dataclasses.is_dataclass(part):
                fields = {field.name for field in dataclasses.fields(part)}
                assert fields <= {*argument_types(part)}, name


def test_an_unforeseen_error_is_two_lines_and_a_file(monkeypatch, capsys):
    def broken(flags):
        raise ZeroDivisionError("no such\nthing")

    monkeypatch.setattr(main, "configured_job", broken)
    assert main.main([TEACHER]) == 70
    _, err = capsys.readouterr()
    assert len(err.strip().splitlines()) == 2
    assert "ZeroDivisionError: no such" in err
    path = err.strip().splitlines()[1].split()[-1]
    with open(path) as file:
        assert "Traceback" in file.read()
