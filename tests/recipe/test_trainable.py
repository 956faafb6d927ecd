"""``TRAINABLE`` of a recipe: from the command line to the saved student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from distill_jax import main
from distill_jax.cli.config import build_job
from distill_jax.cli.flags import parse_flags
from distill_jax.io.errors import UserError
from distill_jax.jobs import plan_step
from distill_jax.models.pretrained import Pretrained, flatten
from distill_jax.recipe import averaging
from distill_jax.recipe.students import Student
from distill_jax.runtime import sharding

pytestmark = pytest.mark.usefixtures("compiles_fast")


def training_of(*argv: str):
    given = ["--gin_file=quickstart.gin", *argv]
    return build_job(parse_flags(given)).stages[0].training


def command(folder: Path, collection: str, trainable: str, **more) -> list[str]:
    flags = {
        "MODEL_DIR": folder,
        "COLLECTION": collection,
        "TRAINABLE": trainable,
        "MESH": "data=1",
        "EXPORT": None,
        "DROPOUT": 0.0,
        "VOCABULARY_SIZE": 300,
        "QUERY_LENGTH": 12,
        "DOC_LENGTH": 20,
        "MAX_TEST_QUERIES": 8,
        "BACKBONE": "bert:tiny",
        "TRAIN_STEPS": 2,
        **more,
    }
    files = ["--gin_file=cross_encoder_teacher.gin", "--gin_file=small.gin"]
    return files + [f"--gin.{name}={value}" for name, value in flags.items()]


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("head", ("head",)),
        (r"layers\.\d{1,2}\.", (r"layers\.\d{1,2}\.",)),
        (r"('layers\.1\.', '^head')", (r"layers\.1\.", "^head")),
        ("None", None),
    ],
)
def test_expressions_reach_the_optimizer(text, patterns):
    training = training_of(f"--gin.TRAINABLE={text}")
    assert training.trainable == patterns
    assert training.build_optimizer(4).trainable.patterns == patterns


def test_without_the_name_all_is_trained():
    assert training_of().build_optimizer(4).trainable.patterns is None


def test_what_is_no_regular_expression_is_refused():
    with pytest.raises(UserError, match=r"'layers\.\(' is not a regular expression"):
        training_of("--gin.TRAINABLE=layers.(")


@pytest.mark.long
def test_a_job_keeps_every_bit_of_what_it_does_not_train(tmp_path, toy, capsys):
    argv = command(tmp_path, toy, r"layers\.1\.|head")
    assert main.main(argv) == 0
    before = flatten(Pretrained.read(tmp_path / "initial").params)
    after = flatten(Pretrained.read(tmp_path / "student").params)
    moved = {k for k in before if before[k].tobytes() != after[k].tobytes()}
    assert moved
    assert all("layers.1." in name or "head" in name for name in moved)
    assert {"backbone.layers.1.up.kernel", "head.linear.kernel"} <= moved
    # It is one of the settings that the folder remembers.
    capsys.readouterr()
    assert main.main(command(tmp_path, toy, "head")) == 2
    assert "trainable" in capsys.readouterr().err


def test_a_job_merges_its_adapters_and_writes_them_beside(tmp_path, toy):
    of = r"('lora:rank=2,targets=attention\.query', '^head')"
    assert main.main(command(tmp_path, toy, of)) == 0
    before = flatten(Pretrained.read(tmp_path / "initial").params)
    after = flatten(Pretrained.read(tmp_path / "student").params)
    assert before.keys() == after.keys()
    moved = {k for k in before if before[k].tobytes() != after[k].tobytes()}
    queries = {k for k in before if k.endswith("attention.query.kernel")}
    assert moved == queries | {k for k in before if k.startswith("head.")}
    found = load_file(tmp_path / "student/adapter/adapter_model.safetensors")
    stem = "base_model.model.encoder.layer.1.attention.self.query.lora_"
    change = 8 * (found[f"{stem}B.weight"] @ found[f"{stem}A.weight"]).T
    name = "backbone.layers.1.attention.query.kernel"
    np.testing.assert_allclose(after[name], before[name] + change, atol=1e-6)


def test_names_that_there_are_not_end_the_job_at_its_start(tmp_path, toy, capsys):
    assert main.main(command(tmp_path, toy, r"layers\.7\.")) == 2
    told = capsys.readouterr().err.strip().splitlines()[-2:]
    assert "matches none of" in told[0]
    assert "backbone.layers.0." in told[1]
    assert not (tmp_path / "candidates").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_a_plan_counts_the_moments_of_what_is_trained():
    spec = plan_step.spec_of(Student(backbone="bert:tiny", kind="reranker"))
    held = {}
    for text in ("None", "head"):
        training = training_of(f"--gin.TRAINABLE={text}", "--gin.BATCH_SIZE=2")
        shape = plan_step.shape_of(spec, training, 4, 0)
        mesh = sharding.make_mesh("data=1")
        held[text] = plan_step.step_of(spec, training, shape, 10, mesh).state_bytes
    parameters = 4 * sum(
        int(np.prod(leaf.shape))
        for leaf in flatten(plan_step.abstract_params(spec)).values()
    )
    assert held["None"] > 3 * parameters
    assert parameters < held["head"] < 1.1 * parameters


def test_a_mean_of_weights_keeps_the_bits_of_what_was_not_trained():
    random = np.random.default_rng(0)
    start = {"kept": random.normal(size=999).astype(np.float32), "w": np.zeros(3)}
    end = {**start, "w": np.ones(3)}
    for share in (0.0, 0.3, 0.7, 1.0):
        found = averaging.between(start, end, share)
        assert found["kept"].tobytes() == start["kept"].tobytes()
        np.testing.assert_allclose(found["w"], share)
