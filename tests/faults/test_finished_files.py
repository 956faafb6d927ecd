"""What was finished is what is used; nothing is left half-written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distill_jax.io import files, reading, sums
from distill_jax.io.errors import UserError
from distill_jax.io.files import staging, sweep
from distill_jax.io.reading import read_json, read_record
from distill_jax.teaching.cache import ScoreCache
from distill_jax.text.token_store import TokenStore
from distill_jax.training.runfiles import Lock
from distill_jax.workspace import cached_step
from distill_jax.workspace.cached_step import part

DAMAGE = {
    "flip": lambda raw: bytes([raw[0] ^ 0x40]) + raw[1:] if raw else b"x",
    "flip late": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]) if raw else b"x",
    "cut": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
    "longer": lambda raw: raw + b"\n",
}


def damage(path: Path, how: str) -> bytes:
    before = path.read_bytes()
    path.write_bytes(DAMAGE[how](before))
    return before


def make(folder: Path) -> dict:
    (folder / "deep").mkdir()
    (folder / "a.txt").write_text("one\n")
    (folder / "deep" / "b.bin").write_bytes(bytes(range(256)))
    return {"count": 2}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["a.txt", "deep/b.bin"])
def test_a_damaged_file_of_a_finished_part_is_named(tmp_path, name, how):
    folder = tmp_path / "x"
    part(folder, {"n": 1}, make, what="x")
    before = damage(folder / name, how)
    with pytest.raises(UserError, match="damaged") as caught:
        part(folder, {"n": 1}, make, what="x")
    assert str(folder / name) in caught.value.what
    (folder / name).write_bytes(before)
    assert part(folder, {"n": 1}, make, what="x")["count"] == 2
    (folder / name).unlink()
    with pytest.raises(UserError, match="gone"):
        part(folder, {"n": 1}, make, what="x")


@pytest.mark.parametrize(
    "text", ["[]", "{}", "", "{", "5", '{"inputs": 1}', "[" * 99999]
)
def test_a_damaged_record_of_a_part_is_named(tmp_path, text):
    part(tmp_path / "x", {"n": 1}, make, what="x")
    (tmp_path / "x/part.json").write_text(text)
    with pytest.raises(UserError, match=r"part\.json"):
        part(tmp_path / "x", {"n": 1}, make, what="x")


def test_a_part_within_a_part_is_not_the_outer_one_s(tmp_path):
    part(tmp_path / "x/inner", {"n": 1}, make, what="inner")
    part(tmp_path / "x", {"n": 1}, make, what="outer")
    (tmp_path / "x/inner/a.txt").write_text("changed")
    assert part(tmp_path / "x", {"n": 1}, make, what="outer")["count"] == 2


def test_parts_that_no_step_visits_are_checked_together(tmp_path):
    folder = tmp_path / "round/labels/pairs"
    for place in (folder, tmp_path / "round/lists.old"):
        part(
            place,
            {"n": 1},
            lambda at: at.joinpath("x").write_text("1") and {},
            what="x",
        )
        (place / "x").write_text("2")
    with pytest.raises(UserError, match="pairs/x: damaged"):
        cached_step.check(tmp_path)
    (folder / "x").write_text("1")
    cached_step.check(tmp_path)
    (tmp_path / "round/labels").rename(tmp_path / "round/labels.old")
    (tmp_path / "round/labels.old/pairs/x").unlink()
    cached_step.check(tmp_path)


def test_a_sum_is_taken_once_in_a_process(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x" * 1000)
    recorded = sums.take(tmp_path)
    monkeypatch.setattr(sums.hashlib, "file_digest", None)
    sums.check(tmp_path, recorded, "todo")


class Words:
    """A tokenizer of the letters of a text."""

    digest, vocab_size = "words", 26

    def encode_batch(self, texts):
        return [[ord(letter) - 97 for letter in text] for text in texts]


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["ids.bin", "offsets.npy"])
def test_damaged_token_ids_are_named(tmp_path, name, how):
    store = TokenStore.build(["abc", "z"], Words(), tmp_path)
    folder = tmp_path / store.digest
    assert TokenStore.read(folder).ids.tolist() == [0, 1, 2, 25]
    damage(folder / name, how)
    with pytest.raises(UserError, match=str(folder)):
        TokenStore.read(folder)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path):
    folder = tmp_path / TokenStore.build(["abc"], Words(), tmp_path).digest
    record = json.loads((folder / "tokens.json").read_text())
    # As a store of before sums were kept.
    del record["files"], record["sum"]
    (folder / "tokens.json").write_text(json.dumps(record))
    (folder / "ids.bin").write_bytes(np.asarray([0, 26, 1], np.uint16).tobytes())
    with pytest.raises(UserError, match="id 26 of a vocabulary of 26"):
        TokenStore.read(folder)


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_scores_are_named(tmp_path, how):
    cache = ScoreCache(tmp_path, "m")
    keys = np.zeros(3, [("first", "<u8"), ("second", "<u8"), ("third", "<u8")])
    keys["first"] = 1, 2, 3
    cache.add(keys, np.asarray([0.5, 0.25, 1.0]))
    assert ScoreCache(tmp_path, "m").find(keys).tolist() == [0.5, 0.25, 1.0]
    (path,) = (tmp_path / "m").glob("*.npz")
    damage(path, how)
    try:
        again = ScoreCache(tmp_path, "m").find(keys).tolist()
    except UserError as error:
        assert str(path) in error.what  # noqa: PT017
    else:
        assert again == [0.5, 0.25, 1.0]


def test_records_have_the_fields_that_are_asked_of_them(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1, "b": [2], "c": true}')
    assert read_record(path, a=int, b=list, c=bool)["b"] == [2]
    for field in ({"a": str}, {"c": int}, {"d": int}, {"b": dict}):
        with pytest.raises(UserError, match=r"x\.json: damaged"):
            read_record(path, **field)
    for text in ("[]", "null", "7"):
        path.write_text(text)
        with pytest.raises(UserError, match="no JSON object"):
            read_record(path)
    for text in ("[" * 100_000, "9" * 5_000, "{", "\ud800".encode("utf-8", "replace")):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UserError, match=r"x\.json"):
            read_json(path)


def test_the_next_holder_of_the_lock_removes_what_a_killed_job_left(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from distill_jax.io import files\n"
        "folder = files.staging(Path(sys.argv[1]) / 'deep', 'model')\n"
        "(folder / 'weights').write_text('x')\n"
        "print(folder.name, flush=True); os._exit(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    left = tmp_path / "deep" / done.stdout.strip()
    own = staging(tmp_path / "deep", "model")
    other = tmp_path / ".model.elsewhere@1234567@abc"
    other.mkdir()
    user = tmp_path / ".config.d"
    user.mkdir()
    assert left.is_dir()
    with Lock(tmp_path):
        assert not left.exists()
    # What lives, is another machine's, or nobody's of ours, stays.
    assert own.is_dir()
    assert other.is_dir()
    assert user.is_dir()
    assert sweep(tmp_path) == []


def test_what_is_renamed_is_on_the_disk_with_its_folder(tmp_path, monkeypatch):
    flushed = []
    real = os.fsync

    def spy(handle):
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", spy)
    reading.write_json(tmp_path / "a.json", {})
    assert any(Path(path).name.startswith(".a.json.") for path in flushed)
    assert flushed[-1] == str(tmp_path)


def test_a_full_disk_of_a_library_is_two_lines(tmp_path):
    class SafetensorError(Exception):
        pass

    number = errno.ENOSPC
    error = SafetensorError(f"I/O error: No space left on device (os error {number})")

    def save():
        with files.written(tmp_path / "weights.bin", tmp_path / ".aside"):
            (tmp_path / ".aside").touch()
            raise error

    with pytest.raises(UserError, match=r"weights\.bin: no room"):
        save()
    assert list(tmp_path.iterdir()) == []
    assert files.as_full(SafetensorError("header too large")) is None
