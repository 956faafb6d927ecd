"""A whole job as one program of two processes: the numbers of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
RECIPE = ("--gin_file=quickstart.gin", "--gin_file=small.gin")


def started(folder, toy, devices, **environment):
    words = {
        "MODEL_DIR": folder,
        "COLLECTION": toy,
        "BATCH_SIZE": 4,
        "TRAIN_STEPS": 2,
        "DROPOUT": 0.0,
        "ATTENTION_DROPOUT": 0.0,
        "MAX_TEST_QUERIES": 4,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "distill_jax.main", *RECIPE]
        + [f"--gin.{name}={value}" for name, value in words.items()],
        cwd=ROOT,
        env={
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(processes):
    said = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(said), said
    return said


def two(folder, toy):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    both = [started(folder, toy, 1, **program, JAX_PROCESS_ID=str(i)) for i in (0, 1)]
    return ended(both)


@pytest.mark.slow
def test_two_processes_do_the_job_of_one(toy, tmp_path):
    first, second = two(tmp_path / "two", toy)
    assert "finished in" in first
    ended([started(tmp_path / "one", toy, 2)])
    reports = [
        json.loads((tmp_path / name / "report.json").read_text())["measures"]
        for name in ("one", "two")
    ]
    assert reports[0].keys() == reports[1].keys()
    for system, values in reports[0].items():
        assert reports[1][system] == pytest.approx(values, abs=1e-4), system
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    # One of them speaks; and the same command again finds everything done.
    assert "training" not in second
    assert "training: already there" in two(tmp_path / "two", toy)[0]
