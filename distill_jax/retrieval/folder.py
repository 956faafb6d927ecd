"""An index on disk: plain .npy arrays and one JSON file that says what they must be.

An index may come from anywhere. Arrays are opened without pickle, and only after kind,
format, dtype, shape and file size were compared with the description.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError, understood
from distill_jax.io.files import atomic_write
from distill_jax.io.reading import read_json, write_json
from distill_jax.io.strings import StringTable

FORMAT = 1
_INDEX = "index.json"


def described(directory: str | Path) -> contextlib.AbstractContextManager[None]:
    """Within the block a wrong description is a UserError with its file."""
    path = Path(directory) / _INDEX
    return understood(f"{path} does not describe an index", "build the index again")


def write(
    directory: str | Path,
    kind: str,
    arrays: dict[str, np.ndarray],
    meta: dict[str, Any],
) -> None:
    """Writes arrays, then the description: an interrupted write leaves no index."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _INDEX).unlink(missing_ok=True)
    described = {}
    for name, values in arrays.items():
        with atomic_write(directory / f"{name}.npy", "wb") as file:
            np.save(file, values, allow_pickle=False)
        described[name] = {"dtype": str(values.dtype), "shape": list(values.shape)}
    record = {"kind": kind, "format": FORMAT, "arrays": described, **meta}
    write_json(directory / _INDEX, record)


def read(
    directory: str | Path, kind: str, *, mmap: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what ``write`` wrote; arrays are memory-mapped by default.

    Raises:
        UserError: no index there, another kind of index, or a file that does not
            agree with the description.
    """
    directory = Path(directory)
    if not (directory / _INDEX).is_file():
        raise UserError(
            f"no index in {directory}: {_INDEX} is missing",
            "build it again; an interrupted save leaves an index without this file",
        )
    meta = read_json(directory / _INDEX)
    if meta["kind"] != kind or meta["format"] > FORMAT:
        raise UserError(
            f"{directory} holds a {meta.get('kind')!r} index of format "
            f"{meta.get('format')}, not a {kind!r} one of format {FORMAT}",
            "load it with the class and version that wrote it",
        )
    arrays = {}
    for name, described in meta.get("arrays", {}).items():
        path = directory / f"{name}.npy"
        if Path(name).name != name:
            raise UserError(f"{directory}/{_INDEX} names an array {name!r}")
        arrays[name] = _open(path, described, mmap)
    return arrays, meta


def _open(path: Path, described: dict, mmap: bool) -> np.ndarray:
    shape = tuple(described["shape"])
    try:
        # A memory map is refused by numpy when the file is shorter than its header
        # promises, and nothing is read before that.
        mapped = shape and 0 not in shape
        values = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}", "build the index again") from error
    if str(values.dtype) != described["dtype"] or values.shape != shape:
        raise UserError(
            f"{path} holds {values.dtype}{list(values.shape)}, the index says "
            f"{described['dtype']}{described['shape']}",
            "build the index again",
        )
    return values if mmap else np.array(values)


def pack_strings(name: str, strings: Sequence[str]) -> dict[str, np.ndarray]:
    """Strings as the two arrays ``NAME`` (UTF-8, uint8) and ``NAME_offsets``."""
    table = strings if isinstance(strings, StringTable) else StringTable.of(strings)
    return {name: np.asarray(table.blob), f"{name}_offsets": np.asarray(table.offsets)}


def unpack_strings(name: str, arrays: dict[str, np.ndarray]) -> StringTable:
    """The inverse of ``pack_strings``, without a copy.

    Raises:
        UserError: the arrays do not fit together.
    """
    blob, offsets = arrays[name], arrays[f"{name}_offsets"]
    sound = (
        blob.dtype == np.uint8
        and offsets.dtype.kind in "iu"
        and blob.ndim == offsets.ndim == 1
        and len(offsets) > 0
        and offsets[0] == 0
        and offsets[-1] == len(blob)
        and not np.any(offsets[1:] < offsets[:-1])
    )
    if not sound or not _is_text(blob, offsets):
        raise UserError("the index's strings are damaged", "build the index again")
    return StringTable(blob, offsets)


def _is_text(blob: np.ndarray, offsets: np.ndarray) -> bool:
    """Whether each string is UTF-8: the whole is, and none begins inside a letter."""
    try:
        blob.tobytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    starts = offsets[offsets < len(blob)]
    return not np.any((blob[starts] & 0xC0) == 0x80)


def check_source(
    directory: str | Path, meta: dict[str, Any], source: str | None
) -> None:
    """Compares the digest of an index with the expected one.

    Raises:
        UserError: they differ: the index is of other weights or of another corpus.
    """
    if source is not None and source != meta.get("source"):
        raise UserError(
            f"the index in {directory} was built from other vectors",
            "build it again from the present weights and corpus",
        )
