"""Checksums that tell a damaged folder from a whole one."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from distill_jax.io.files import atomic_write
from distill_jax.io.reading import write_json

_MANIFEST = "manifest.json"
# Orbax rewrites it while it renames the folder.
_UNCHECKED = {"_CHECKPOINT_METADATA", _MANIFEST}


def write_manifest(folder: Path) -> None:
    """Notes size and CRC-32 of every file below a folder."""
    sums = {
        str(path.relative_to(folder)): [path.stat().st_size, _crc(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _UNCHECKED
    }
    with atomic_write(folder / _MANIFEST) as out:
        json.dump(sums, out)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        read = json.loads((folder / _MANIFEST).read_text())
        sums = {name: (int(size), int(crc)) for name, (size, crc) in read.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{folder / _MANIFEST}: {error}"
    for name, (size, crc) in sums.items():
        path = folder / name
        if not path.is_file():
            return f"{path}: missing"
        if path.stat().st_size != size or _crc(path) != crc:
            return f"{path}: its checksum differs from the manifest's"
    return None


def write_sealed(path: Path, value: Any) -> None:
    """JSON with a checksum of its own, for what is added when the manifest is made."""
    write_json(path, {"crc": _crc_of(value), "value": value})


def read_sealed(path: Path) -> Any:
    """What ``write_sealed`` wrote; None when it is not there or was altered since."""
    try:
        record = json.loads(path.read_bytes())
        return record["value"] if record["crc"] == _crc_of(record["value"]) else None
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _crc_of(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
