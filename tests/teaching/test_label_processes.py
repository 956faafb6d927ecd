"""Labels that several processes make together are those of one, file by file."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.labels.store import shards

SCRIPT = Path(__file__).with_name("label_process.py")


def run(directory, count):
    """The end of ``count`` processes with two devices in all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={2 // count}"
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(SCRIPT.parent.parent.parent),
    }
    if count > 1:
        environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
        environment["JAX_NUM_PROCESSES"] = str(count)
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(directory)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment | ({"JAX_PROCESS_ID": str(i)} if count > 1 else {}),
        )
        for i in range(count)
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * count, said


def test_two_processes_label_as_one(tmp_path):
    run(tmp_path / "two", 2)
    run(tmp_path / "one", 1)
    for kind, read in (("scores", TeacherLabels.read), ("pairs", PairLabels.read)):
        folders = [tmp_path / count / kind for count in ("one", "two")]
        names = [[path.name for path in shards(folder)] for folder in folders]
        assert names[0] == names[1]
        assert len(names[0]) > 1
        one, two = map(read, folders)
        assert one.query_ids == two.query_ids
        if kind == "scores":
            np.testing.assert_array_equal(one.rows, two.rows)
            np.testing.assert_array_equal(one.scores, two.scores)
        else:
            np.testing.assert_array_equal(one.probability, two.probability)
        counts = [labels.provenance["counts"]["pairs"] for labels in (one, two)]
        assert counts[0] == counts[1]
    # Killed between two shards, one process goes on with what two have made.
    last = shards(tmp_path / "two" / "scores")[-1]
    last.unlink()
    (last.parent / "complete.json").unlink()
    run(tmp_path / "two", 1)
    assert (
        TeacherLabels.read(last.parent).query_ids
        == TeacherLabels.read(tmp_path / "one" / "scores").query_ids
    )
