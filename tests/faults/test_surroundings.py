"""No network, no accelerator, no TensorFlow; a teacher that says nan."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distill_jax import main
from distill_jax.inputs.streams import SeqioStream
from distill_jax.io.errors import UserError
from distill_jax.labels.labels import TeacherLabels
from distill_jax.runtime import processes
from distill_jax.teaching import scorers
from distill_jax.teaching.cache import ScoreCache
from tests.teaching.test_scorers import world

ROOT = Path(__file__).parent.parent.parent

# Ends the process with 77 where anything looks for a host or leaves this one.
ALONE = """
import os, sys
def hook(event, given):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        away = given[0] not in (None, "", "localhost", "127.0.0.1", "::1")
    elif event in ("socket.connect", "socket.sendto"):
        address = given[1]
        away = isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1")
    else:
        return
    if away:
        os.write(2, f"{event} {given[1:]}".encode())
        os._exit(77)
sys.addaudithook(hook)
from distill_jax import main
sys.exit(main.main(sys.argv[1:]))
"""


def job(tmp_path, *argv, code=ALONE, **environment):
    """Runs a command in a process of its own; returns its status and what it said."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "JAX_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv, f"--gin.MODEL_DIR={tmp_path}"],
        cwd=ROOT,
        env={**kept, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


SMALL = (
    "--gin_file=quickstart.gin",
    "--gin_file=small.gin",
    "--gin.COLLECTION=pydocs:json,csv,email",
    "--gin.TRAIN_STEPS=1",
    "--gin.MAX_TEST_QUERIES=2",
)


def test_a_job_asks_nobody_outside(tmp_path):
    argv = ("--gin_file=mine.gin", "--gin.COLLECTION=pydocs:json,csv,email")
    code, said = job(tmp_path, *argv)
    assert code == 0, said
    assert (tmp_path / "report.html").is_file()


CLOCKS = """
import random, sys, time
real, draw = time.time, random.Random(int(sys.argv.pop(1)))
time.time = lambda: real() + draw.uniform(-1e6, 1e6)
from distill_jax import main
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.long
def test_a_clock_that_jumps_changes_nothing(tmp_path):
    """Neither what is found nor how long it took hangs on the time of day."""
    runs = []
    for seed in ("1", "2"):
        argv = (seed, "--gin_file=mine.gin", "--gin.COLLECTION=pydocs:json,csv,email")
        code, said = job(tmp_path / seed, *argv, code=CLOCKS)
        assert code == 0, said
        runs.append((tmp_path / seed / "run.trec").read_bytes())
        assert re.search(r"^finished in \d+ (s|min \d+ s)$", said, re.MULTILINE), said
    assert runs[0] == runs[1]


def test_deterministic_asks_xla_before_any_device(monkeypatch):
    """The same bits on a GPU too, also of attention."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    assert not processes.is_deterministic()
    assert main.main(["--deterministic", "--list"]) == 0
    assert not processes.is_deterministic()  # nothing was run
    argv = ["--deterministic", "--plan", "--gin_file=rankt5_teacher.gin"]
    assert main.main([*argv, "--gin.COLLECTION=pydocs:json"]) == 0
    assert processes.is_deterministic()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[0] == "--xla_cpu_enable_fast_math=false"


@pytest.mark.slow
def test_a_whole_training_asks_nobody_outside(tmp_path):
    """No look-up, no telemetry, from the collection to the export."""
    code, said = job(tmp_path, *SMALL, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    assert code == 0, said
    assert (tmp_path / "report.html").is_file()


def test_the_guard_against_the_network_would_have_seen_it(tmp_path):
    probe = ALONE.replace("from distill_jax import main", "").replace(
        "sys.exit(main.main(sys.argv[1:]))",
        "import urllib.request; urllib.request.urlopen('http://example.org')",
    )
    assert job(tmp_path, code=probe)[0] == 77


def test_an_accelerator_that_is_not_there_is_told(tmp_path):
    """Nothing runs on another device than the one that is asked for."""
    argv = ("--gin_file=quickstart.gin", "--gin.COLLECTION=pydocs:json,csv")
    code, said = job(tmp_path, *argv, JAX_PLATFORMS="cuda")
    assert code == 2, said
    assert "Traceback" not in said
    assert "the requested device is not available (cuda)" in said
    assert "pip install 'jax[cuda12]'" in said


@pytest.mark.parametrize("missing", ["seqio", "tensorflow"])
def test_a_missing_tensorflow_is_told(monkeypatch, tmp_path, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError) as caught:
        next(SeqioStream().rows(None, tmp_path, 0, 0))  # type: ignore[arg-type]
    assert missing in str(caught.value)
    assert "pip install 'distill_jax[seqio]'" in str(caught.value)
    assert "STREAM=arrays" in str(caught.value)


def test_a_teacher_that_says_nan_labels_nothing(tmp_path, monkeypatch):
    """The query is named; no score of it is stored, nor known later."""
    model, features, queries, run = world()
    honest = scorers.score_features

    def half_nan(model, features, *, query, **rest):
        scores = honest(model, features, query=query, **rest)
        return np.where(np.asarray(query) == 3, np.nan, scores).astype(np.float32)

    monkeypatch.setattr(scorers, "score_features", half_nan)
    with pytest.raises(UserError) as caught:
        scorers.label_run(
            model, features, queries, run, tmp_path / "x", shard_pairs=10,
            cache=tmp_path / "scores",
        )  # fmt: skip
    assert "'q3'" in str(caught.value)
    monkeypatch.setattr(scorers, "score_features", honest)
    labels = scorers.label_run(
        model, features, queries, run, tmp_path / "x", shard_pairs=10,
        cache=tmp_path / "scores",
    )  # fmt: skip
    assert np.isfinite(labels.scores).all()
    # The shard before was kept.
    assert labels.provenance["counts"]["computed"] == 30
    assert len(ScoreCache(tmp_path / "scores", model.digest)) == 30
    assert isinstance(labels, TeacherLabels)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "h:1",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "2",
            },
            "JAX_PROCESS_ID is '2'",
        ),
    ],
)
def test_half_of_a_program_is_told(given, told):
    with pytest.raises(UserError, match=told):
        processes.join(given)
    assert not processes.join({})
