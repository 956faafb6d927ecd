"""Events are read back by TensorBoard; making them loads neither it nor TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from distill_jax.io.tfrecord import read_records
from distill_jax.report.events import EventsLog, scalars, write_events

RECORDS = [
    {"step": 0, "time": 0.0, "loss": 2.5, "lr": 1e-5, "bad": None},
    {"step": 10, "time": 5.0, "loss": 1.25, "nan": float("nan"), "flag": True},
]
DATA = {"measures": {"after": {"nDCG@10": 0.75}}, "verdict": "after <b> \u00fc"}

READ = """
import json, sys
from tensorboard.backend.event_processing import event_file_loader
found = []
for event in event_file_loader.LegacyEventFileLoader(sys.argv[1]).Load():
    for value in event.summary.value:
        kind = value.metadata.plugin_data.plugin_name
        said = (value.tensor.string_val[0].decode() if kind == "text"
                else value.simple_value)
        found.append([event.step, value.tag, said])
print(json.dumps(found))
"""


def read_back(path):
    pytest.importorskip("tensorboard")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_tensorboard_reads_them(tmp_path):
    path = write_events(tmp_path, RECORDS, DATA)
    assert path == write_events(tmp_path, RECORDS, DATA)  # again replaces
    assert len(list(path.parent.iterdir())) == 1
    assert read_back(path) == [
        [0, "loss", 2.5],
        [0, "lr", pytest.approx(1e-5)],
        [10, "loss", 1.25],
        [10, "report/after/nDCG@10", 0.75],
        [10, "verdict", "after <b> \u00fc"],
    ]


def test_a_log_can_be_read_while_it_is_written(tmp_path):
    log = EventsLog(tmp_path)
    log.write(RECORDS[0])
    assert len(list(read_records(log.path))) == 2  # the version, then the record
    log.write(RECORDS[1])
    assert list(read_records(log.path))[2].endswith(
        scalars(RECORDS[1], 0.0)[9:]  # all but the wall time
    )
    log.close()


def test_nothing_heavy_is_loaded(tmp_path):
    program = (
        "import sys; from distill_jax.report import publish;"
        f"publish({str(tmp_path)!r}, {{'measures': {{}}}});"
        "print([m for m in ('tensorflow', 'tensorboard', 'jax', 'matplotlib')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr
