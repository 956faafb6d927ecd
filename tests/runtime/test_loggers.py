"""Loggers show numbers while a run runs; TensorBoard reads its own back."""

from __future__ import annotations

import importlib.machinery
import json
import subprocess
import sys
import types

import pytest

from distill_jax.io.errors import UserError
from distill_jax.report.events import show_report
from distill_jax.runtime import loggers
from distill_jax.training.runfiles import MetricsLog

READ = """
import json, sys
from tensorboard.backend.event_processing import event_file_loader
found = []
for event in event_file_loader.LegacyEventFileLoader(sys.argv[1]).Load():
    if event.HasField("session_log"):
        found.append([event.step, "start", event.session_log.status])
    for value in event.summary.value:
        kind = value.metadata.plugin_data.plugin_name
        said = (value.tensor.string_val[0].decode() if kind == "text"
                else value.simple_value)
        found.append([event.step, value.tag, said])
print(json.dumps(found))
"""


def read_back(folder):
    """What TensorBoard's reader finds in the one file of a folder."""
    (path,) = folder.iterdir()
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_tensorboard_shows_each_record_before_the_log_is_closed(tmp_path):
    pytest.importorskip("tensorboard")
    log = MetricsLog(
        tmp_path / "metrics.jsonl",
        upto=7,
        loggers=lambda: loggers.open_loggers(("tensorboard",), tmp_path, {}, 7),
    )
    assert not (tmp_path / "tensorboard").exists()
    log.write({"step": 8, "time": 1.0, "loss": 2.5, "bad": float("nan")})
    log.amend(8, {"eval/nDCG@10": 0.5})
    assert read_back(tmp_path / "tensorboard") == [
        [8, "start", 1],
        [8, "loss", 2.5],
        [8, "eval/nDCG@10", 0.5],
    ]
    log.close()


def test_the_report_is_shown_once_with_its_texts(tmp_path):
    pytest.importorskip("tensorboard")
    data = {"measures": {"after": {"nDCG@10": 0.75}}, "verdict": "after <b> \u00fc"}
    show_report(tmp_path, data, 10)
    show_report(tmp_path, data, 10)
    assert read_back(tmp_path / "report" / "tensorboard") == [
        [10, "after/nDCG@10", 0.75],
        [10, "verdict", "after <b> \u00fc"],
    ]


def test_writing_events_loads_no_tensorflow(tmp_path):
    pytest.importorskip("tensorboard")
    program = (
        "import sys; from distill_jax.report import publish;"
        f"publish({str(tmp_path)!r}, {{'measures': {{'a': {{'RR': 1.0}}}}}});"
        "print([m for m in ('tensorflow', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_other_loggers_are_called_as_their_libraries_ask(name, tmp_path, monkeypatch):
    calls = []

    def recorder(what):
        return lambda *args, **options: calls.append((what, args, options)) or fake

    fake = types.ModuleType(name)
    fake.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for what in ("init", "log", "finish", "start_run", "log_params", "log_metrics",
                 "end_run"):  # fmt: skip
        setattr(fake, what, recorder(what))
    monkeypatch.setitem(sys.modules, name, fake)
    (logger,) = loggers.open_loggers((name,), tmp_path, {"lr": 0.1})
    logger.write(3, {"loss": 1.0, "eval/nDCG@10": 0.5})
    logger.close()
    *opened, written, closed = calls
    assert opened
    assert opened[0][0] in ("init", "start_run")
    assert written[0] in ("log", "log_metrics")
    assert written[1][0]["loss"] == 1.0
    assert written[2] == {"step": 3}
    assert closed[0] in ("finish", "end_run")


def test_a_logger_that_cannot_work_is_refused_before_training(monkeypatch):
    with pytest.raises(UserError, match="tensorboards") as found:
        loggers.check_loggers(("tensorboards",))
    assert "tensorboard" in found.value.todo
    monkeypatch.setitem(loggers.LOGGERS, "no_such_package", loggers.TensorBoard)
    with pytest.raises(UserError, match="not installed"):
        loggers.check_loggers(("no_such_package",))
