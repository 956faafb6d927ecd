"""What fits a budget of bytes and time: how it is read, and what is picked."""

from __future__ import annotations

import json

import numpy as np
import pytest

from distill_jax import main
from distill_jax.io.errors import UserError
from distill_jax.jobs.budget import Budget, Option, frontier, pick
from distill_jax.models.pretrained import Pretrained

OPTIONS = [
    Option("float32", 8_000_000, 1.0, 0.700),
    Option("192 dimensions", 4_000_000, 0.9, 0.690),
    Option("int8", 2_000_000, 1.5, 0.699),
    Option("binary", 250_000, 0.5, 0.600),
    Option("worse", 4_000_000, 2.0, 0.500),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 MB, 5 ms", (50e6, 5.0)),
        ("5ms,50MB", (50e6, 5.0)),
        ("1.5 GiB", (1.5 * 2**30, None)),
        ("250 us", (None, 0.25)),
        ("2 s , 10 kB", (10e3, 2000.0)),
    ],
)
def test_a_budget_is_read_in_bytes_and_milliseconds(text, expected):
    found = Budget.parse(text)
    assert (found.bytes, found.milliseconds) == expected


@pytest.mark.parametrize(
    "text", ["", "50", "MB", "0 MB", "-5 ms", "5 MB, 6 MB", "5 parsecs", "5 ms 6 MB"]
)
def test_a_budget_without_a_unit_or_twice_of_a_kind_is_refused(text):
    with pytest.raises(UserError):
        Budget.parse(text)


def test_the_frontier_leaves_out_what_another_beats_in_everything():
    names = [option.name for option in frontier(OPTIONS)]
    assert names == ["float32", "int8", "192 dimensions", "binary"]


@pytest.mark.parametrize(
    ("text", "name", "why"),
    [
        ("50 MB, 5 ms", "float32", "nothing is better"),
        ("5 MB", "int8", "float32 (8 MB, 1 ms, 0.7000), takes too many bytes"),
        ("5 MB, 1 ms", "192 dimensions", "int8 (2 MB, 1.5 ms, 0.6990), takes too many"),
        ("0.6 ms", "binary", "takes too many milliseconds"),
    ],
)
def test_the_best_that_fits_is_picked_and_it_says_what_the_next_better_costs(
    text, name, why
):
    found, (sentence, edge) = pick(OPTIONS, Budget.parse(text), text, "nDCG@10 on dev")
    assert found is not None
    assert found.name == name
    assert why in sentence
    assert "nDCG@10 on dev" in edge
    assert "worse" not in edge


def test_nothing_that_fits_is_said_with_the_smallest_and_the_fastest():
    found, (sentence, _) = pick(OPTIONS, Budget.parse("1 kB"), "1 kB", "nDCG@10")
    assert found is None
    assert "nothing fits; the smallest is binary (0.25 MB" in sentence


@pytest.mark.long
@pytest.mark.usefixtures("compiles_fast")
def test_a_job_names_the_form_of_its_students_vectors(tmp_path, toy, capsys):
    flags = {
        "MODEL_DIR": tmp_path,
        "COLLECTION": toy,
        "MESH": "data=1",
        "EXPORT": None,
        "VOCABULARY_SIZE": 300,
        "QUERY_LENGTH": 12,
        "DOC_LENGTH": 20,
        "BUDGET": "'1.5 kB, 10 s'",
    }
    words = [f"--gin.{name}={value}" for name, value in flags.items()]
    files = ["--gin_file=quickstart.gin", "--gin_file=small.gin"]
    assert main.main([*files, *words]) == 0
    notices = json.loads((tmp_path / "report.json").read_text())["notices"]
    (sentence,) = [line for line in notices if line.startswith("BUDGET")]
    width = Pretrained.read(tmp_path / "student").spec.width
    # 40 documents of float32 vectors are too many bytes, and of int8 are not.
    assert 40 * 4 * width > 1500 >= 40 * width / 8
    picked = sentence.split(" is picked")[0].split(": ")[1]
    assert picked.split(" (")[0] in {"8 dimensions", "int8", "binary", "rescored"}
    small = float(picked.split("(")[1].split(" MB")[0]) * 1e6
    assert small <= 1500
    (edge,) = [line for line in notices if line.startswith("frontier")]
    assert "overlap@10 with float32" in edge or "nDCG@10 on dev" in edge
    assert np.isfinite(float(picked.split(", ")[-1].rstrip(")")))


@pytest.mark.usefixtures("compiles_fast")
def test_a_student_without_such_vectors_is_refused_before_it_is_trained(
    tmp_path, toy, capsys
):
    flags = {"MODEL_DIR": tmp_path, "COLLECTION": toy, "BUDGET": "1 MB"}
    words = [f"--gin.{name}={value}" for name, value in flags.items()]
    files = ["--gin_file=splade.gin", "--gin_file=small.gin"]
    assert main.main([*files, *words]) == 2
    assert "has no vectors of int8" in capsys.readouterr().err
