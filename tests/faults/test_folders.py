"""Folders in use, unwritable, of others; odd surroundings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill_jax import main
from distill_jax.io.cache import cache_dir
from distill_jax.io.errors import UserError
from distill_jax.training.runfiles import Lock

ROOT = Path(__file__).parent.parent.parent


def mine(folder, *more):
    return [
        "--gin_file=mine.gin",
        "--gin.COLLECTION=pydocs:json",
        f"--gin.MODEL_DIR={folder}",
        *more,
    ]


HOLDER = """
import sys, time
from distill_jax.training.runfiles import Lock
with Lock(sys.argv[1], ".job.lock"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_on_the_same_folder_ends_at_once(tmp_path, capsys):
    """Whatever the job; a killed holder leaves nothing behind."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert main.main(mine(tmp_path)) == 2
        err = capsys.readouterr().err
        assert f"in use by pid {holder.pid} on " in err
        assert "another MODEL_DIR" in err
        assert not (tmp_path / "run.trec").exists()
    finally:
        holder.kill()
        holder.wait()
    assert main.main(mine(tmp_path)) == 0


def test_a_job_and_its_own_training_do_not_shut_each_other_out(tmp_path):
    with Lock(tmp_path, ".job.lock"), Lock(tmp_path):
        for held in (".job.lock", ".lock"):  # each by itself is still held
            with pytest.raises(UserError, match="in use"), Lock(tmp_path, held):
                pass


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, capsys):
    # Root may write everywhere but in the kernel's own folders.
    folder = tmp_path if os.geteuid() else Path("/sys/kernel")
    tmp_path.chmod(0o500)
    assert main.main(mine(folder / "x")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path, capsys):
    (tmp_path / "x").write_text("a file")
    assert main.main(mine(tmp_path / "x")) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "x") in err
    assert len(err.strip().splitlines()) == 2


SURROUNDINGS = {
    "turkish": {"LC_ALL": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati"},
    "bare": {
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii:strict",
        "HOME": "/proc/nowhere",
        "XDG_CACHE_HOME": "/proc/nowhere",
    },
}


def test_surroundings_change_no_result(tmp_path):
    """Locale, time zone, a home and a cache that cannot be written."""
    folder = tmp_path / "straße ıİ"
    (folder / "qrels").mkdir(parents=True)
    texts = ["Istanbul ISTANBUL ıssız", "Straße GROSS", "東京 tower", "plain words"]
    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            record = {"_id": f"ö{number}", "title": "", "text": text}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    queries = ["ISTANBUL", "straße", "東京", "words"]
    with open(folder / "queries.jsonl", "w", encoding="utf-8") as file:
        for number, text in enumerate(queries):
            record = {"_id": f"q{number}", "text": text}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    for split, numbers in (("train", (0, 1)), ("test", (2, 3))):
        judged = "".join(f"q{n}\tö{n}\t1\n" for n in numbers)
        (folder / f"qrels/{split}.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8"
        )
    running = {}
    for name, changes in SURROUNDINGS.items():
        argv = mine(tmp_path / name, f"--gin.COLLECTION=beir:{folder}")
        running[name] = subprocess.Popen(
            [sys.executable, "-m", "distill_jax.main", *argv],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **changes},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    ours = mine(tmp_path / "ours", f"--gin.COLLECTION=beir:{folder}")
    assert main.main(ours) == 0
    expected = (tmp_path / "ours" / "run.trec").read_bytes()
    assert "q0 Q0 ö0 1 ".encode() in expected
    for name, process in running.items():
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, (name, said.decode())
        assert (tmp_path / name / "run.trec").read_bytes() == expected, name


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
def test_a_cache_that_others_can_write_is_refused(tmp_path, monkeypatch, mode):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    monkeypatch.setenv("DISTILL_JAX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="chmod 700"):
        cache_dir()


def test_a_fresh_cache_is_private_whatever_the_umask(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DISTILL_JAX_CACHE", raising=False)
    before = os.umask(0)
    try:
        assert cache_dir().stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_an_interrupt_outside_of_training_is_no_traceback(tmp_path):
    """Ctrl-C: what is done is kept, and the status says what it was."""
    process = subprocess.Popen(
        [sys.executable, "-m", "distill_jax.main", *mine(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if (tmp_path / ".job.lock").exists():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert "Traceback" not in said
