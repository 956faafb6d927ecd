"""A job whose inputs and folder are in a bucket: killed, and resumed elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.jobs.fixtures import write_toy

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

ROOT = Path(__file__).parent.parent.parent


def started(url, cache):
    words = {
        "MODEL_DIR": f"{url}/runs/one",
        "COLLECTION": f"beir:{url}/toy",
        "BATCH_SIZE": 4,
        "TRAIN_STEPS": 8,
        "EVAL_PERIOD": 100,
        "CHECKPOINT_PERIOD": 2,
        "MAX_TEST_QUERIES": 4,
        "EXPORT": "sentence_transformers",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "distill_jax.main"]
        + ["--gin_file=quickstart.gin", "--gin_file=small.gin"]
        + [f"--gin.{name}={value}" for name, value in words.items()],
        cwd=cache.parent,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DISTILL_JAX_CACHE": str(cache),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_job_is_resumed_on_a_machine_with_an_empty_cache(
    bucket,
    tmp_path,
):
    toy = write_toy(tmp_path / "toy")
    for path in toy.rglob("*"):
        if path.is_file():
            key = f"toy/{path.relative_to(toy).as_posix()}"
            bucket.put(key, path.read_text())
    first = started(bucket.url, tmp_path / "first")
    saved = "checkpoints/2/manifest.json"
    while first.poll() is None and not any(k.endswith(saved) for k in bucket.names()):
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == -signal.SIGKILL, said
    second = started(bucket.url, tmp_path / "second")
    said = second.communicate(timeout=600)[0]
    assert second.returncode == 0, said
    assert "resumed at step" in said
    assert "first stage: already there" in said
    names = {key.removeprefix("runs/one/") for key in bucket.names()}
    assert {"report.json", "report.html"} <= names
    assert any(name.endswith("model.safetensors") for name in names)
    assert not any("lock" in name for name in names)
    assert not any("s3:" in path.name for path in tmp_path.iterdir())
    # Of a finished job the same command computes nothing, wherever it runs.
    third = started(bucket.url, tmp_path / "third")
    said = third.communicate(timeout=600)[0]
    assert third.returncode == 0, said
    assert "training: already there" in said
