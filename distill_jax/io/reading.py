"""Files read: compressed or not, line by line, JSON; errors name the file and line."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from distill_jax.io.errors import UserError, clip
from distill_jax.io.files import atomic_write, digest

LONGEST_LINE = 64 << 20
"""Bytes; a longer line is a file that is not made of lines."""


def open_binary(path: str | Path) -> IO[bytes]:
    """Opens a file for reading, decompressed when its first bytes are gzip's.

    Raises:
        UserError: there is no such file, it cannot be read, or its name says that it
            is compressed and it holds neither that nor text.
    """
    path = Path(path)
    try:
        # A pipe's first bytes cannot be read twice: its name counts.
        packed = path.suffix == ".gz"
        if path.is_file():
            with open(path, "rb") as file:
                first = file.read(16)
            packed = first.startswith(b"\x1f\x8b")
            if path.suffix == ".gz" and not packed and _CONTROL.search(first):
                raise UserError(
                    f"{path}:1: the compressed file is cut or damaged (neither gzip "
                    "nor text)",
                    "download or compress it again",
                )
        return gzip.open(path, "rb") if packed else open(path, "rb")  # type: ignore
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}", "check the path"
        ) from None


_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
# Recognised by their first bytes, which are not UTF-8 or are soon followed by such.
_BINARY = {
    "zstd": b"\x28\xb5\x2f\xfd",
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ\0",
    "zip": b"PK\3\4",
    "lz4": b"\x04\x22\x4d\x18",
    "Parquet": b"PAR1",
}


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
    if number == 1 and raw.startswith(tuple(_BINARY.values())) and _CONTROL.search(raw):
        raise UserError(f"{path}:1: not a text", as_utf8(raw))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number}:{error.start + 1}: not UTF-8 "
            f"(byte 0x{error.object[error.start]:02x})",
            as_utf8(raw if number == 1 else b""),
        ) from None


def as_utf8(first: bytes) -> str:
    """What to do with a file that is not UTF-8.

    Args:
        first: its first bytes.
    """
    for name, start in _BINARY.items():
        if first.startswith(start):
            return f"it is a {name} file: unpack it, or compress it by gzip"
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "convert it: iconv -f UTF-16 -t UTF-8"
    return "convert it to UTF-8, e.g. iconv -f LATIN1 -t UTF-8"


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields ``(line number from 1, line without its end)`` of a UTF-8 file.

    Raises:
        UserError: as ``raw_lines`` and ``decoded``.
    """
    for number, raw in raw_lines(path):
        yield number, decoded(path, number, raw)


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields ``(line number, object)`` of a JSON-lines file; blank lines are skipped.

    Raises:
        UserError: with file:line:column, for malformed JSON or a line that is not an
            object.
    """
    for number, line in read_lines(path):
        record = json_object(path, number, line)
        if record is not None:
            yield number, record


def json_object(path: str | Path, number: int, line: str) -> dict[str, Any] | None:
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
    """Reads a JSON object with the given fields; other fields are allowed.

    Args:
        todo: what a user may do about a damaged one.
        fields: name to type, or to a tuple of types.

    Raises:
        UserError: as ``read_json``; it is not an object, lacks a field of that type,
            or is not as ``write_record`` wrote it.
    """
    try:
        record = read_json(path)
    except UserError as error:
        raise UserError(error.what, error.todo or todo) from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: damaged, it holds no JSON object", todo)
    stated = record.pop(_SUM, None)
    if stated is not None and stated != digest(record):
        raise UserError(f"{path}: damaged, it is not as it was written", todo)
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


def write_record(path: str | Path, record: dict[str, Any]) -> None:
    """Writes a JSON object with a checksum of its own, which ``read_record`` compares.

    Args:
        record: JSON-able; no field is called "sum".
    """
    # As it is read again: tuples are lists then, and keys are texts.
    record = json.loads(json.dumps(record))
    write_json(path, {**record, _SUM: digest(record)})


_SUM = "sum"


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
