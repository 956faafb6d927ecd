"""Object stores by a server of S3's protocol that the tests start (moto)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distill_jax.io import buckets, mirror
from distill_jax.io.errors import UserError
from distill_jax.io.paths import user_path

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")


def another_machine(monkeypatch, tmp_path):
    """An empty cache, as another host has, and no memory of the first."""
    monkeypatch.setenv("DISTILL_JAX_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(buckets, "_places", {})
    buckets._fetched.cache_clear()


def test_an_input_is_fetched_once_and_again_when_it_changed(bucket, monkeypatch):
    bucket.put("set/", "")  # the mark of a folder
    bucket.put("set/corpus.jsonl", "one\n")
    bucket.put("set/qrels/test.tsv", "two\n")
    folder = user_path(f"{bucket.url}/set")
    assert folder.endswith("/set")
    with open(f"{folder}/qrels/test.tsv") as file:
        assert file.read() == "two\n"
    fetched = []
    fetch = buckets.fetch
    monkeypatch.setattr(
        buckets, "fetch", lambda *given: fetched.append(given[1]) or fetch(*given)
    )
    buckets._fetched.cache_clear()  # another process
    assert user_path(f"{bucket.url}/set/") == folder
    assert not fetched
    bucket.put("set/corpus.jsonl", "changed\n")
    assert user_path(f"{bucket.url}/set") == folder  # one state for one process
    buckets._fetched.cache_clear()
    with open(f"{user_path(f'{bucket.url}/set')}/corpus.jsonl") as file:
        assert file.read() == "changed\n"
    with open(user_path(f"{bucket.url}/set/corpus.jsonl")) as file:
        assert file.read() == "changed\n"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://BUCKET/none", "nothing is there"),
        ("s3://no-such-bucket/x", "no-such-bucket"),
        ("nosuch://x/y", "nosuch://"),
    ],
)
def test_a_url_that_cannot_be_read_is_a_mistake_in_two_lines(bucket, url, says):
    with pytest.raises(UserError, match=says) as caught:
        user_path(url.replace("s3://BUCKET", bucket.url))
    assert caught.value.todo


def test_an_absent_driver_is_named(bucket, monkeypatch):
    registry = sys.modules["fsspec.registry"]  # the package's own name is a mapping
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(registry, "registry", {})
    for use in (user_path, buckets.place):
        with pytest.raises(UserError, match="needs s3fs") as caught:
            use(f"{bucket.url}/x")
        assert "distill_jax[bucket]" in caught.value.todo


@pytest.mark.parametrize("key", ["set/../../x", "set//x", "set/a\\b"])
def test_an_object_whose_name_leads_out_is_refused(bucket, key):
    bucket.put(key, "text")
    with pytest.raises(UserError, match="no name that a file can have"):
        user_path(f"{bucket.url}/set")


def test_a_job_in_a_bucket_is_sent_and_fetched(bucket, monkeypatch, tmp_path):
    url = f"{bucket.url}/runs/one"
    here = buckets.place(url)
    with mirror.mirrored(here):
        (here / "part").mkdir(parents=True)
        (here / "part/a").write_text("first")
        (here / "part/b").write_text("x" * 100)
        (here / ".a.host@1@x").write_text("written aside")
        mirror.push(here / "part")
        assert user_path(f"{url}/part/a") == str(here / "part/a")
        (here / "part/b").unlink()
        (here / "whole").write_text("at the end")
    assert bucket.names() == ["runs/one/part/a", "runs/one/whole"]
    another_machine(monkeypatch, tmp_path)
    there = buckets.place(url)
    assert there != here
    with mirror.mirrored(there):
        assert (there / "part/a").read_text() == "first"
        (there / "part/a").write_text("second")
    # The first machine finds what the other one did, and drops its own.
    monkeypatch.setenv("DISTILL_JAX_CACHE", str(tmp_path / "cache"))
    (here / "unsent").write_text("lost")
    with mirror.mirrored(buckets.place(url)):
        assert (here / "part/a").read_text() == "second"
        assert not (here / "unsent").exists()


def test_a_file_that_did_not_change_is_sent_once(bucket, monkeypatch):
    here, sent, send = buckets.place(f"{bucket.url}/runs/once"), [], mirror.Mirror._send

    def noted(self, changed, gone):
        sent.extend(path.name for path, _, _ in changed)
        send(self, changed, gone)

    monkeypatch.setattr(mirror.Mirror, "_send", noted)
    with mirror.mirrored(here):
        here.mkdir(parents=True, exist_ok=True)
        (here / "kept").write_text("as it was")
        mirror.push(here)
        (here / "new").write_text("later")
        mirror.push(here)
        (here / "new").write_text("longer than before")
    assert sent == ["kept", "new", "new"]


KILLED = """
import os, sys
from distill_jax.io import buckets, mirror
here = buckets.place(sys.argv[1])
with mirror.mirrored(here):
    here.mkdir(parents=True, exist_ok=True)
    (here / "done").write_text("finished")
    mirror.push(here)
    mirror._active._thread.shutdown(wait=True)
    (here / "done").write_text("unfinished")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_job_had_sent_is_found_by_an_empty_cache(
    bucket, monkeypatch, tmp_path
):
    url = f"{bucket.url}/runs/one"
    killed = subprocess.run([sys.executable, "-c", KILLED, url], timeout=120)
    assert killed.returncode == -9
    assert bucket.names()[0] == "runs/one/.distill_jax.lock"
    another_machine(monkeypatch, tmp_path)
    here = buckets.place(url)
    with mirror.mirrored(here):  # its pid is dead: no wait
        assert (here / "done").read_text() == "finished"
    assert bucket.names() == ["runs/one/done"]


def test_two_jobs_do_not_share_a_folder(bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(mirror, "BEAT", 0.1)
    url = f"{bucket.url}/runs/one"
    here = buckets.place(url)
    with (
        mirror.mirrored(here),
        pytest.raises(UserError, match="is in use by pid"),
        mirror.mirrored(here),
    ):
        pass
    with mirror.mirrored(here):
        pass
    # A dead holder on another host: its sign of life stays the same.
    bucket.put("runs/one/.distill_jax.lock", '{"token": "t", "pid": 1, "host": "h"}')
    with mirror.mirrored(here):
        pass
    assert bucket.names() == []


def test_a_bucket_that_cannot_be_written_ends_the_job(bucket, monkeypatch):
    here = buckets.place(f"{bucket.url}/runs/one")

    def refused(*given, **named):
        raise PermissionError("Access Denied")

    def job():
        with mirror.mirrored(here):
            here.mkdir(parents=True, exist_ok=True)
            (here / "a").write_text("text")
            assert mirror._active is not None
            monkeypatch.setattr(mirror._active.files, "pipe_file", refused)

    with pytest.raises(UserError, match="Access Denied") as caught:
        job()
    assert str(here) in caught.value.todo
    assert (here / "a").read_text() == "text"
