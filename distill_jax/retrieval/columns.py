"""Columns of numbers that grow shard by shard on disk and survive a kill.

Each column is one flat file. A shard is appended to all columns, flushed to the disk,
and only then marked as finished by a small file with its sizes. Whoever comes next
cuts the columns back to the finished shards and resumes from there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.reading import read_record, write_record

_DTYPES = ("float32", "float16", "bfloat16", "int8", "int32", "int64")


def numpy_dtype(name: str) -> np.dtype:
    """A dtype by name, bfloat16 included.

    Raises:
        UserError: one that is not stored.
    """
    if name not in _DTYPES:
        raise UserError(f"vectors as {name!r}", f"choose one of {_DTYPES}")
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class Columns:
    """Appends shards to the flat files of a folder.

    Args:
        directory: the folder, created when it is missing.
        dtypes: column name to dtype name.
    """

    def __init__(self, directory: str | Path, dtypes: dict[str, str]):
        self.directory = Path(directory)
        self.dtypes = {name: numpy_dtype(dtype) for name, dtype in dtypes.items()}
        self.directory.mkdir(parents=True, exist_ok=True)

    def finished(self) -> list[dict[str, int]]:
        """Sizes of each column in each finished shard, from the first without a gap."""
        shards = []
        while (marker := self._marker(len(shards))).exists():
            sizes = dict.fromkeys(self.dtypes, int)
            shards.append(read_record(marker, self._todo, **sizes))
        return shards

    @property
    def _todo(self) -> str:
        return f"delete {self.directory} and encode again"

    def append(self, shard: int, parts: dict[str, np.ndarray]) -> None:
        """Writes shard ``shard``, the next after the finished ones.

        Raises:
            UserError: a file is shorter than the finished shards say.
        """
        before = self.finished()[:shard]
        sizes = {}
        for name, dtype in self.dtypes.items():
            values = np.ascontiguousarray(parts[name].reshape(-1)).astype(
                dtype, copy=False
            )
            start = sum(sizes[name] for sizes in before)
            path = self._holding(name, start)
            with open(path, "ab") as file:
                file.truncate(start * dtype.itemsize)  # left by a killed run
                values.tofile(file)
                file.flush()
                os.fsync(file.fileno())
            sizes[name] = int(values.size)
        write_record(self._marker(shard), sizes)

    def read(self) -> dict[str, np.ndarray]:
        """The finished shards' columns, flat and memory-mapped.

        Raises:
            UserError: a file is shorter than its shards say.
        """
        shards = self.finished()
        columns: dict[str, np.ndarray] = {}
        for name, dtype in self.dtypes.items():
            count = sum(sizes[name] for sizes in shards)
            path = self._holding(name, count)
            columns[name] = (
                np.memmap(path, dtype, "r", shape=(count,))
                if count
                else np.zeros(0, dtype)
            )
        return columns

    def _holding(self, name: str, count: int) -> Path:
        """The column's file, checked to hold at least ``count`` numbers."""
        path = self._path(name)
        size = path.stat().st_size if path.exists() else 0
        if size < count * self.dtypes[name].itemsize:
            raise UserError(
                f"{path} is shorter than its shards say",
                self._todo,
            )
        return path

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.bin"

    def _marker(self, shard: int) -> Path:
        return self.directory / f"shard-{shard:06d}.json"


def quantise(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as int8 [N, D] and float32 scales [N]; row = scale * codes."""
    peak = np.abs(vectors).max(1)
    scales = np.where(peak > 0, peak / 127.0, 1.0).astype(np.float32)
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


class QuantisedVectors:
    """int8 rows with a scale each, which slice to float32 as an array would."""

    def __init__(self, codes: np.ndarray, scales: np.ndarray):
        self.codes, self.scales = codes, scales
        self.shape = codes.shape
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        codes = np.asarray(self.codes[rows], np.float32)
        return codes * np.asarray(self.scales[rows], np.float32)[..., None]
