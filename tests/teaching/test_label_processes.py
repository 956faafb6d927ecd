"""Labels, vectors and indexes of several processes are those of one, file by file."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.labels.store import shards

SCRIPT = Path(__file__).with_name("label_process.py")


def run(directory, count, devices=2):
    """The end of ``count`` processes with two devices in all, or as many as said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices // count}"
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
    try:
        said = [process.communicate(timeout=420)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, said


@pytest.mark.parametrize(
    "count",
    [pytest.param(2, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.slow)],
    ids=str,
)
def test_several_processes_label_encode_and_mine_as_one(tmp_path, count):
    run(tmp_path / "two", count, count)
    run(tmp_path / "one", 1, count)
    for name in ("bm25", "dual-exact", "dual-scann", "colbert-scann"):
        expected = np.load(tmp_path / "one" / f"{name}.0.npy")
        for process in range(count):
            found = np.load(tmp_path / "two" / f"{name}.{process}.npy")
            np.testing.assert_array_equal(found, expected, name)
    for folder in ("vectors", "indexes"):
        one, two = [
            {
                path.relative_to(tmp_path / side): path.read_bytes()
                for path in (tmp_path / side / folder).rglob("*.*")
                if path.suffix in (".npy", ".bin")
            }
            for side in ("one", "two")
        ]
        assert len(one) > 2
        assert one == two
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


OWN_FOLDERS = """
import sys
from distill_jax.io.errors import UserError
from distill_jax.runtime import processes
processes.join()
try:
    processes.refuse_own_folders("runs")
except UserError as error:
    print(error, file=sys.stderr)
    processes.leave(error.status)
"""


def test_processes_that_do_not_share_a_folder_all_say_so(tmp_path):
    started = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for process in range(2):
        disk = tmp_path / str(process)
        disk.mkdir()
        environment = {
            **os.environ,
            "PYTHONPATH": str(SCRIPT.parent.parent.parent),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(process),
        }
        command = [sys.executable, "-c", OWN_FOLDERS]
        started.append(
            subprocess.Popen(
                command, cwd=disk, env=environment, stderr=subprocess.PIPE, text=True
            )
        )
    for process in started:
        said = process.communicate(timeout=200)[1]
        assert process.returncode == 2, said
        assert "runs: process 1 does not see what process 0 writes there" in said
        assert "Traceback" not in said
