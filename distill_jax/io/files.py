"""Atomic file writes, digests, and text readers that report line numbers."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from distill_jax.io.errors import UserError

# A full disk, a quota, and a limit on the size of files (ulimit -f).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file that appears under its name only when the block succeeds.

    It is written aside in the same folder, flushed to the disk, and renamed. A path
    ending in ``.gz`` is compressed (with no time stamp: same content, same bytes).

    Args:
        path: the final name; its folder is created.
        mode: ``"w"`` (UTF-8 text, ``\\n`` line ends) or ``"wb"``.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=_aside(path.name))
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as raw:
            with contextlib.ExitStack() as stack:
                out: Any = raw
                if path.suffix == ".gz":
                    out = stack.enter_context(
                        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0)
                    )
                if "b" not in mode:
                    out = stack.enter_context(_text_writer(out))
                yield out
            raw.flush()
            os.fsync(raw.fileno())
        # mkstemp makes files private; give what an ordinary open would have given.
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
        flush_folder(path.parent)
    except BaseException as error:
        written = 0
        with contextlib.suppress(OSError):
            written = os.path.getsize(aside)
            os.unlink(aside)
        if isinstance(error, OSError) and is_full(error):
            raise unwritable(path, error, written) from error
        raise


@contextlib.contextmanager
def written(path: Path, aside: Path) -> Iterator[None]:
    """Renames ``aside``, which a library writes inside, to ``path``; flushed first.

    Raises:
        UserError: the disk is full, which safetensors says in an error of its own.
    """
    try:
        yield
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        flush_folder(path.parent)
    except Exception as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        full = as_full(error)
        if full is None:
            raise
        raise unwritable(path, full) from error


def as_full(error: BaseException) -> OSError | None:
    """The error as one of a full disk, by number or by a library's words."""
    if isinstance(error, OSError):
        return error if is_full(error) else None
    found = re.search(r"os error (\d+)|No space left", str(error))
    if type(error).__name__ != "SafetensorError" or found is None:
        return None
    number = int(found[1]) if found[1] else errno.ENOSPC
    return OSError(number, os.strerror(number)) if number in _FULL else None


def flush_folder(folder: str | Path) -> None:
    """Flushes a rename in a folder to disk, if the system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def staging(parent: Path, name: str) -> Path:
    """A new hidden folder that will take a name; says whose it is, for ``sweep``."""
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=parent, prefix=_aside(name)))


def sweep(folder: str | Path, name: str | None = None) -> list[Path]:
    """Deletes what killed processes of this machine left half-written.

    Args:
        folder: looked through to its leaves; with a name, itself only.
        name: of the file or folder that was to be.
    """
    removed = []
    for at, folders, names in os.walk(folder):
        for found in [*folders, *names]:
            owner = _ASIDE.fullmatch(found)
            if owner is None or owner["host"] != _host() or name not in (
                None, owner["name"],
            ):  # fmt: skip
                continue
            if not alive(int(owner["pid"])):
                path = Path(at) / found
                removed.append(path)
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        folders[:] = [] if name else [f for f in folders if not f.startswith(".")]
    return removed


_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<host>[^@]*)@(?P<pid>\d{1,10})@\w+")


def _aside(name: str) -> str:
    return f".{name[:80]}.{_host()}@{os.getpid()}@"


def _host() -> str:
    return platform.node()[:64].replace("/", "_").replace("@", "_")


def alive(pid: int) -> bool:
    """Whether this machine runs a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def flush_tree(folder: str | Path) -> None:
    """Flushes every file of a folder, and the folders, to disk."""
    for at, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(at, name), "rb") as file:
                os.fsync(file.fileno())
        flush_folder(at)


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Names the file or folder in the error of a full disk.

    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise unwritable(path, error) from error


def is_full(error: OSError) -> bool:
    """Whether a write failed for lack of room; numpy does not say so by number."""
    return error.errno in _FULL or (
        error.errno is None and "requested and" in str(error)
    )


def unwritable(path: Path, error: OSError, written: int | None = None) -> UserError:
    """A file that cannot be written, with the bytes that there was room for."""
    reason = error.strerror or str(error)
    if not is_full(error):
        return UserError(
            f"{path}: cannot be written ({reason})",
            "check the permissions, or choose another folder",
        )
    after = "" if written is None else f" after {written:,} bytes"
    with contextlib.suppress(OSError):
        reason += f"; {shutil.disk_usage(path.parent).free:,} bytes are free"
    return UserError(
        f"{path}: no room for it{after} ({reason})",
        "free some space and run the same command: finished work is kept",
    )


@contextlib.contextmanager
def _text_writer(binary: IO[bytes]) -> Iterator[IO[str]]:
    import io

    text = io.TextIOWrapper(binary, encoding="utf-8", newline="\n")
    try:
        yield text
        text.flush()
    finally:
        with contextlib.suppress(ValueError):
            text.detach()


def _umask() -> int:
    # os.umask can only be read by setting it, which is not safe between threads.
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o022


def digest(*parts: Any) -> str:
    """32 hex digits of SHA-256 over the parts, each with its kind and length.

    Args:
        parts: str, bytes, numpy (or jax) arrays, or JSON-able values. ``digest("ab")``
            differs from ``digest("a", "b")`` and an array's shape and dtype count.
    """
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            _absorb(state, "str", part.encode("utf-8", "surrogatepass"))
        elif isinstance(part, (bytes, bytearray, memoryview)):
            _absorb(state, "bytes", part)
        elif hasattr(part, "dtype") and hasattr(part, "shape"):
            array = np.ascontiguousarray(part)
            # A 0-d array becomes 1-d above: its own shape is what counts.
            head = f"array {array.dtype.name} {tuple(part.shape)}"
            _absorb(state, head, array.reshape(-1).view(np.uint8))
        else:
            encoded = json.dumps(part, sort_keys=True, ensure_ascii=True)
            _absorb(state, "json", encoded.encode())
    return state.hexdigest()[:32]


def digest_texts(texts: Iterable[str]) -> str:
    """The digest of a sequence of texts, read once and never copied together."""
    state = hashlib.sha256(b"texts")
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        state.update(len(encoded).to_bytes(8, "little"))
        state.update(encoded)
    return state.hexdigest()[:32]


def _absorb(state: Any, kind: str, data: Any) -> None:
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    state.update(f"{kind} {view.nbytes}\n".encode())
    state.update(view)
