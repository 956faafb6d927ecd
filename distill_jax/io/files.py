"""Files that are whole or absent, digests, and text readers that know the line."""

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
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from distill_jax.io.errors import UserError, clip

# A full disk, a quota, and a limit on the size of files (ulimit -f).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

LONGEST_LINE = 64 << 20
"""Bytes; a longer line is a file that is not made of lines."""


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
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
    """Brings a rename in a folder to the disk, where the system can."""
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
            if not _alive(int(owner["pid"])):
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


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def flush_tree(folder: str | Path) -> None:
    """Brings every file of a folder, and the folders, to the disk."""
    for at, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(at, name), "rb") as file:
                os.fsync(file.fileno())
        flush_folder(at)


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Names the file or folder that a full disk has no room for.

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
        "make room and run the same command: what is finished is kept",
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


def open_binary(path: str | Path) -> IO[bytes]:
    """Opens a file for reading, decompressed when its first bytes are gzip's.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    try:
        if is_gzip(path):
            return gzip.open(path, "rb")  # type: ignore[return-value]
        return open(path, "rb")
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}", "check the path"
        ) from None


def is_gzip(path: str | Path) -> bool:
    """Whether a file is compressed, whatever its name says.

    Raises:
        OSError: it cannot be read.
    """
    # A pipe's first bytes cannot be read twice: its name counts.
    if not Path(path).is_file():
        return str(path).endswith(".gz")
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def raw_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yields ``(line number from 1, bytes of the line without its end)``.

    A byte-order mark is dropped and ``\\r\\n`` ends are understood; no other character
    ends a line. Of a line above ``LONGEST_LINE`` bytes the start is given, and no more
    is held in memory.

    Raises:
        UserError: with file:line, for a compressed file that is cut short or damaged.
    """
    number = 0
    with open_binary(path) as file:
        try:
            while raw := file.readline(LONGEST_LINE + 2):
                number += 1
                rest = raw
                while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
                    rest = file.readline(LONGEST_LINE + 2)
                if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                    raw = raw[3:]
                raw = raw.rstrip(b"\n")
                yield number, raw[:-1] if raw.endswith(b"\r") else raw
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"{path}:{number + 1}: the compressed file is cut or damaged ({error})",
                "download or compress it again",
            ) from None
        except IsADirectoryError:
            raise UserError(f"{path}: is a folder", "name a file") from None


def decoded(path: str | Path, number: int, raw: bytes) -> str:
    """A line as text.

    Raises:
        UserError: with file:line, for bytes that are not UTF-8 and for a line that is
            too long to be one.
    """
    if len(raw) > LONGEST_LINE:
        raise UserError(
            f"{path}:{number}: a line of more than {LONGEST_LINE >> 20} MiB",
            "is it a text file with one record a line?",
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number}:{error.start + 1}: not UTF-8 "
            f"(byte 0x{error.object[error.start]:02x})",
            "convert the file to UTF-8, e.g. with iconv",
        ) from None


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields ``(line number from 1, line without its end)`` of a UTF-8 file.

    Raises:
        UserError: as ``raw_lines`` and ``decoded``.
    """
    for number, raw in raw_lines(path):
        yield number, decoded(path, number, raw)


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yields ``(line number, object)`` of a JSON-lines file; blank lines are skipped.

    Raises:
        UserError: with file:line:column, for malformed JSON or a line that is not an
            object.
    """
    for number, line in read_lines(path):
        record = json_object(path, number, line)
        if record is not None:
            yield number, record


def json_object(path: str | Path, number: int, line: str) -> dict | None:
    """The object that a line holds, None for a blank line.

    Raises:
        UserError: as ``read_jsonl``.
    """
    if not line or line.isspace():
        return None
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{number}:{error.colno}: malformed JSON ({error.msg})",
            f"the line begins {clip(line)}; write one JSON object a line",
        ) from None
    except (RecursionError, ValueError) as error:
        # ValueError: a number of more digits than Python converts.
        kind = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{path}:{number}: JSON that cannot be read: {kind}") from None
    if not isinstance(record, dict):
        raise UserError(
            f"{path}:{number}: a JSON {type(record).__name__}, not an object",
            'write one JSON object a line, e.g. {"_id": "1", "text": "..."}',
        )
    return record


def read_record(
    path: str | Path, todo: str | None = None, /, **fields: Any
) -> dict[str, Any]:
    """Reads a JSON object with its fields; others may stand beside them.

    Args:
        todo: what a user may do about a damaged one.
        fields: name to type, or to a tuple of types.

    Raises:
        UserError: as ``read_json``; it is no object, or lacks a field of that type.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path}: damaged, it holds no JSON object", todo)
    for name, kind in fields.items():
        value = record.get(name)
        number = isinstance(value, bool) and kind is not bool
        if not isinstance(value, kind) or number:
            raise UserError(
                f"{path}: damaged, {name!r} is {'absent' if value is None else 'odd'}",
                todo,
            )
    return record


def read_json(path: str | Path) -> Any:
    """Reads one JSON document.

    Raises:
        UserError: the file is missing, not UTF-8 or not JSON that can be read.
    """
    path = Path(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}", "check the path"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}:{error.colno}: malformed JSON ({error.msg})"
        ) from None
    except RecursionError:
        raise UserError(f"{path}: JSON nested too deep") from None
    except ValueError as error:
        # A number of more digits than Python converts.
        raise UserError(f"{path}: JSON that cannot be read ({error})") from None


def write_json(path: str | Path, value: Any) -> None:
    """Writes one JSON document atomically, keys in their order, indented."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    with atomic_write(path) as out:
        # A lone surrogate cannot be UTF-8; escaping everything always can.
        try:
            out.write(text + "\n")
        except UnicodeEncodeError:
            out.write(json.dumps(value, indent=2) + "\n")


def file_fingerprint(path: str | Path) -> str:
    """A cheap digest of a file's identity: resolved path, size and change time."""
    path = Path(path).resolve()
    status = path.stat()
    return digest(str(path), status.st_size, status.st_mtime_ns)
