"""A job's folder in a bucket: fetched at the start, sent while it is worked on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distill_jax.io import buckets
from distill_jax.io.errors import UserError
from distill_jax.io.files import alive
from distill_jax.io.reading import read_json, write_json

BEAT = 10.0
"""Seconds between two signs of life of the job that holds a folder in a bucket."""

_LOCK = ".distill_jax.lock"
_STATE = "sent.json"
# A changing file up to this size is sent as it was when its part was finished.
_SMALL = 8 << 20

_active: Mirror | None = None


def push(folder: str | Path, *also: Path) -> None:
    """Sends what changed in a folder, if it belongs to a job in a bucket.

    Called when the folder's files fit together: a part is finished, a checkpoint is
    whole. Returns at once; a thread sends them, oldest first.

    Args:
        also: files and folders that belong to it, sent before.

    Raises:
        UserError: an earlier sending failed.
    """
    if _active is None:
        return
    for path in (*also, Path(folder)):
        if path.is_relative_to(_active.directory):
            _active.push(path)


@contextlib.contextmanager
def mirrored(directory: Path) -> Iterator[None]:
    """Within the block a folder of ``buckets.place`` is kept the same in its bucket.

    Does nothing for a folder that stands for no URL.

    Raises:
        UserError: another job holds it, or the bucket cannot be read or written.
    """
    global _active
    url = buckets.url_of(directory)
    if url is None:
        yield
        return
    mirror = Mirror(url, directory)
    with _Lock(mirror.files, mirror.path, url):
        mirror.pull()
        _active = mirror
        try:
            yield
        finally:
            _active = None
            mirror.close()


@dataclasses.dataclass
class Mirror:
    """Files of a folder, and what of them is in the bucket."""

    url: str
    directory: Path

    def __post_init__(self):
        self.files, self.path = buckets.store(self.url)
        self._thread = ThreadPoolExecutor(1, "bucket")
        self._sending: list[Future[None]] = []
        self._state = self.directory.parent / _STATE
        # name -> [bytes, time of change here, tag there]
        self._sent: dict[str, list[Any]] = {}
        if self._state.is_file():
            self._sent = read_json(self._state)
        # What will be there when the thread has done what it was given.
        self._planned = {name: known[:2] for name, known in self._sent.items()}

    def pull(self) -> None:
        """Makes the folder the bucket's, unless all of that was sent from here."""
        with buckets.failures(self.url):
            objects = buckets.listed(self.files, self.path)
        objects = {name: o for name, o in objects.items() if name and name != _LOCK}
        tags = {name: buckets.tag(info) for name, info in objects.items()}
        if tags == {name: known[2] for name, known in self._sent.items()}:
            return  # what is here is the same, or ahead of it after a kill
        shutil.rmtree(self.directory, ignore_errors=True)
        self._sent = {}
        for name, info in sorted(objects.items(), key=lambda item: item[0]):
            buckets.refuse_escape(self.url, name)
            target = self.directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path = f"{self.path}/{name}"
            buckets.fetch(self.files, path, target, info["size"], self.url)
            self._sent[name] = [*_stamp(target), tags[name]]
        self._planned = {name: known[:2] for name, known in self._sent.items()}
        self._record()

    def push(self, folder: Path) -> None:
        """Has a thread send what changed below ``folder``."""
        self._raise()
        found = {path: stamp for path in _files(folder) if (stamp := _stamp(path))}
        changed = []
        for path, stamp in sorted(found.items(), key=lambda item: item[1][1]):
            if self._planned.get(self._name(path)) != stamp:
                held = path.read_bytes() if stamp[0] <= _SMALL else None
                changed.append((path, stamp, held))
        there = {self._name(path) for path in found}
        gone = [
            name
            for name in self._planned
            if (self.directory / name).is_relative_to(folder) and name not in there
        ]
        for name in gone:
            del self._planned[name]
        self._planned |= {self._name(path): stamp for path, stamp, _ in changed}
        if changed or gone:
            self._sending.append(self._thread.submit(self._send, changed, gone))

    def close(self) -> None:
        """Sends everything that is left, and waits for it.

        Raises:
            UserError: it could not be sent; it is still here.
        """
        try:
            self.push(self.directory)
        finally:
            self._thread.shutdown(wait=True)
        self._raise()

    def _send(self, changed: list[Any], gone: list[str]) -> None:
        for path, stamp, held in changed:
            name = self._name(path)
            there = f"{self.path}/{name}"
            if held is not None:
                self.files.pipe_file(there, held)
            elif _stamp(path) == stamp:
                self.files.put_file(str(path), there)
            else:
                continue  # it has changed since: a later push sends it
            self._sent[name] = [*stamp, buckets.tag(self.files.info(there))]
            self._record()
        for name in gone:
            if self._sent.pop(name, None) is not None:
                self.files.rm_file(f"{self.path}/{name}")
                self._record()

    def _raise(self) -> None:
        done = [each for each in self._sending if each.done()]
        self._sending = [each for each in self._sending if not each.done()]
        for each in done:
            error = each.exception()
            if error is not None:
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                raise UserError(
                    f"{self.url}: cannot be written ({reason})",
                    f"the work is in {self.directory}; run the same command again",
                ) from error

    def _name(self, path: Path) -> str:
        return path.relative_to(self.directory).as_posix()

    def _record(self) -> None:
        write_json(self._state, self._sent)


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _passing(name)]
        yield from (Path(at) / name for name in names if not _passing(name))


def _passing(name: str) -> bool:
    """Locks, and what is being written aside."""
    return name.startswith(".") or ".orbax-checkpoint-tmp" in name


def _stamp(path: Path) -> list[int]:
    """Bytes and time of change; [] of a file that is gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    return [status.st_size, status.st_mtime_ns]


class _Lock:
    """An object that says who works on a folder in a bucket, and that it is alive."""

    def __init__(self, files: Any, path: str, url: str):
        self._files, self._at, self._url = files, f"{path}/{_LOCK}", url
        self._token = secrets.token_hex(8)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        with buckets.failures(self._url):
            if not self._take("create"):
                held = self._read()
                gone = held and held["host"] == socket.gethostname()
                if not (gone and not alive(held["pid"])):
                    time.sleep(3 * BEAT)
                    if self._read() != held:
                        raise UserError(
                            f"{self._url} is in use by pid {held['pid']} on "
                            f"{held['host']}",
                            "wait for it to end, or use another MODEL_DIR",
                        )
                self._take("overwrite")
            if self._read().get("token") != self._token:
                raise UserError(
                    f"{self._url}: another job has just begun there",
                    "wait for it to end, or use another MODEL_DIR",
                )
        self._thread.start()

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # one that is left counts as dead
            self._files.rm_file(self._at)

    def _take(self, mode: str, beat: int = 0) -> bool:
        held = {"token": self._token, "pid": os.getpid(), "beat": beat}
        text = json.dumps(held | {"host": socket.gethostname()}).encode()
        once = {"mode": mode} if mode == "create" else {}
        try:
            self._files.pipe_file(self._at, text, **once)
        except FileExistsError:
            return False
        return True

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self._files.cat_file(self._at))
        except FileNotFoundError:
            return {}

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT):
            beat += 1
            with contextlib.suppress(Exception):  # the next one may come through
                self._take("overwrite", beat)
