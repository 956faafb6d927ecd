"""Rounds: killed anywhere and gone on with, changed, refused, spread over devices."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distill_jax import main
from distill_jax.models.pretrained import Pretrained

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiles_fast")]
ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "MESH": "data=1",
    "EXPORT": None,
    "DROPOUT": 0.1,
    "VOCABULARY_SIZE": 300,
    "QUERY_LENGTH": 12,
    "DOC_LENGTH": 20,
    "MAX_TEST_QUERIES": 8,
}
# Ends the process with SIGKILL at the moment when a file gets the name it is kept by.
KILLED = """
import os, re, signal, sys
point = re.compile(sys.argv[1])
def hook(event, given):
    if event == "os.rename" and point.search(os.fsdecode(given[1])):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
import pytest
from distill_jax import main
from tests.jobs.fixtures import smallest
smallest(pytest.MonkeyPatch())
sys.exit(main.main(sys.argv[2:]))
"""


def command(directory: Path, collection: str, **more) -> list[str]:
    flags = {"MODEL_DIR": directory, "COLLECTION": collection, **SMALL, **more}
    words = [f"--gin.{name}={value}" for name, value in flags.items()]
    return ["--gin_file=quickstart.gin", "--gin_file=small.gin", *words]


def killed(point: str, words: list[str], programs: Path) -> None:
    """Runs a command in a process that is killed where a path is about to appear."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", KILLED, point, *words],
        env=environment,
        timeout=400,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stdout[-2000:] + done.stderr[-2000:]


def losses(folder: Path) -> dict[int, float]:
    """{step: loss} of a training; a step that was done twice counts as the last."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def steps(folder: Path) -> list[int]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "loss" in line]


def measures(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())["measures"]


def assert_same_result(folder: Path, other: Path) -> None:
    ours, theirs = (Pretrained.read(f / "student") for f in (folder, other))
    assert ours.digest == theirs.digest
    assert measures(folder) == measures(other)
    assert (folder / "run.trec").read_bytes() == (other / "run.trec").read_bytes()


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory, toy, compiles_fast) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    assert main.main(command(folder, toy, ROUNDS=2)) == 0
    return folder


@pytest.fixture(scope="module")
def one_round(tmp_path_factory, toy, compiles_fast) -> Path:
    folder = tmp_path_factory.mktemp("round")
    assert main.main(command(folder, toy)) == 0
    return folder


def test_rounds_start_where_the_last_one_ended(two_rounds):
    report = json.loads((two_rounds / "report.json").read_text())
    assert [row["round"] for row in report["rounds"]] == [1, 2]
    assert {"first_stage", "before", "round 1", "after"} <= set(report["measures"])
    first, second = (losses(two_rounds / f"rounds/{n}") for n in (1, 2))
    assert list(first) == list(second) == [1, 2, 3, 4]
    # The second round's candidates are those of the student that the first one made.
    runs = [
        (two_rounds / f"rounds/{n}/candidates/run.trec").read_text() for n in (1, 2)
    ]
    assert runs[0] != runs[1]
    # The page has the curves of both.
    assert "Loss and its parts" in (two_rounds / "report.html").read_text()


def resume(words: list[str], folder: Path, expected: Path) -> None:
    assert main.main(words) == 0
    assert_same_result(folder, expected)
    for number in (1, 2):
        place = f"rounds/{number}"
        assert losses(folder / place) == losses(expected / place)


def test_killed_rounds_end_as_if_they_had_not_been(two_rounds, toy, tmp_path, programs):
    """In the save of a step, and when the second round's lists were made."""
    words = command(tmp_path, toy, ROUNDS=2)
    metrics = tmp_path / "rounds/1/metrics.jsonl"
    killed(r"rounds/1/checkpoints/4$", words, programs)
    first = metrics.read_text().splitlines()[0]
    killed(r"rounds/2/lists/lists\.json$", words, programs)
    resume(words, tmp_path, two_rounds)
    # It went on from the checkpoint: the first step was not done again.
    assert metrics.read_text().splitlines()[0] == first


@pytest.mark.slow
@pytest.mark.parametrize(
    "points",
    [
        (r"/initial/part\.json$", r"first_stage/run\.trec$", r"evaluation/before/run"),
        (r"rounds/1/candidates/run\.trec$", r"rounds/1/labels/.*\.parquet$"),
        (r"rounds/1/student/params", r"rounds/1/student/part\.json$"),
        (r"rounds/1/evaluation/after/part", r"rounds/2/checkpoints/2$"),
        (r"rounds/2/evaluation/after/run", r"/report\.json$"),
    ],
    ids=["start", "labels", "student", "between", "end"],
)
def test_killed_anywhere(two_rounds, toy, tmp_path, programs, points):
    words = command(tmp_path, toy, ROUNDS=2)
    for point in points:
        killed(point, words, programs)
    resume(words, tmp_path, two_rounds)


def test_the_same_command_again_does_nothing_new(two_rounds, toy, tmp_path, capsys):
    folder = tmp_path / "again"
    shutil.copytree(two_rounds, folder)
    files = [*folder.rglob("part.json"), *folder.rglob("metrics.jsonl")]
    before = {path: path.stat().st_mtime_ns for path in files}
    capsys.readouterr()
    assert main.main(command(folder, toy, ROUNDS=2)) == 0
    said = capsys.readouterr().out
    assert "training: already there" in said
    assert "made again" not in said
    assert "queries/s" not in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_same_result(folder, two_rounds)


def test_a_changed_input_redoes_what_depends_on_it(one_round, toy, tmp_path, capsys):
    folder, collection = tmp_path / "job", tmp_path / "toy"
    shutil.copytree(one_round, folder)
    shutil.copytree(toy.removeprefix("beir:"), collection)
    lines = (collection / "queries.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"_id": "q0", "text": "something quite different"})
    (collection / "queries.jsonl").write_text("\n".join(lines) + "\n")
    capsys.readouterr()
    assert main.main(command(folder, f"beir:{collection}")) == 0
    said = capsys.readouterr().out
    # A training query: what is measured before is as it was.
    assert "student: already there" in said
    assert "first stage: already there" in said
    assert "ranking before: already there" in said
    assert "candidates: made again, because queries changed" in said
    assert "lists: made again, because candidates, judgements, queries changed" in said
    assert "training: made again, because lists changed" in said
    assert "ranking after: made again, because student changed" in said
    assert (folder / "student.old").is_dir()
    ours, theirs = (Pretrained.read(f / "student") for f in (folder, one_round))
    assert ours.digest != theirs.digest


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LEARNING_RATE", "2e-3", "learning_rate 0.001 -> 0.002"),
        ("TRAIN_STEPS", "6", "steps 4 -> 6"),
    ],
)
def test_other_settings_are_refused(
    one_round, toy, tmp_path, capsys, name, value, said
):
    folder = tmp_path / "job"
    shutil.copytree(one_round, folder)
    capsys.readouterr()
    assert main.main(command(folder, toy, **{name: value})) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert len(shown.splitlines()) == 2
    assert "MODEL_DIR" in shown
    ours, theirs = (Pretrained.read(f / "student") for f in (folder, one_round))
    assert ours.digest == theirs.digest


def test_settings_that_are_allowed_by_name_are_gone_on_with(
    one_round, toy, tmp_path, capsys
):
    """And what changes nothing that is learnt needs no permission."""
    folder = tmp_path / "job"
    shutil.copytree(one_round, folder)
    assert main.main(command(folder, toy, CHECKPOINT_PERIOD=1)) == 0
    capsys.readouterr()
    assert main.main(command(folder, toy, TRAIN_STEPS=6, MAY_CHANGE='["stepps"]')) == 2
    assert 'did you mean "steps"' in capsys.readouterr().err
    assert main.main(command(folder, toy, TRAIN_STEPS=6)) == 2
    assert '--gin.MAY_CHANGE=["steps"]' in capsys.readouterr().err
    assert main.main(command(folder, toy, TRAIN_STEPS=6, MAY_CHANGE='["steps"]')) == 0
    assert steps(folder) == [1, 2, 3, 4, 5, 6]
    assert json.loads((folder / "student/part.json").read_text())["complete"]


def test_an_initial_checkpoint_is_no_resume(one_round, toy, tmp_path, capsys):
    """It gives weights; steps, optimizer and data start at the beginning."""
    start = one_round / "student"
    words = command(tmp_path, toy, INITIAL_CHECKPOINT=start, TRAIN_STEPS=2)
    assert main.main(words) == 0
    assert steps(tmp_path) == [1, 2]
    began, given = (Pretrained.read(f) for f in (tmp_path / "initial", start))
    assert began.digest == given.digest
    # Another checkpoint is another job: nothing goes on from what the first one left.
    capsys.readouterr()
    words = command(
        tmp_path, toy, INITIAL_CHECKPOINT=one_round / "initial", TRAIN_STEPS=2
    )
    assert main.main(words) == 0
    said = capsys.readouterr().out
    assert "student: made again, because student, weights changed" in said
    assert "training: made again" in said
    assert steps(tmp_path) == [1, 2]


DEVICES = [
    pytest.param({"MESH": "data=8"}, id="8"),
    pytest.param({"MESH": "data=1", "CHUNK": 4}, id="chunk-4"),
    pytest.param({"MESH": "data=4"}, id="4", marks=pytest.mark.slow),
    pytest.param({"MESH": "data=4,model=2"}, id="4x2", marks=pytest.mark.slow),
    pytest.param({"MESH": "data=4", "CHUNK": 4}, id="4-chunk", marks=pytest.mark.slow),
    pytest.param({"MESH": "data=1", "CHUNK": 2}, id="chunk-2", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory, toy, compiles_fast) -> Path:
    folder = tmp_path_factory.mktemp("device")
    more = {"BATCH_SIZE": 8, "DROPOUT": 0.0, "ATTENTION_DROPOUT": 0.0, "MESH": "data=1"}
    assert main.main(command(folder, toy, **more)) == 0
    return folder


@pytest.mark.parametrize("how", DEVICES)
def test_devices_and_chunks_change_no_measure(one_device, toy, tmp_path, how):
    more = {"BATCH_SIZE": 8, "DROPOUT": 0.0, "ATTENTION_DROPOUT": 0.0, **how}
    assert main.main(command(tmp_path, toy, **more)) == 0
    ours, theirs = measures(tmp_path), measures(one_device)
    for system, values in theirs.items():
        for name, value in values.items():
            assert ours[system][name] == pytest.approx(value, abs=1e-4), (system, name)
    ours, theirs = losses(tmp_path), losses(one_device)
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(
        list(ours.values()), list(theirs.values()), rtol=1e-3, atol=1e-4
    )
