"""Many strings as one blob of UTF-8 and offsets: memory-mapped at scale."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from distill_jax.io.errors import UserError

_CHUNK = 4096


class StringTable(Sequence[str]):
    """A read-only sequence of strings over a blob.

    Args:
        blob: uint8[T], the strings' UTF-8 end to end.
        offsets: int64[M + 1]; string i is ``blob[offsets[i]:offsets[i + 1]]``.
    """

    def __init__(self, blob: np.ndarray, offsets: np.ndarray):
        self.blob = blob
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row):
        if isinstance(row, slice):
            start, stop, step = row.indices(len(self))
            if step == 1:
                return self._decode(start, max(start, stop))
            return [self[i] for i in range(start, stop, step)]
        row = int(row)
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        begin, end = int(self.offsets[row]), int(self.offsets[row + 1])
        return self.blob[begin:end].tobytes().decode("utf-8", "surrogatepass")

    def _decode(self, start: int, stop: int) -> list[str]:
        offsets = np.asarray(self.offsets[start : stop + 1])
        if not len(offsets):
            return []
        data = self.blob[int(offsets[0]) : int(offsets[-1])].tobytes()
        ends = (offsets - offsets[0]).tolist()
        return [
            data[a:b].decode("utf-8", "surrogatepass")
            for a, b in itertools.pairwise(ends)
        ]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _CHUNK):
            yield from self._decode(start, min(start + _CHUNK, len(self)))

    def take(self, rows: Any) -> list[str]:
        """The strings of rows int[M], in their order."""
        return [self[row] for row in np.asarray(rows).tolist()]

    def arrow(self) -> Any:
        """The same strings as a pyarrow array, without a copy."""
        import pyarrow as pa

        offsets = np.ascontiguousarray(self.offsets, dtype=np.int64)
        return pa.LargeStringArray.from_buffers(
            len(self), pa.py_buffer(offsets), pa.py_buffer(self.blob)
        )

    @classmethod
    def read(cls, folder: str | Path, name: str) -> StringTable:
        """Maps the two files that a ``StringTableWriter`` left.

        Raises:
            UserError: the files are missing or do not fit together.
        """
        blob_path = Path(folder) / f"{name}.blob"
        try:
            offsets = np.load(
                Path(folder) / f"{name}.offsets.npy", mmap_mode="r", allow_pickle=False
            )
            size = blob_path.stat().st_size
            whole = (
                offsets.ndim == 1
                and offsets.dtype == np.int64
                and len(offsets) >= 1
                and offsets[0] == 0
                and offsets[-1] == size
                and bool((offsets[1:] >= offsets[:-1]).all())
            )
        except (OSError, ValueError):
            whole, offsets, size = False, np.zeros(1, np.int64), 0
        if not whole:
            raise UserError(
                f"{blob_path}: the string table is damaged",
                "delete its folder; it is rebuilt by the next run",
            )
        blob = np.memmap(blob_path, np.uint8, "r") if size else np.zeros(0, np.uint8)
        return cls(blob, offsets)

    @classmethod
    def of(cls, strings: Iterable[str]) -> StringTable:
        """A table in memory."""
        parts = [string.encode("utf-8", "surrogatepass") for string in strings]
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return cls(np.frombuffer(b"".join(parts), np.uint8), offsets)


def int_list(rows: Any) -> list[int]:
    """Rows int[M] as Python integers."""
    return [int(row) for row in np.asarray(rows).tolist()]


class StringTableWriter:
    """Appends strings to ``NAME.blob``; ``close`` writes ``NAME.offsets.npy``."""

    def __init__(self, folder: str | Path, name: str):
        self._folder, self._name = Path(folder), name
        self._out = open(self._folder / f"{name}.blob", "wb")  # noqa: SIM115
        self._lengths: list[np.ndarray] = []
        self._pending: list[bytes] = []

    def append(self, string: str) -> None:
        self._pending.append(string.encode("utf-8", "surrogatepass"))
        if len(self._pending) >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        self._out.write(b"".join(self._pending))
        self._lengths.append(
            np.fromiter(map(len, self._pending), np.int64, len(self._pending))
        )
        self._pending = []

    def close(self) -> None:
        self._flush()
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        lengths = np.concatenate([np.zeros(1, np.int64), *self._lengths])
        np.save(self._folder / f"{self._name}.offsets.npy", np.cumsum(lengths))


def arrow_strings(strings: Sequence[str]) -> Any:
    """Any sequence of strings as a pyarrow array."""
    import pyarrow as pa

    if isinstance(strings, StringTable):
        return strings.arrow()
    return pa.array(list(strings), pa.large_string())
